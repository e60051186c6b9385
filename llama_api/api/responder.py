"""The exchange of one request for its answer, common to all doors.

A door makes a ModelCall of the request and passes it to ``Responder.respond`` with a Grammar, which writes the answer.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from flask import Response, current_app, g, request, stream_with_context
from werkzeug.datastructures import RequestCacheControl
from werkzeug.http import parse_cache_control_header

from ..answer import Answer, Piece
from ..core import Directives, EmbeddingReply, Embeddings, Reply, Service
from ..errors import ClientGone
from ..faults import Fault, fault_of
from ..http import gone_check, note, read_json_body
from ..metrics import SAVING, Machine
from ..model_call import ModelCall
from ..settings import Settings
from ..strict_json import Json
from ..waiting import Wait, Watchdog
from .parsed_bodies import ParsedBodies

CACHE_NAME = "llama-api"
JSON_TYPE = "application/json"


class Grammar(Protocol):
    """Writes an answer in the format of one API; one object per answer, so it may keep state."""

    content_type: str  # of a streamed answer
    whole_type: str  # of a plain one

    def whole(self, answer: Answer, reply: Reply, metrics: Json) -> bytes:
        """The body of a plain answer; ``metrics`` are the ``metrics`` of POST /generate."""

    def pieces(self, pieces: list[Piece], reply: Reply) -> bytes:
        """Pieces that arrived together, as a part of a stream; empty if this API has no form for them."""

    def waiting(self, wait: Wait) -> bytes:
        """The part to send after HEARTBEAT seconds of silence."""

    def end(self, answer: Answer, reply: Reply, metrics: Json) -> bytes:
        """The end of a stream."""

    def failed(self, fault: Fault, error: Exception) -> bytes:
        """The end of a stream that broke off."""


class Responder:
    """Answers the requests of all doors: reads them, asks the service, and records the outcome."""

    def __init__(self, settings: Settings, service: Service, embeddings: Embeddings, machine: Machine,
                 watchdog: Watchdog):
        self._settings, self._service, self._embeddings = settings, service, embeddings
        self._machine, self._watchdog = machine, watchdog
        self._silence, self._parsed_bodies = settings.heartbeat or None, ParsedBodies()

    def body(self, any_type: bool = False) -> bytes:
        """The current request's body; with ``any_type`` regardless of its Content-Type.

        Raises BodyTooLarge, NotJSON, BodyTimeout or ClientGone.
        """
        return read_json_body(request, self._settings.max_body_bytes, self._watchdog, any_type)

    def parse(self, read: Callable[[bytes], Any], body: bytes) -> Any:
        """The result of ``read(body)``, remembered unless the current request says no-store."""
        if "HTTP_CACHE_CONTROL" in request.environ and self.directives.no_store:
            return read(body)
        return self._parsed_bodies.parse(read, body)

    def forget(self) -> None:
        """Forget every remembered body."""
        self._parsed_bodies.forget()

    @property
    def directives(self) -> Directives:
        """The directives of the current request's Cache-Control."""
        return directives_of(request.environ.get("HTTP_CACHE_CONTROL"))

    def respond(self, call: ModelCall, grammar: Grammar, streamed: bool) -> Response:
        """Answer the current request, which asks for ``call``. Raises the error of the call."""
        self._note(call)
        reply = self._service.ask(call, self.directives, gone_check(request.environ), g.trace)
        g.record["cache"] = reply.result
        return self._stream(reply, grammar) if streamed else self._plain(
            reply, lambda answer, metrics: grammar.whole(answer, reply, metrics), grammar.whole_type)

    def embed(self, calls: Sequence[ModelCall], write: Callable[[Answer, EmbeddingReply], bytes],
              content_type: str = JSON_TYPE) -> Response:
        """Answer the current request, which asks for the vectors of ``calls``, with the body made by ``write``.

        Raises the error of the calls.
        """
        self._note(calls[0].with_texts([call.text for call in calls]))
        reply = self._embeddings.ask(calls, self.directives, gone_check(request.environ), g.trace)
        g.record["cache"] = reply.result
        return self._plain(reply, lambda answer, metrics: write(answer, reply), content_type)

    def load(self, model: str) -> None:
        """Load ``model`` for the current request. Raises the error of the load."""
        g.record["model"] = model
        self._service.load(model, gone_check(request.environ))

    def _note(self, call: ModelCall) -> None:
        g.record.update(model=call.model, cache="miss", prompt_sha256=call.question_digest)
        if self._settings.log_prompts:
            g.record["prompt"] = call.question

    def _plain(self, reply: Reply, write: Callable[[Answer, Json], bytes], content_type: str) -> Response:
        try:
            answer = reply.answer()
        except BaseException:
            self._ended(reply, None)
            raise
        finally:
            reply.close()
        body = write(answer, self._ended(reply, answer))
        headers = cache_headers(reply, self._service, reply.stored)
        return current_app.response_class(body, headers=headers, content_type=content_type)

    def _stream(self, reply: Reply, grammar: Grammar) -> Response:
        asked_at = time.monotonic()
        try:
            reply.start(self._silence)
        except BaseException:
            self._ended(reply, None)
            reply.close()
            raise
        headers = cache_headers(reply, self._service, stored=False)
        headers += [("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")]
        parts = stream_with_context(self._parts(reply, grammar, asked_at, gone_check(request.environ)))
        response = current_app.response_class(parts, headers=headers, content_type=grammar.content_type)
        response.call_on_close(reply.close)
        return response

    def _parts(self, reply: Reply, grammar: Grammar, sent_at: float, gone: Callable[[], bool]) -> Iterator[bytes]:
        """The parts of a stream, whose silence began at ``sent_at``; ``gone`` says whether its client has left."""
        events = reply.events(self._silence)
        try:
            for event in events:
                part = grammar.waiting(event) if isinstance(event, Wait) else grammar.pieces(event, reply)
                if not part:  # thinking, for which this API has no form
                    if gone():
                        raise ClientGone
                    if self._silence and time.monotonic() - sent_at >= self._silence:
                        part = grammar.waiting(Wait())
                if part:
                    sent_at = time.monotonic()
                    yield part
            answer = reply.answer()
            end = grammar.end(answer, reply, self._ended(reply, answer))
        except GeneratorExit:  # a part could not be sent
            events.close()  # which updates the figures
            self._ended(reply, None)
            note(ClientGone())
            raise
        except Exception as error:
            self._ended(reply, None)
            yield grammar.failed(note(error), error)
            return
        yield end

    def _ended(self, reply: Reply, answer: Answer | None) -> Json:
        """Record the outcome of the request; returns its figures. ``answer`` is None on failure."""
        record, (cpu, memory) = g.record, self._machine.sample()
        times, completion = reply.timings, answer.completion if answer else None
        metrics: Json = {
            "inference_latency_ms": milliseconds(times.inference),
            "input_tokens": completion.input_tokens if completion else None,
            "output_tokens": completion.output_tokens if completion else None,
            "cpu_usage_percent": cpu, "memory_usage_percent": memory, "queue_ms": milliseconds(times.queue),
            "time_to_first_token_ms": None if reply.cached else milliseconds(times.first_token),
            "tokens_per_second": None if reply.cached or completion is None else completion.tokens_per_second}
        if completion and completion.cached_input_tokens is not None:
            metrics["cached_input_tokens"] = completion.cached_input_tokens
        record.update(metrics, cache=reply.result)
        # An answer without output is an embedding, whose time may be that of many texts.
        if reply.result in SAVING and completion is not None and completion.output_tokens and completion.seconds:
            record["saved_ms"] = milliseconds(completion.seconds)
        if reply.host is not None:
            record["host"] = reply.host
        if answer and self._settings.log_prompts:
            record["answer"] = answer.text
        return metrics


def directives_of(header: str | None) -> Directives:
    """The directives of a Cache-Control (RFC 9111 §5.2.1); unknown or malformed ones are ignored."""
    if not header:
        return Directives()
    found = parse_cache_control_header(header.lower(), cls=RequestCacheControl)  # directives are case-insensitive
    max_age = found.max_age
    return Directives(no_cache="no-cache" in found, no_store="no-store" in found,
                      only_if_cached="only-if-cached" in found, max_age=max_age if type(max_age) is int else None)


def cache_headers(reply: Reply, service: Service, stored: bool) -> list[tuple[str, str]]:
    """Cache-Status (RFC 9211) and Age (RFC 9111 §5.1): what the cache did."""
    status = f"{CACHE_NAME}; hit" if reply.forwarded is None else f"{CACHE_NAME}; fwd={reply.forwarded}"
    if reply.failure is not None:
        status += f"; detail={fault_of(reply.failure).slug}"
    elif reply.result == "collapsed":
        status += "; collapsed"
    elif reply.entry is not None and (ttl := service.ttl(reply.entry)) is not None:
        status += f"; ttl={ttl}"
    elif stored:
        status += "; stored"
    headers = [("Cache-Status", status)]
    if reply.entry is not None:
        headers.append(("Age", str(int(service.age(reply.entry)))))
    return headers


def milliseconds(seconds: float | None) -> float | None:
    """``seconds`` in milliseconds, to the microsecond."""
    return None if seconds is None else round(seconds * 1000, 3)
