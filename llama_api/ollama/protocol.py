"""The records of Ollama's wire protocol, read and written.

Ollama's side is ``api/types.go``, ``server/routes.go`` and ``llm/llama_server.go``.
"""

import struct
from array import array
from collections.abc import Iterator
from typing import Any

import orjson

from ..answer import Completion, Piece
from ..errors import OllamaGarbled, PromptTooLong
from ..model_call import CHAT

# Ollama's texts for a prompt beyond the window: since 0.30; with shift off; 0.12.6 to 0.29; /api/embed before 0.12.
TOO_LONG = ("exceed_context_size", "longer than the context length", "input length exceeds the context length",
            "input length exceeds maximum context length")
LINE_LIMIT = 32 << 20  # bytes: the longest line accepted (a `context` of 262,144 tokens is 2 MB)


class LineReader:
    """Splits a stream of bytes, however it is segmented, into lines of NDJSON."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> Iterator[dict[str, Any]]:
        """Return the records that ``data`` completes. Raises OllamaGarbled on anything but a JSON object."""
        *lines, rest = data.split(b"\n")
        if lines and self._rest:
            lines[0] = bytes(self._rest) + lines[0]
            self._rest.clear()
        self._rest += rest
        for line in lines:
            if line := line.strip():
                yield parse_record(line)
        if len(self._rest) > LINE_LIMIT:
            raise OllamaGarbled("a line longer than any answer")

    def end(self) -> Iterator[dict[str, Any]]:
        """Return the last record if it lacks a line break."""
        if line := self._rest.strip():
            self._rest.clear()
            yield parse_record(line)


def parse_record(line: bytes | bytearray) -> dict[str, Any]:
    try:
        record = orjson.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise OllamaGarbled("something that is not its protocol")
    return record


def piece_of(record: dict[str, Any]) -> Piece:
    """The piece in ``record`` of /api/generate or /api/chat. Raises OllamaGarbled."""
    message, name = record.get("message"), "content"
    if message is None:
        message, name = record, "response"
    elif not isinstance(message, dict):
        raise OllamaGarbled("a message that is not an object")
    text, thinking = message.get(name, ""), message.get("thinking") or ""
    if not isinstance(text, str) or not isinstance(thinking, str):
        raise OllamaGarbled("a piece of text that is not text")
    calls, logprobs = message.get("tool_calls"), record.get("logprobs")
    if not (calls or logprobs):
        return Piece(text, thinking)
    return Piece(text, thinking, _tool_calls(calls or []), _logprobs(logprobs or []))


def record_of(piece: Piece, endpoint: str) -> dict[str, Any]:
    """The members of a record of ``endpoint`` that carry ``piece``; Ollama omits empty members except the text."""
    body: dict[str, Any] = {"role": "assistant", "content": piece.text} if endpoint == CHAT else {
        "response": piece.text}
    if piece.thinking:
        body["thinking"] = piece.thinking
    if piece.tool_calls:
        body["tool_calls"] = list(piece.tool_calls)
    record: dict[str, Any] = {"message": body} if endpoint == CHAT else body
    if piece.logprobs:
        record["logprobs"] = list(piece.logprobs)
    return record


def _tool_calls(calls: Any) -> tuple[dict[str, Any], ...]:
    """Calls as in ``{"id": …, "function": {"name": …, "arguments": {…}}}``; older ones have no id."""
    good = isinstance(calls, list) and all(
        isinstance(call, dict) and isinstance(call.get("id", ""), str) and isinstance(call.get("function"), dict)
        and isinstance(call["function"].get("name"), str) and isinstance(call["function"].get("arguments"), dict)
        for call in calls)
    if not good:
        raise OllamaGarbled("a malformed tool call")
    return tuple(calls)


def _logprobs(tokens: Any) -> tuple[dict[str, Any], ...]:
    """Log-probabilities as in ``{"token": …, "logprob": …, "bytes": […], "top_logprobs": […]}``."""
    good = isinstance(tokens, list) and all(
        _is_token(token) and isinstance(others := token.get("top_logprobs") or [], list) and all(map(_is_token, others))
        for token in tokens)
    if not good:
        raise OllamaGarbled("log-probabilities that are none")
    return tuple(tokens)


def _is_token(token: Any) -> bool:
    return (isinstance(token, dict) and isinstance(token.get("token"), str)
            and isinstance(token.get("logprob"), (int, float)) and isinstance(token.get("bytes") or [], list))


def completion_of(record: dict[str, Any]) -> Completion:
    """The Completion in the last record of an answer."""
    reason = record.get("done_reason")
    return Completion(
        finish_reason=reason if reason in ("stop", "length") else None,
        input_tokens=_count(record, "prompt_eval_count"), output_tokens=_count(record, "eval_count"),
        cached_input_tokens=_count(record, "prompt_eval_cached_count"),
        total_duration=_count(record, "total_duration"), load_duration=_count(record, "load_duration"),
        prompt_eval_duration=_count(record, "prompt_eval_duration"), eval_duration=_count(record, "eval_duration"),
        context=_tokens(record.get("context")),
        debug_info=debug if isinstance(debug := record.get("_debug_info"), dict) else None)


def vectors_of(record: dict[str, Any], count: int) -> tuple[bytes, ...]:
    """The vectors of ``count`` texts as little-endian float32, of /api/embed or of /api/embeddings.

    Ollama's numbers are float32, printed so that they can be parsed exactly. Raises OllamaGarbled.
    """
    found = record["embeddings"] if "embeddings" in record else [record.get("embedding")]
    if not isinstance(found, list) or len(found) != count or not all(isinstance(vector, list) for vector in found):
        raise OllamaGarbled("another number of vectors than there are texts")
    try:
        return tuple(struct.pack(f"<{len(vector)}f", *vector) for vector in found)
    except (struct.error, OverflowError):
        raise OllamaGarbled("a malformed vector") from None


def numbers_of(vector: bytes) -> list[float]:
    """The numbers of a vector."""
    return list(struct.unpack(f"<{len(vector) // 4}f", vector))


def ending_of(completion: Completion) -> dict[str, Any]:
    """The members of the last record that ``completion_of`` reads; Ollama omits zeros."""
    ending = dict((
        ("done_reason", completion.finish_reason), ("context", list(completion.context or ())),
        ("total_duration", completion.total_duration), ("load_duration", completion.load_duration),
        ("prompt_eval_count", completion.input_tokens), ("prompt_eval_cached_count", completion.cached_input_tokens),
        ("prompt_eval_duration", completion.prompt_eval_duration), ("eval_count", completion.output_tokens),
        ("eval_duration", completion.eval_duration), ("_debug_info", completion.debug_info)))
    return {name: value for name, value in ending.items() if value}


def _tokens(context: Any) -> "array[int] | None":
    try:
        return array("i", context) if isinstance(context, list) else None
    except (TypeError, OverflowError):
        return None


def _count(record: dict[str, Any], name: str) -> int | None:
    """A count from Ollama, which omits zeros; older versions omitted more."""
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
                pass  # an unquoted word is the stop itself
            stops.append(str(value))
    return stops


def error_text(body: bytes) -> str | None:
    """The text of an error body of Ollama, or None."""
    try:
        text = orjson.loads(body).get("error")
    except (ValueError, AttributeError):
        return None
    return text if isinstance(text, str) else None


def too_long(text: str) -> PromptTooLong | None:
    """A PromptTooLong if Ollama's ``text`` means that the prompt does not fit the window, else None.

    Since 0.30 the text is JSON inside the string (llama.cpp ``exceed_context_size_error``); older ones are sentences.
    """
    try:
        inner = orjson.loads(text)["error"]
        if inner.get("type") != "exceed_context_size_error":
            return None
        asked, room = inner.get("n_prompt_tokens"), inner.get("n_ctx")
        known = isinstance(asked, int) and isinstance(room, int)
        return PromptTooLong(asked, room, text) if known else PromptTooLong(text=text)
    except (ValueError, TypeError, KeyError, AttributeError):
        return PromptTooLong(text=text) if any(phrase in text for phrase in TOO_LONG) else None
