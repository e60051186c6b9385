"""Generation: the engine's answer to a text or a chat, piece by piece."""
from __future__ import annotations

import bisect
import contextlib
import dataclasses
import time
from collections.abc import Generator, Iterable
from typing import Any

from .engine import Engine
from .errors import Gone, Refused
from .model import Model

TOO_LONG = ("the prompt is longer than the context length currently available to the model; shorten the prompt,"
            " or use a model with a longer context length")


@dataclasses.dataclass
class Piece:
    """A piece of the answer with its log-probabilities; the last one has the figures of the answer and no text."""

    text: str = ""
    logprobs: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    end: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Prompt:
    """The tokens for the engine to continue, and the settings for that."""

    tokens: list[int]
    settings: dict[str, Any]
    top: int  # how many alternatives the logprobs list for each token
    with_context: bool
    keep_alive: float | None

    def fit(self, window: int, may_shift: bool, may_cut: bool) -> None:
        """Cut a prompt that exceeds the window to half of it, if that is allowed; the engine refuses it otherwise.

        Without shift it is Refused here, and the answer ends at the end of the window.
        """
        size = len(self.tokens)
        if not may_shift:
            if size >= window:
                raise Refused(400, TOO_LONG)
            self.settings["n_predict"] = min(self.settings["n_predict"], window - size)
        elif size >= window and may_cut:
            half = window // 2
            self.tokens = self.tokens[:min(self.settings["n_keep"], half - 1)] + self.tokens[-half:]


def render_chat(engine: Engine, messages: list[dict[str, Any]], may_cut: bool) -> str:
    """Return the text of a chat, without its oldest messages if it would not fit (chatPrompt in server/prompt.go).

    System messages and the last message are kept.
    """
    def render(dropped: int) -> str:
        return engine.render([turn for turn in messages[:dropped] if turn["role"] == "system"] + messages[dropped:])

    def fits(dropped: int) -> bool:
        return len(engine.tokenize(render(dropped))) < engine.window

    may_go = range(len(messages) - 1 if may_cut else 0)
    return render(0 if fits(0) else bisect.bisect_left(may_go, True, key=fits))


def pieces(model: Model, prompt: Prompt, arrived: int, gone: Gone) -> Generator[Piece, None, None]:
    """Wait for a slot and generate; times are in ns, and zeros are omitted (Completion in llm/)."""
    loaded = time.monotonic_ns() - arrived
    text, tokens = "", list[int]()
    with (model.use(prompt.keep_alive, gone) as slot,
          contextlib.closing(model.engine.complete(
              prompt.tokens, prompt.settings | {"id_slot": slot}, gone)) as chunks):
        for chunk in chunks:
            text += chunk["content"]
            tokens += chunk["tokens"]
            if chunk["content"]:
                yield Piece(chunk["content"], [
                    _logprob(entry, prompt.top) for entry in chunk.get("completion_probabilities", ())])
            if chunk["stop"]:
                if len(tokens) < chunk["tokens_predicted"]:  # the engine reports only the last token of a character
                    tokens = model.engine.tokenize(text)
                context = prompt.tokens + tokens if prompt.with_context else []
                yield Piece(end=_end(chunk, context, loaded, time.monotonic_ns() - arrived))
                return
    raise Refused(500, "an error was encountered while running the model: unexpected EOF")


def whole(given: Iterable[Piece]) -> Piece:
    """Join all pieces of an answer."""
    parts = list(given)
    return Piece("".join(part.text for part in parts), [entry for part in parts for entry in part.logprobs],
                 parts[-1].end)


def _end(chunk: dict[str, Any], context: list[int], loaded: int, total: int) -> dict[str, Any]:
    timings = chunk["timings"]
    figures = {
        "context": context, "total_duration": total, "load_duration": loaded,
        "prompt_eval_count": chunk["tokens_evaluated"], "prompt_eval_duration": int(timings["prompt_ms"] * 1e6),
        "eval_count": chunk["tokens_predicted"], "eval_duration": int(timings["predicted_ms"] * 1e6)}
    reason = "length" if chunk["stop_type"] == "limit" else "stop"
    return {"done_reason": reason} | {key: value for key, value in figures.items() if value}


def _logprob(entry: dict[str, Any], top: int) -> dict[str, Any]:
    """Return the log-probabilities of a token, from the logits before temperature, penalties and grammar."""
    told = {key: entry[key] for key in ("token", "logprob", "bytes")}
    if top:
        told["top_logprobs"] = [_logprob(other, 0) for other in entry["top_logprobs"][:top]]
    return told
