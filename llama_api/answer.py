"""What is asked of the model and what it answered: the two values that every other module hands on."""

from dataclasses import asdict, dataclass
from typing import Any

import orjson


@dataclass(frozen=True, slots=True)
class Question:
    """All that can change an answer, each with its effective value. Every field is part of the cache key."""

    prompt: str
    max_tokens: int
    temperature: float
    system: str | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_p: float | None = None
    top_k: int | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer. ``finish_reason`` is stop, length or None; token counts are Ollama's own, None when it gave none.

    ``digest`` is the build of the model that wrote it, ``created`` its time as seconds since the epoch.
    """

    text: str
    model: str
    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    tokens_per_second: float | None
    digest: str | None
    created: float

    def to_bytes(self) -> bytes:
        """The answer as JSON, for a shared store."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, fields: Any) -> "Answer":
        """The answer out of parsed JSON. Raises TypeError when that is none."""
        answer = cls(**fields)
        if not (isinstance(answer.text, str) and isinstance(answer.created, (int, float))):
            raise TypeError("not an answer")
        return answer
