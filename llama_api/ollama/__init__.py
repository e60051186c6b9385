"""How one Ollama is spoken to: the wall around requests, urllib3 and http.client."""

from .client import OllamaClient
from .protocol import piece_of, record_of

__all__ = ["OllamaClient", "piece_of", "record_of"]
