"""What tests lean on: the double of Ollama, servers started as they are run, small fakes."""
