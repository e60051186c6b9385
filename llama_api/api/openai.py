"""OpenAI's API at /v1: chats, completions, embeddings and models (https://platform.openai.com/docs/api-reference)."""

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

import orjson
from flask import Blueprint, Response, current_app, request

from ..core import Models
from ..errors import OllamaRefused
from ..faults import Fault
from ..http import problem_of, problems
from ..strict_json import Json
from .responder import Responder
from .openai_answers import ChatGrammar, CompletionGrammar, Identity, OpenAIGrammar
from .openai_embeddings import AskedVectors
from .openai_errors import error_object, headers_of, refusal, status_of
from .openai_requests import OpenAIRequests

PREFIX = "/v1/"
LOST = ("/chat/completions/", "/completions/", "/embeddings/", "/models/", "/responses/")  # URLs that lack /v1


def blueprint(responder: Responder, requests: OpenAIRequests, models: Models) -> Blueprint:
    """The door /v1."""
    bp = Blueprint("openai", __name__)
    started = int(time.time())

    @bp.post("/v1/chat/completions")
    def chat_completions() -> Response:
        """Answer a chat."""
        asked = requests.chat(responder.body(), responder.parse)
        return _respond(responder, ChatGrammar(asked, Identity.new(
            "chatcmpl-", lambda: models.digest(asked.call.model))))

    @bp.post("/v1/completions")
    def completions() -> Response:
        """Answer a prompt."""
        asked = requests.completion(responder.body(), responder.parse)
        return _respond(responder, CompletionGrammar(asked, Identity.new(
            "cmpl-", lambda: models.digest(asked.call.model))))

    @bp.post("/v1/embeddings")
    def embeddings() -> Response:
        """Embed texts, each of which is cached separately."""
        return _embed(responder, requests.embeddings(responder.body()))

    @bp.get("/v1/models")
    def list_models() -> Response:
        """List the served models."""
        return _json({"object": "list", "data": [_model(name, entry, started) for name, entry in models.listing()]})

    @bp.get("/v1/models/<path:model>")
    def retrieve_model(model: str) -> Response:
        """Describe one model."""
        return _json(_model(*models.listed(model), started))

    return bp


def write(fault: Fault, error: Exception) -> Response:
    """The response to a failure of a URL below /v1."""
    if fault.slug == "not-found" and request.path.startswith(PREFIX + "responses"):
        fault = replace(fault, detail="The Responses API is not served here; use POST /v1/chat/completions instead.")
    return Response(orjson.dumps(error_object(fault, error)), status_of(fault), headers_of(fault, error),
                    mimetype="application/json")


def write_lost(fault: Fault, error: Exception) -> Response:
    """The problem for a URL that lacks /v1; it includes OpenAI's error, as its client reads nothing else."""
    if fault.slug == "not-found":
        fault = replace(fault, detail=f"Set the client's base URL to {request.root_url}v1: this path is served at"
                                      f" /v1{request.path}.")
    return Response(orjson.dumps({**problem_of(fault), **error_object(fault, error)}), fault.status,
                    mimetype="application/problem+json")


WRITERS: Mapping[str, problems.Writer] = {PREFIX: write, **dict.fromkeys(LOST, write_lost)}


def _respond(responder: Responder, grammar: OpenAIGrammar) -> Response:
    asked = grammar.asked
    try:
        return responder.respond(asked.call, grammar, asked.streamed)
    except OllamaRefused as error:
        raise refusal(error, asked.call, asked.needs) or error from error


def _embed(responder: Responder, asked: AskedVectors) -> Response:
    calls = asked.calls()
    try:
        return responder.embed(calls, asked.body)
    except OllamaRefused as error:
        raise refusal(error, calls[0], {}) or error from error


def _model(name: str, entry: Json, started: int) -> Json:
    """A model in OpenAI's format; ``entry`` is Ollama's, empty while unknown."""
    try:
        created = int(datetime.fromisoformat(str(entry.get("modified_at"))).timestamp())
    except ValueError:
        created = started
    owner = name.rpartition("/")[0].rpartition("/")[2] or "library"
    return {"id": name, "object": "model", "created": created, "owned_by": owner}


def _json(body: Json) -> Response:
    return current_app.response_class(orjson.dumps(body), mimetype="application/json")
