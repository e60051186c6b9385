"""Scheduling of generations over all Ollamas. Knows no HTTP."""

from .breaker import Breaker
from .fleet import Fleet
from .leases import Leases
from .monitor import Monitor
from .probe import builds_of, fault_of_version
from .observers import Attempted, Ended, Generated, Observer, Run, Tracer
from .slots import Slots
from .state import State
from .upstream import Upstream

__all__ = ["Attempted", "Breaker", "Ended", "Fleet", "Generated", "Leases", "Monitor", "Observer", "Run", "Slots",
           "State", "Tracer", "Upstream", "builds_of", "fault_of_version"]
