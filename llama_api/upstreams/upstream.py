"""One Ollama: its client, its monitor and its breaker."""

from dataclasses import dataclass

from ..ollama import OllamaClient
from .breaker import Breaker
from .monitor import Monitor


@dataclass(frozen=True, slots=True)
class Upstream:
    """One Ollama; ``host`` names it in the log and in metrics, such as ``127.0.0.1:11434``."""

    host: str
    client: OllamaClient
    monitor: Monitor
    breaker: Breaker
