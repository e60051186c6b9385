"""The output of Ollama: the pieces as they arrive, and the whole answer that is stored."""

import base64
import sys
from array import array
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import orjson

FORMAT = 2  # of stored answers; raise it with every change that an older version would misread
_STRINGS = ("text", "thinking", "model")


class Piece(NamedTuple):
    """A part of an answer from one record; concatenated in order, the pieces are the answer."""

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()
    vectors: tuple[bytes, ...] = ()  # of texts embedded together, little-endian float32


class Completion(NamedTuple):
    """The end of a generation, from Ollama's last record; unreported values are None.

    ``finish_reason`` is stop, length or None. Durations are in nanoseconds.
    """

    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_input_tokens: int | None = None
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_duration: int | None = None
    eval_duration: int | None = None
    context: "array[int] | None" = None  # 32-bit numbers, as there may be thousands of tokens
    debug_info: dict[str, Any] | None = None  # the rendered prompt, for requests that only render

    @property
    def tokens_per_second(self) -> float | None:
        """Speed of the generation by Ollama's own clock."""
        tokens, nanoseconds = self.output_tokens, self.eval_duration
        return round(tokens / nanoseconds * 1e9, 2) if tokens and nanoseconds else None

    @property
    def seconds(self) -> float | None:
        """Time of the generation by Ollama's own clock, without the load of the model; None when unreported."""
        return None if self.total_duration is None else (self.total_duration - (self.load_duration or 0)) / 1e9


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: of a generation text, thinking, tool calls and logprobs; of an embedding the ``vector``.

    ``model`` is the configured name of the model that answered, ``digest`` its build, ``host`` the Ollama that
    generated, ``created`` the time as seconds since the epoch. ``vector`` is little-endian float32,
    ``batch`` its call: the id, the number of texts, and their total of tokens if Ollama reported it.
    """

    model: str
    text: str = ""
    thinking: str = ""
    tool_calls: tuple[dict[str, Any], ...] = ()
    logprobs: tuple[dict[str, Any], ...] = ()
    vector: bytes | None = None
    batch: tuple[str, int, int | None] | None = None
    completion: Completion = Completion()
    digest: str | None = None
    host: str | None = None
    created: float = 0.0

    @classmethod
    def of(cls, pieces: list[Piece], completion: Completion, **known: Any) -> "Answer":
        """The answer made of ``pieces``; ``known`` are model, digest, host and created."""
        return cls(text="".join([piece.text for piece in pieces]),
                   thinking="".join([piece.thinking for piece in pieces if piece.thinking]),
                   tool_calls=tuple(call for piece in pieces for call in piece.tool_calls),
                   logprobs=tuple(token for piece in pieces for token in piece.logprobs),
                   completion=completion, **known)

    @property
    def pieces(self) -> list[Piece]:
        """The answer as pieces for streaming; none when it is empty."""
        found = [Piece(thinking=self.thinking)] if self.thinking else []
        if self.text or self.tool_calls or self.logprobs:
            found.append(Piece(self.text, "", self.tool_calls, self.logprobs))
        return found

    @property
    def weight(self) -> int:
        """Its approximate bytes in memory, without the fixed parts."""
        size = sys.getsizeof(self.text) + len(self.thinking) + len(self.vector or b"")
        if self.tool_calls or self.logprobs:
            size += 4 * len(orjson.dumps([self.tool_calls, self.logprobs]))  # objects take more than their text
        return size + 4 * len(self.completion.context or ())

    def to_json(self) -> dict[str, Any]:
        """The answer as values of JSON, for another process of the service; empty members are omitted."""
        values: dict[str, Any] = {"format": FORMAT}
        for field in fields(self):
            value = getattr(self, field.name)
            if value or field.name in _STRINGS:
                values[field.name] = value
        values["completion"] = {name: value.tolist() if isinstance(value, array) else value
                                for name, value in self.completion._asdict().items() if value is not None}
        if self.vector is not None:
            values["vector"] = base64.b64encode(self.vector).decode()
        return values

    def to_bytes(self) -> bytes:
        """The answer as JSON text, for a shared store."""
        return orjson.dumps(self.to_json())

    @classmethod
    def from_json(cls, values: Any) -> "Answer":
        """The answer from parsed JSON. Raises ValueError when it is damaged or of another format."""
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            raise ValueError("not an answer of this format")
        try:
            return cls._read(values)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"not an answer: {error}") from error

    @classmethod
    def _read(cls, values: dict[str, Any]) -> "Answer":
        known = {name: value for name, value in values.items() if name != "format"}
        end = Completion(**known.get("completion", {}))
        known["completion"] = end._replace(context=None if end.context is None else array("i", end.context))
        for name in ("tool_calls", "logprobs"):
            known[name] = tuple(known.get(name, ()))
        if "batch" in known:
            known["batch"] = tuple(known["batch"])
        if "vector" in known:
            known["vector"] = base64.b64decode(known["vector"], validate=True)
            if len(known["vector"]) % 4:
                raise ValueError("a vector that is not one")
        answer = cls(**known)
        if not all(isinstance(getattr(answer, name), str) for name in _STRINGS) or not isinstance(
                answer.created, (int, float)):
            raise TypeError("not an answer")
        return answer
