"""Ollama's API: its clients, its command line and tools built on them work by changing the host."""

from functools import partial

import orjson
from flask import Blueprint, Response, abort, current_app

from ..core import Models
from ..faults import Fault
from ..http import problems
from ..strict_json import Json
from ..upstreams import Fleet
from .ollama_grammar import (WHOLE, OllamaGrammar, OllamaRequest, OllamaRequests, embedded, embedded_one, error_body,
                             status_and_text, tags_of)
from .responder import Responder

PREFIX = "/api/"
VERSION = "0.0.0"  # while no Ollama reports its own
REFUSED = ("pull", "push", "create", "copy", "delete", "me", "signin", "signout", "blobs", "user")
REFUSED_METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def blueprint(responder: Responder, requests: OllamaRequests, models: Models, fleet: Fleet) -> Blueprint:
    """The door /api."""
    bp = Blueprint("ollama", __name__, url_prefix="/api")
    _add_calls(bp, responder, requests)
    _add_facts(bp, responder, requests, models, fleet)
    _add_refusals(bp)
    return bp


def _add_calls(bp: Blueprint, responder: Responder, requests: OllamaRequests) -> None:
    """The endpoints that use a model."""
    @bp.post("/generate")
    def ollama_generate() -> Response:
        """Answer a prompt as Ollama does, or only load the model."""
        return _answered(responder, requests.generate(responder.body(any_type=True), responder.parse))

    @bp.post("/chat")
    def ollama_chat() -> Response:
        """Answer a conversation as Ollama does, or only load the model."""
        return _answered(responder, requests.chat(responder.body(any_type=True), responder.parse))

    @bp.post("/embed")
    def ollama_embed() -> Response:
        """Embed texts, each of which is cached separately."""
        name, calls = requests.embed(responder.body(any_type=True))
        if not calls:
            return _json({"model": name, "embeddings": []})
        return responder.embed(calls, partial(embedded, name), WHOLE)

    @bp.post("/embeddings")
    def ollama_embeddings() -> Response:
        """Embed one text in Ollama's old format."""
        call = requests.embeddings(responder.body(any_type=True))
        return responder.embed([call], embedded_one, WHOLE) if call is not None else _json({"embedding": []})


def _add_facts(bp: Blueprint, responder: Responder, requests: OllamaRequests, models: Models, fleet: Fleet) -> None:
    """The endpoints that describe models and Ollama."""
    @bp.post("/show")
    def ollama_show() -> Response:
        """Describe a served model."""
        model, fields = requests.show(responder.body(any_type=True))
        return _json(fleet.show(model, **fields))

    @bp.get("/tags")
    def ollama_tags() -> Response:
        """List the served models that Ollama has, and their aliases."""
        return _json(tags_of(models.inventory(), models.aliases))

    @bp.get("/ps")
    def ollama_ps() -> Response:
        """List the served models that are loaded."""
        return _json({"models": models.loaded()})

    @bp.get("/version")
    def ollama_version() -> Response:
        """Report the version of Ollama."""
        return _json({"version": fleet.state().ollama["version"] or VERSION})

    @bp.get("/status")
    def ollama_status() -> Response:
        """Report that no cloud is used."""
        return _json({"cloud": {"disabled": True, "source": "config"}})


def _add_refusals(bp: Blueprint) -> None:
    """Add routes that refuse calls which would change Ollama or its account."""
    actions = f"/<any({', '.join(REFUSED)}):action>"

    @bp.route(actions, methods=REFUSED_METHODS)
    @bp.route(f"{actions}/<path:target>", methods=REFUSED_METHODS)
    def ollama_refuse(action: str, target: str = "") -> Response:
        """Refuse a call that would change Ollama or its account."""
        abort(403, f"{action} would change the Ollama server; ask its operator")


def write(fault: Fault, error: Exception) -> Response:
    """The response to a failure of a URL below /api."""
    status, text = status_and_text(fault, error)
    return Response(error_body(text), status, content_type=WHOLE)


WRITERS: dict[str, problems.Writer] = {PREFIX: write}


def _answered(responder: Responder, asked: OllamaRequest) -> Response:
    grammar = OllamaGrammar(asked)
    if asked.call is not None:
        return responder.respond(asked.call, grammar, asked.streamed)
    responder.load(asked.model)
    return _body(grammar.loaded())


def _json(value: Json) -> Response:
    return _body(orjson.dumps(value))


def _body(body: bytes) -> Response:
    return current_app.response_class(body, content_type=WHOLE)
