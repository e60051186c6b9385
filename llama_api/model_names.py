"""The names of models, as Ollama reads them (``types/model/name.go``), and the recognition of models on other hosts."""

from collections.abc import Mapping
from typing import Any


def normal(name: str) -> str:
    """The canonical name of a model: with its tag, in lower case, without the default host and namespace."""
    name = name.strip().lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    return name if ":" in name.rpartition("/")[2] else name + ":latest"


def is_cloud(name: str) -> bool:
    """Whether a model of this name runs on another host, to which it would send its prompts."""
    tag = normal(name).rpartition(":")[2]
    return tag == "cloud" or tag.endswith("-cloud")


def is_stub(entry: Mapping[str, Any]) -> bool:
    """Whether Ollama's entry of a model (in /api/tags, ps or show) says that it runs on another host."""
    return bool(entry.get("remote_host") or entry.get("remote_model"))
