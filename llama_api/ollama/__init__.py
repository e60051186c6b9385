"""How one Ollama is spoken to."""
