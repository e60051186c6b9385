"""The support for tests: the double of Ollama, servers started as deployed, small fakes."""
