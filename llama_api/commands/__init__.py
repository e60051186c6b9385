"""What an operator types: clients of the service, which know its settings and its HTTP."""

from .cache import cache

__all__ = ["cache"]
