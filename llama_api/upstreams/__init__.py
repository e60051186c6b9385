"""Which Ollama answers, and when."""
