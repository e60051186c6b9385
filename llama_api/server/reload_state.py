"""The state that survives a reload: the settings in force, as plain values, as their class is imported again."""

from typing import Any

settings: dict[str, Any] = {}
