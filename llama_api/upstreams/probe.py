"""What one look at an Ollama found."""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..model_names import is_stub, normal

UNCUT_SINCE = (0, 12, 6)  # the first version that does not cut an over-long prompt in silence


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model in memory: how much of it is on the GPU (percent), its context window, and until when it stays.

    ``expires`` is in seconds since the epoch, by the clock of Ollama's host. None is what was not told.
    """

    gpu_percent: int | None = None
    context_length: int | None = None
    expires: float | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """One look at an Ollama, begun ``at`` (monotonic): whether it answers, what it has and what is in memory.

    ``models`` and ``builds`` are of those that run there; ``stubs`` are the normal names of others, which it would have
    a foreign host answer for. ``builds`` are the digests by the models' normal names, None where an older Ollama tells
    none. ``loaded`` is None when it did not tell. ``reason`` says why it does not answer.
    """

    at: float
    reachable: bool
    reason: str | None = None
    version: str | None = None
    models: tuple[dict[str, Any], ...] = ()  # as /api/tags told them last
    stubs: frozenset[str] = frozenset()
    builds: dict[str, str | None] = field(default_factory=dict)
    loaded: dict[str, Loaded] | None = None


def fault_of_version(version: str | None) -> str | None:
    """What is wrong with an Ollama of ``version``, with its cure; None when nothing is known to be.

    Old ones cut an over-long prompt in silence, whatever they are told.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", version or "")
    numbers = tuple(map(int, found.groups())) if found else (0, 0, 0)
    if not (0, 0, 0) < numbers < UNCUT_SINCE:  # builds from the source call themselves 0.0.0
        return None
    return (f"version {version} silently truncates prompts that are too long; update it to"
            f" {'.'.join(map(str, UNCUT_SINCE))} or later")


def builds_of(models: list[dict[str, Any]]) -> dict[str, str | None]:
    """The digests in the entries of /api/tags, by the models' normal names; stubs have none."""
    return {normal(name): digest if isinstance(digest := model.get("digest"), str) and digest else None
            for model in models if isinstance(name := model.get("name"), str) and not is_stub(model)}


def loaded_of(models: list[dict[str, Any]]) -> dict[str, Loaded]:
    """What the entries of /api/ps tell of the models in memory, by their normal names."""
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
