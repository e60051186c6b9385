"""The client of one Ollama: the wall around requests, urllib3 and http.client."""

from .client import OllamaClient
from .protocol import completion_of, ending_of, numbers_of, piece_of, record_of

__all__ = ["OllamaClient", "completion_of", "ending_of", "numbers_of", "piece_of", "record_of"]
