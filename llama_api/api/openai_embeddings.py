"""Embeddings in OpenAI's format: the bodies of requests and of answers."""

from base64 import b64encode
from dataclasses import dataclass
from typing import Any

import orjson

from ..answer import Answer
from ..core import MOST_TEXTS, EmbeddingReply, Models
from ..errors import ModelNotServed
from ..model_call import EMBED, ModelCall
from ..ollama import numbers_of
from ..strict_json import parse_object
from .openai_errors import FieldError
from .openai_fields import RequestObject

LARGEST = 2 ** 31 - 1
_TOKENS = ("must be text: lists of tokens are not supported (LangChain sends them unless check_embedding_ctx_length is"
           " False)")


@dataclass(frozen=True, slots=True)
class AskedVectors:
    """A request for the vectors of ``texts``, cut to ``dimensions`` where that is less than they have."""

    model: str
    texts: tuple[str, ...]
    dimensions: int | None = None
    base64: bool = False  # the encoding of the answer, no part of the call
    num_ctx: int | None = None

    def calls(self) -> list[ModelCall]:
        """A call for each text; one that does not fit the window is refused rather than truncated."""
        return [ModelCall.of(EMBED, self.model, {"num_ctx": self.num_ctx}, input=text, truncate=False,
                             dimensions=self.dimensions) for text in self.texts]

    def body(self, answer: Answer, reply: EmbeddingReply) -> bytes:
        """The body of the answer. Its usage has the known tokens, as clients require numbers."""
        tokens = reply.known_tokens
        return orjson.dumps({"object": "list", "data": [
            {"object": "embedding", "index": index, "embedding": self._written(vector)}
            for index, vector in enumerate(reply.vectors)], "model": self.model,
            "usage": {"prompt_tokens": tokens, "total_tokens": tokens}})

    def _written(self, vector: bytes) -> str | list[float]:
        return b64encode(vector).decode() if self.base64 else numbers_of(vector)


def read_embeddings(body: bytes, models: Models, num_ctx: int | None = None) -> AskedVectors:
    """Read a body of /v1/embeddings; unknown fields are ignored. ``num_ctx`` is NUM_CTX.

    Raises MalformedJSON, FieldError or ModelNotServed.
    """
    request = RequestObject(parse_object(body))
    name = request.required_text("model")
    if (model := models.resolve(name)) is None:
        raise ModelNotServed(name, models.served)
    asked = AskedVectors(model, _texts(request), request.integer("dimensions", 1, LARGEST), _base64(request), num_ctx)
    if not models.can(model, "embedding"):
        raise request.wrong("model", "unsupported_value", f"cannot be {model}, which does not support embedding")
    return asked


def _texts(request: RequestObject) -> tuple[str, ...]:
    value = request.require("input")
    if isinstance(value, str):
        return (request.name("input"),)
    if not isinstance(value, list):
        raise request.wrong("input", "invalid_type", "must be a text or a list of texts")
    if not 1 <= len(value) <= MOST_TEXTS:
        raise request.wrong("input", "invalid_value", f"must have from 1 to {MOST_TEXTS} texts")
    for index, item in enumerate(value):
        _check(item, f"input[{index}]")
    return tuple(value)


def _check(item: Any, path: str) -> None:
    if isinstance(item, (int, float, list)):
        raise FieldError(path, "invalid_type", _TOKENS)
    RequestObject({path: item}).name(path)


def _base64(request: RequestObject) -> bool:
    encoding = request.text("encoding_format")
    if encoding is not None and encoding.lower() not in ("float", "base64"):
        raise request.wrong("encoding_format", "invalid_value", "must be float or base64")
    return encoding is not None and encoding.lower() == "base64"
