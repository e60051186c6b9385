"""POST /generate: the service's own API, plain or as server-sent events (WHATWG HTML §9.2)."""

import orjson
from flask import Blueprint, Response

from ..answer import Answer, Piece
from ..core import Reply
from ..faults import Fault
from ..http import problem_of
from ..strict_json import Json
from ..waiting import Wait
from .event_stream import CONTENT_TYPE, comment, event
from .responder import JSON_TYPE, Responder
from .schemas import GenerateRequest


class GenerateGrammar:
    """The answer to POST /generate."""

    content_type, whole_type = CONTENT_TYPE, JSON_TYPE

    def whole(self, answer: Answer, reply: Reply, metrics: Json) -> bytes:
        return orjson.dumps({"response": answer.text, **_ending(answer, reply, metrics)})

    def pieces(self, pieces: list[Piece], reply: Reply) -> bytes:
        return b"".join([event({"response": piece.text, "done": False}) for piece in pieces if piece.text])

    def waiting(self, wait: Wait) -> bytes:
        return comment(wait)

    def end(self, answer: Answer, reply: Reply, metrics: Json) -> bytes:
        return event({"response": "", "done": True, **_ending(answer, reply, metrics)})

    def failed(self, fault: Fault, error: Exception) -> bytes:
        return b"event: error\n" + event(problem_of(fault))


def blueprint(responder: Responder, schema: GenerateRequest) -> Blueprint:
    """The door POST /generate."""
    bp = Blueprint("generate", __name__)

    @bp.post("/generate")
    def generate() -> Response:
        """Answer a prompt, from the cache or from the model."""
        call, streamed = responder.parse(schema.read, responder.body())
        return responder.respond(call, GenerateGrammar(), streamed)

    return bp


def _ending(answer: Answer, reply: Reply, metrics: Json) -> Json:
    return {"model": answer.model, "finish_reason": answer.completion.finish_reason, "cached": reply.cached,
            "metrics": metrics}
