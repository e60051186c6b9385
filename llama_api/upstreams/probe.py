"""The result of one probe of an Ollama."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..model_names import is_stub, normal

UNCUT_SINCE = (0, 12, 6)  # the first version that does not silently truncate a long prompt


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory: how much of it is on the GPU (percent), its context window, and when it expires.

    ``expires`` is in seconds since the epoch, by the clock of Ollama's host. Unreported values are None.
    """

    gpu_percent: int | None = None
    context_length: int | None = None
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """One probe of an Ollama, begun ``at`` (monotonic): whether it answers, its models and those in memory.

    ``models`` and ``builds`` are local models; ``stubs`` are the normal names of models that run on another host.
    ``builds`` maps the models' normal names to digests, None where an old Ollama reports none. ``loaded`` is None when
    unreported. ``reason`` says why Ollama does not answer.
    """

    at: float
    reachable: bool
    reason: str | None = None
    version: str | None = None
    models: tuple[dict[str, Any], ...] = ()  # of the last response of /api/tags
    stubs: frozenset[str] = frozenset()
    builds: dict[str, str | None] = field(default_factory=dict)
    loaded: dict[str, Loaded] | None = None


def fault_of_version(version: str | None) -> str | None:
    """The known fault of an Ollama of ``version`` with its cure, or None.

    Old versions silently truncate a long prompt, whatever the request says.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version or "")
    numbers = tuple(map(int, found.groups())) if found else (0, 0, 0)
    if not (0, 0, 0) < numbers < UNCUT_SINCE:  # builds from source report 0.0.0
        return None
    return (f"version {version} silently truncates prompts that are too long; update it to"
            f" {'.'.join(map(str, UNCUT_SINCE))} or later")


def builds_of(models: list[dict[str, Any]]) -> dict[str, str | None]:
    """The digests in the entries of /api/tags, by the models' normal names; stubs have none."""
    return {normal(name): digest if isinstance(digest := model.get("digest"), str) and digest else None
            for model in models if isinstance(name := model.get("name"), str) and not is_stub(model)}


def loaded_of(models: list[dict[str, Any]]) -> dict[str, Loaded]:
    """The models in memory by normal name, from the entries of /api/ps."""
    return {normal(name): Loaded(_percent(model.get("size_vram"), model.get("size")),
                                 window if type(window := model.get("context_length")) is int and window > 0 else None,
                                 _seconds(model.get("expires_at")))
            for model in models if isinstance(name := model.get("name"), str)}


def _percent(part: Any, whole: Any) -> int | None:
    known = isinstance(part, int) and isinstance(whole, int) and whole > 0
    return min(100, max(0, round(100 * part / whole))) if known else None


def _seconds(time: Any) -> float | None:
    try:
        return datetime.fromisoformat(time).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
