"""The double of Ollama keeps its word."""
