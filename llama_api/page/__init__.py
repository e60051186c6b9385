"""The page for people, at /: a prompt, and the service at a glance."""

from .page import blueprint

__all__ = ["blueprint"]
