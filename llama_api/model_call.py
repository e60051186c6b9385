"""A request exactly as it is sent to Ollama, and its key, a hash of just that."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import orjson

KEY_VERSION = 2  # of the key's format; raise it with every change, so that old entries are not misread
GENERATE, CHAT, EMBED, EMBEDDINGS = "/api/generate", "/api/chat", "/api/embed", "/api/embeddings"
# Ollama reads these as fractions, all others as integers (api/types.go, Options), so 1 and 1.0 are one value.
_FLOATS = frozenset({"temperature", "top_p", "min_p", "typical_p", "repeat_penalty", "presence_penalty",
                     "frequency_penalty", "tfs_z", "mirostat_tau", "mirostat_eta"})


@dataclass(frozen=True)
class ModelCall:
    """A request as it is sent to Ollama, made by ``of``.

    ``body`` omits fields that never change an answer (``stream``, ``keep_alive``). Its ``stop`` has only the caller's
    stops: OllamaClient adds the model's own, which a list in the request would replace.
    """

    endpoint: str
    body: Mapping[str, Any]
    key: str = field(compare=False)

    @classmethod
    def of(cls, endpoint: str, model: str, options: Mapping[str, Any] | None = None, **fields: Any) -> "ModelCall":
        """The call to ``endpoint`` of ``model``; fields and options that are None are absent.

        The order of fields and of options does not matter; the order inside a schema, a message or a list of tools
        does, as it is rendered into the prompt.
        """
        chosen = {name: _number(name, value) for name, value in sorted((options or {}).items()) if value is not None}
        given = {"model": model, **fields, **({"options": chosen} if chosen else {})}
        body = {name: given[name] for name in sorted(given) if given[name] is not None}
        return cls(endpoint, body, hashlib.sha256(orjson.dumps([KEY_VERSION, endpoint, body])).hexdigest())

    def with_texts(self, texts: Sequence[str]) -> "ModelCall":
        """The call that embeds these texts as this one embeds its own; the old endpoint takes only one."""
        own = {"input": list(texts)} if self.endpoint == EMBED else {"prompt": texts[0]}
        rest = {name: value for name, value in self.body.items() if name not in ("model", "options")}
        return ModelCall.of(self.endpoint, self.model, self.options, **(rest | own))

    @property
    def embeds(self) -> bool:
        """Whether it requests vectors."""
        return self.endpoint in (EMBED, EMBEDDINGS)

    @property
    def text(self) -> str:
        """The text that an embedding's call embeds."""
        return str(self.body["input" if self.endpoint == EMBED else "prompt"])

    @property
    def model(self) -> str:
        """The configured name of the model."""
        return str(self.body["model"])

    @property
    def options(self) -> dict[str, Any]:
        """Ollama's options, with their effective values."""
        return dict(self.body.get("options", {}))

    @property
    def texts(self) -> list[str]:
        """The caller's texts, in order, which must not appear in a log."""
        messages = self.body.get("messages") or []
        given = [self.body.get("system"), self.body.get("prompt"), self.body.get("suffix"), self.body.get("template"),
                 *(value for message in messages if isinstance(message, dict) for value in (
                     message.get("content"), message.get("thinking"))),
                 *(self.body["input"] if isinstance(self.body.get("input"), list) else [self.body.get("input")])]
        return [text for text in given if isinstance(text, str) and text]

    @property
    def opening(self) -> str:
        """The text that the model reads, nearly as rendered: equal beginnings of prompts are equal here too."""
        parts = [self.body.get("system") or "", self.body.get("prompt") or ""]
        if tools := self.body.get("tools"):
            parts.append(orjson.dumps(tools).decode())
        for message in self.body.get("messages") or ():
            content, calls = message.get("content"), message.get("tool_calls")
            parts += [str(message.get("role")), content if isinstance(content, str) else orjson.dumps(content).decode()]
            if calls:
                parts.append(orjson.dumps(calls).decode())
        return "".join(parts)

    @property
    def question(self) -> str:
        """The text that names this call in a log: the prompt, or the conversation or the input as JSON."""
        if isinstance(prompt := self.body.get("prompt"), str):
            return prompt
        return orjson.dumps(self.body.get("messages", self.body.get("input"))).decode()

    @cached_property
    def question_digest(self) -> str:
        """The first 12 digits of the question's SHA-256; one call may serve many equal requests."""
        return hashlib.sha256(self.question.encode()).hexdigest()[:12]


def _number(name: str, value: Any) -> Any:
    """``value`` in the canonical form of its number, so that equal requests have equal keys."""
    if type(value) is int and name in _FLOATS:
        return float(value)
    if type(value) is float:
        return int(value) if name not in _FLOATS and value.is_integer() else value + 0.0  # so that -0.0 is 0.0
    return value
