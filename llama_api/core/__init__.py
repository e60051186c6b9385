"""The way of a question: cache, flight, queue, Ollama."""
