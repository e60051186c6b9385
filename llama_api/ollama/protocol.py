"""What Ollama says: the records of its wire protocol, and its faults as a tree of typed errors.

    OllamaError            it answered with an error, garbage or a partial answer
    ├── OllamaUnavailable  nobody listens there
    ├── OllamaBusy         it stayed busy over a few retries
    ├── OllamaTimeout      the deadline passed
    ├── ModelNotFound      it lacks the model
    └── PromptTooLong      the prompt does not fit the context window

Its side is ``api/types.go``, ``server/routes.go`` and ``llm/llama_server.go``.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

LINE_LIMIT = 32 << 20  # bytes: the longest line that is believed (a `context` of 262,144 tokens is 2 MB)


class OllamaError(Exception):
    """Ollama answered with an error, garbage or a partial answer."""

    retry_after: int | None = None


class OllamaUnavailable(OllamaError):
    """Nobody accepts connections at OLLAMA_URL."""

    retry_after = 5


class OllamaBusy(OllamaError):
    """Ollama answered 503 to every try."""

    retry_after = 5


class OllamaTimeout(OllamaError):
    """The deadline passed; the call was closed."""


class ModelNotFound(OllamaError):
    """Ollama has no such model."""

    retry_after = 60


class PromptTooLong(OllamaError):
    """The prompt does not fit the model's context window."""


@dataclass(frozen=True, slots=True)
class Completion:
    """How a generation ended; counts are None when Ollama gave none."""

    finish_reason: str | None
    input_tokens: int | None
    output_tokens: int | None
    tokens_per_second: float | None


class LineReader:
    """Cuts any stream of bytes, however it is split, into lines of NDJSON."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Give the records that ``data`` completes. Raises OllamaError on what is no JSON object."""
        searched = len(self._rest)
        self._rest += data
        start = 0
        while (end := self._rest.find(b"\n", max(start, searched))) >= 0:
            if line := self._rest[start:end].strip():
                yield parse_record(line)
            start = end + 1
        del self._rest[:start]
        if len(self._rest) > LINE_LIMIT:
            raise OllamaError("Ollama sent a line longer than any answer.")

    def end(self) -> Iterator[dict[str, Any]]:
        """Give the record that had no line break after it, if any."""
        if line := self._rest.strip():
            self._rest.clear()
            yield parse_record(line)


def parse_record(line: bytearray) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise OllamaError("Ollama sent something that is not its protocol; check OLLAMA_URL and its log.")
    return record


def completion_of(record: dict[str, Any]) -> Completion:
    reason = record.get("done_reason")
    tokens, nanoseconds = _count(record, "eval_count"), _count(record, "eval_duration")
    return Completion(
        finish_reason=reason if reason in ("stop", "length") else None,
        input_tokens=_count(record, "prompt_eval_count"), output_tokens=tokens,
        tokens_per_second=round(tokens / nanoseconds * 1e9, 2) if tokens and nanoseconds else None)


def _count(record: dict[str, Any], name: str) -> int | None:
    """A count that Ollama gave; it leaves out zeros, and older ones left out more."""
    value = record.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2 ** 53 else None


def stops_of(parameters: Any) -> list[str]:
    """The stops in the ``parameters`` text of /api/show: one ``key value`` a line, text values quoted."""
    stops = []
    for line in parameters.splitlines() if isinstance(parameters, str) else ():
        key, _, value = line.strip().partition(" ")
        if key == "stop" and (value := value.strip()):
            try:
                value = orjson.loads(value)
            except ValueError:
                pass  # a bare word stands for itself
            stops.append(str(value))
    return stops


def error_text(body: bytes) -> str | None:
    """The text of Ollama's error body, None when that is not one."""
    try:
        text = orjson.loads(body).get("error")
    except (ValueError, AttributeError):
        return None
    return text if isinstance(text, str) else None


def too_long(text: str) -> str | None:
    """Whether an error says that the prompt is too long: its size as a phrase (maybe empty), else None.

    The engine's error is JSON inside the string (llama.cpp ``exceed_context_size_error``); older ones are a sentence.
    """
    try:
        inner = orjson.loads(text)["error"]
        if inner.get("type") != "exceed_context_size_error":
            return None
        asked, room = inner.get("n_prompt_tokens"), inner.get("n_ctx")
        return f" ({asked} tokens, room for {room})" if isinstance(asked, int) and isinstance(room, int) else ""
    except (ValueError, TypeError, KeyError, AttributeError):
        return "" if "exceed_context_size" in text or "longer than the context length" in text else None
