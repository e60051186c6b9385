"""What outlasts a reload: the settings in force, as values by their fields, for the class of the settings does not."""

from typing import Any

settings: dict[str, Any] = {}
