"""The names of models, as Ollama reads them (``types/model/name.go``), and which of these are of foreign hosts."""

from collections.abc import Mapping
from typing import Any


def normal(name: str) -> str:
    """The one form of all names of a model: with its tag, lower case, without the default host and namespace."""
    name = name.strip().lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


def is_cloud(name: str) -> bool:
    """Whether a model of this name runs on a foreign host: its prompts would leave this one."""
    tag = normal(name).rpartition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")


def is_stub(entry: Mapping[str, Any]) -> bool:
    """Whether what Ollama tells of a model (in /api/tags, ps or show) says that it runs on a foreign host."""
    return bool(entry.get("remote_host") or entry.get("remote_model"))
