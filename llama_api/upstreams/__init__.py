"""Which Ollama answers, and when. Knows no HTTP."""

from .breaker import Breaker
from .fleet import Ended, Fleet, Generated, Observer, Run, State
from .monitor import Monitor, Probe
from .queue import Gate
from .upstream import Upstream

__all__ = ["Breaker", "Ended", "Fleet", "Gate", "Generated", "Monitor", "Observer", "Probe", "Run", "State",
           "Upstream"]
