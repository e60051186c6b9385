"""Answers in the form of OpenAI's API, whole and streamed."""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import orjson

from ..answer import Answer, Completion, Piece
from ..core import Reply
from ..faults import Fault, fault_of
from ..strict_json import Json
from ..waiting import Wait
from .event_stream import CONTENT_TYPE, comment, event
from .responder import JSON_TYPE
from .openai_errors import error_object, refusal
from .openai_requests import OpenAIRequest

DONE = b"data: [DONE]\n\n"


class Identity(NamedTuple):
    """The members that every chunk of an answer repeats: its id, its time, and the model's build.

    ``digest`` returns the current build; a stream asks for it once.
    """

    id: str
    created: int  # seconds since the epoch
    digest: Callable[[], str | None]

    @classmethod
    def new(cls, prefix: str, digest: Callable[[], str | None]) -> "Identity":
        """A new identity: no two responses share an id, not even two hits of one answer."""
        return cls(prefix + secrets.token_hex(12), int(time.time()), digest)


class OpenAIGrammar:
    """The common part of the answers of the two endpoints."""

    content_type, whole_type = CONTENT_TYPE, JSON_TYPE
    whole_object = chunk_object = "text_completion"

    def __init__(self, asked: OpenAIRequest, identity: Identity):
        self.asked, self._identity = asked, identity
        self._head = b""  # of every chunk; made with the first
        self._begun = False

    def choice(self, answer: Answer) -> Json:
        """The one choice of a plain answer, without its index and reason."""
        raise NotImplementedError

    def chunks(self, piece: Piece) -> Iterable[Json]:
        """The choices of the chunks that carry ``piece``, without index and reason."""
        raise NotImplementedError

    def finish(self) -> Json:
        """The choice of the last chunk, which has only the reason."""
        raise NotImplementedError

    def beginning(self, piece: Piece) -> Iterable[Json]:
        """The choices of the chunks before those of the first ``piece``."""
        return ()

    def whole(self, answer: Answer, reply: Reply, metrics: Json) -> bytes:
        return orjson.dumps({
            **self._members(self.whole_object, answer.digest),
            "choices": [{"index": 0, **self.choice(answer), "finish_reason": _reason(answer)}],
            "usage": _usage(answer.completion)})

    def pieces(self, pieces: list[Piece], reply: Reply) -> bytes:
        if not self._head:
            self._open(self._identity.digest() if reply.entry is None else reply.entry.answer.digest)
        return b"".join([self._chunk(choice) for piece in pieces for choice in self._choices(piece)])

    def waiting(self, wait: Wait) -> bytes:
        return comment(wait)

    def end(self, answer: Answer, reply: Reply, metrics: Json) -> bytes:
        if not self._head:
            self._open(answer.digest)
        parts = [self._chunk(choice) for choice in (() if self._begun else self.beginning(Piece()))]
        parts.append(self._chunk(self.finish(), _reason(answer)))
        usage = _usage(answer.completion) if self.asked.usage else None
        if usage is not None:
            parts.append(b"data: " + self._head + b',"choices":[],"usage":' + orjson.dumps(usage) + b"}\n\n")
        return b"".join([*parts, DONE])

    def failed(self, fault: Fault, error: Exception) -> bytes:
        if (blamed := refusal(error, self.asked.call, self.asked.needs)) is not None:
            fault, error = fault_of(blamed), blamed
        return event(error_object(fault, error))

    def _choices(self, piece: Piece) -> Iterable[Json]:
        if not any(piece):
            return
        if not self._begun:
            self._begun = True
            yield from self.beginning(piece)
        yield from self.chunks(piece)

    def _open(self, digest: str | None) -> None:
        members = self._members(self.chunk_object, digest)
        self._head = orjson.dumps(members)[:-1]  # the brace is closed after the choices

    def _chunk(self, choice: Json, reason: str | None = None) -> bytes:
        usage = b',"usage":null' if self.asked.usage else b""
        body = orjson.dumps({"index": 0, **choice, "finish_reason": reason})
        return b'data: %b,"choices":[%b]%b}\n\n' % (self._head, body, usage)

    def _members(self, kind: str, digest: str | None) -> Json:
        return {"id": self._identity.id, "object": kind, "created": self._identity.created,
                "model": self.asked.call.model, "system_fingerprint": f"fp_{digest[:12]}" if digest else None}


class ChatGrammar(OpenAIGrammar):
    """The answer to POST /v1/chat/completions."""

    whole_object, chunk_object = "chat.completion", "chat.completion.chunk"

    def __init__(self, asked: OpenAIRequest, identity: Identity):
        super().__init__(asked, identity)
        self._calls = 0  # tool calls so far

    def choice(self, answer: Answer) -> Json:
        message: Json = {"role": "assistant", "content": answer.text or (None if answer.tool_calls else ""),
                         "refusal": None}
        if answer.thinking:
            message["reasoning"] = answer.thinking
        if answer.tool_calls:
            message["tool_calls"] = list(self._tool_calls(answer.tool_calls))
        return {"message": message, "logprobs": _chat_logprobs(answer.logprobs)}

    def beginning(self, piece: Piece) -> Iterable[Json]:
        content = None if piece.tool_calls and not piece.text else ""
        yield {"delta": {"role": "assistant", "content": content}, "logprobs": None}

    def chunks(self, piece: Piece) -> Iterable[Json]:
        if piece.thinking:
            yield {"delta": {"reasoning": piece.thinking}, "logprobs": None}
        if piece.text or piece.logprobs:
            yield {"delta": {"content": piece.text}, "logprobs": _chat_logprobs(piece.logprobs)}
        first = self._calls
        for index, call in enumerate(self._tool_calls(piece.tool_calls), first):
            yield {"delta": {"tool_calls": [{"index": index, **call}]}, "logprobs": None}

    def finish(self) -> Json:
        return {"delta": {}, "logprobs": None}

    def _tool_calls(self, calls: Iterable[Json]) -> Iterable[Json]:
        """The calls in OpenAI's form. An id that Ollama did not give is made from the request and the index."""
        for call in calls:
            index, self._calls = self._calls, self._calls + 1
            if index and self.asked.one_call:
                continue
            made = hashlib.sha256(f"{self.asked.call.key}:{index}".encode()).hexdigest()[:8]
            function = call["function"]
            yield {"id": call.get("id") or f"call_{made}", "type": "function", "function": {
                "name": function["name"], "arguments": orjson.dumps(function["arguments"]).decode()}}


class CompletionGrammar(OpenAIGrammar):
    """The answer to POST /v1/completions."""

    def __init__(self, asked: OpenAIRequest, identity: Identity):
        super().__init__(asked, identity)
        self._offset = 0  # of the next token in the text, in characters

    def choice(self, answer: Answer) -> Json:
        return {"text": answer.text, "logprobs": self._logprobs(answer.logprobs)}

    def chunks(self, piece: Piece) -> Iterable[Json]:
        if piece.text or piece.logprobs:
            yield {"text": piece.text, "logprobs": self._logprobs(piece.logprobs)}

    def finish(self) -> Json:
        return {"text": "", "logprobs": None}

    def _logprobs(self, tokens: Iterable[Json]) -> Json | None:
        """The old format: parallel lists."""
        texts, offsets, alternatives = [], [], []
        for token in tokens:
            texts.append(token["token"])
            offsets.append(self._offset)
            alternatives.append({other["token"]: other["logprob"] for other in token.get("top_logprobs") or ()})
            self._offset += len(token["token"])
        if not texts:
            return None
        return {"tokens": texts, "token_logprobs": [token["logprob"] for token in tokens],
                "top_logprobs": alternatives if any(alternatives) else None, "text_offset": offsets}


def _reason(answer: Answer) -> str:
    """Why it ended, never null: clients wait for one."""
    reason = answer.completion.finish_reason or "stop"
    return "tool_calls" if answer.tool_calls and reason == "stop" else reason


def _usage(completion: Completion) -> Json | None:
    """All three counts or none: clients read them unguarded."""
    asked, answered = completion.input_tokens, completion.output_tokens
    if asked is None or answered is None:
        return None
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _chat_logprobs(tokens: Iterable[Json]) -> Json | None:
    content = [{**_token(token), "top_logprobs": [*map(_token, token.get("top_logprobs") or ())]} for token in tokens]
    return {"content": content, "refusal": None} if content else None


def _token(token: Json) -> Json:
    return {"token": token["token"], "logprob": token["logprob"], "bytes": token.get("bytes") or None}
