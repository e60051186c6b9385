"""What survives a reload: the settings in force, as plain values by field name, for their class is imported anew."""

from typing import Any

settings: dict[str, Any] = {}
