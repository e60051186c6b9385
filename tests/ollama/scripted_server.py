"""Helpers of the client's tests: records as Ollama writes them, and a client."""

import orjson

from llama_api.ollama import OllamaClient
from llama_api.settings import Settings
from llama_api.waiting import Cancellation, Watchdog
from tests.support.fakes import call

BASE = "http://ollama:11434"
DONE = {"model": "llama3:8b", "response": "", "done": True, "done_reason": "stop", "prompt_eval_count": 17,
        "eval_count": 50, "eval_duration": 500_000_000}
TOO_LONG = orjson.dumps({"error": {"code": 400, "message": "request (9000 tokens) exceeds", "n_ctx": 8192,
                                   "type": "exceed_context_size_error", "n_prompt_tokens": 9000}}).decode()


def lines(*records):
    """NDJSON as Ollama sends it."""
    return b"".join(orjson.dumps(record) + b"\n" for record in records)


def record(text):
    """A record of /api/generate in the midst of a stream."""
    return {"model": "llama3:8b", "response": text, "done": False}


def error(text):
    """The body of an error."""
    return orjson.dumps({"error": text})


def client_of(url=BASE, slots=None, **settings):
    """A fresh client."""
    return OllamaClient(url, Settings(**settings), Watchdog(), slots)


def ask(client, asked=None, digest="build-1", seconds=30.0, cancellation=None):
    """Have ``client`` generate; returns the pieces and the completion."""
    pieces = []
    completion = client.generate(asked or call(), digest, seconds, cancellation or Cancellation(), pieces.extend)
    return pieces, completion


def text_from(client, prompt, **options):
    """The text of an answer."""
    return "".join(piece.text for piece in ask(client, call(prompt, options=options))[0])
