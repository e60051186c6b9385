"""How gunicorn serves the application."""

from .reloading import current_settings

__all__ = ["current_settings"]
