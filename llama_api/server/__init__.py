"""How gunicorn serves the application."""

from .reloading import in_force

__all__ = ["in_force"]
