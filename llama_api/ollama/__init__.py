"""How one Ollama is spoken to: the wall around requests, urllib3 and http.client."""

from .client import OllamaClient

__all__ = ["OllamaClient"]
