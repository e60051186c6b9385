"""The records of Ollama's wire protocol, read.

Its side is ``api/types.go``, ``server/routes.go`` and ``llm/llama_server.go``.
"""

from collections.abc import Iterator
from typing import Any

import orjson

from ..answer import Completion
from ..errors import OllamaGarbled, PromptTooLong

# What Ollama says of a prompt beyond the window: since 0.30; with shift off; 0.12.6 to 0.29; /api/embed before 0.12.
TOO_LONG = ("exceed_context_size", "longer than the context length", "input length exceeds the context length",
            "input length exceeds maximum context length")
LINE_LIMIT = 32 << 20  # bytes: the longest line that is believed (a `context` of 262,144 tokens is 2 MB)


class LineReader:
    """Cuts any stream of bytes, however it is split, into lines of NDJSON."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Give the records that ``data`` completes. Raises OllamaGarbled on what is not a JSON object."""
        searched = len(self._rest)
        self._rest += data
        start = 0
        while (end := self._rest.find(b"\n", max(start, searched))) >= 0:
            if line := self._rest[start:end].strip():
                yield parse_record(line)
            start = end + 1
        del self._rest[:start]
        if len(self._rest) > LINE_LIMIT:
            raise OllamaGarbled("a line longer than any answer")

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
        raise OllamaGarbled("something that is not its protocol")
    return record


def completion_of(record: dict[str, Any]) -> Completion:
    """How the generation ended, from the last record of its answer."""
    reason, context = record.get("done_reason"), record.get("context")
    return Completion(
        finish_reason=reason if reason in ("stop", "length") else None,
        input_tokens=_count(record, "prompt_eval_count"), output_tokens=_count(record, "eval_count"),
        cached_input_tokens=_count(record, "prompt_eval_cached_count"),
        total_duration=_count(record, "total_duration"), load_duration=_count(record, "load_duration"),
        prompt_eval_duration=_count(record, "prompt_eval_duration"), eval_duration=_count(record, "eval_duration"),
        context=tuple(context) if isinstance(context, list) and all(type(token) is int for token in context) else None)


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


def too_long(text: str) -> PromptTooLong | None:
    """The error that says so when Ollama's ``text`` means that the prompt does not fit the window, else None.

    Since 0.30 it is JSON inside the string (llama.cpp ``exceed_context_size_error``); older ones are sentences.
    """
    try:
        inner = orjson.loads(text)["error"]
        if inner.get("type") != "exceed_context_size_error":
            return None
        asked, room = inner.get("n_prompt_tokens"), inner.get("n_ctx")
        return PromptTooLong(asked, room) if isinstance(asked, int) and isinstance(room, int) else PromptTooLong()
    except (ValueError, TypeError, KeyError, AttributeError):
        return PromptTooLong() if any(phrase in text for phrase in TOO_LONG) else None
