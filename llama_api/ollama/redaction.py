"""Redaction of Ollama's error texts for the log: they may repeat a prompt, which must not be logged."""

import os.path
import re
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

import orjson

from ..model_call import ModelCall

MASK = "[prompt]"
LOGGED = 500  # characters of an error's text
RUN = 20  # consecutive characters of a prompt, which no error contains by chance
BLOCK = RUN // 2
WORD = 4  # characters; a shorter text is matched as a word, as every error contains single letters


def redacted(text: str, call: ModelCall | None) -> str:
    """The beginning of ``text`` with MASK for each text of ``call``, and for RUN or more consecutive characters of one.

    Long texts are also found with JSON escapes, as some errors are JSON.
    """
    if call is None:
        return text[:LOGGED]
    text = text[:LOGGED + RUN - 1]  # includes every run that begins in the logged part
    body = {name: value for name, value in call.body.items() if name != "model"}
    written = "\n".join([*_strings(body), orjson.dumps(body).decode()])
    hidden = {at for found in (_repeated(text, written), _short(text, call.texts)) for span in found for at in span}
    return "".join(MASK if masked else "".join(text[at] for at in run)
                   for masked, run in groupby(range(min(len(text), LOGGED)), hidden.__contains__))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for member in value.values() if isinstance(value, Mapping) else value:
            yield from _strings(member)


def _repeated(text: str, written: str) -> Iterator[range]:
    """The spans of ``text`` that are RUN or more consecutive characters of ``written``."""
    # Every run contains one of these blocks; searching megabytes for each window would take a second.
    blocks = {written[at:at + BLOCK] for at in range(0, len(written), BLOCK)}
    at = 0
    while at + RUN <= len(text):
        length = 0
        if any(text[start:start + BLOCK] in blocks for start in range(at, at + BLOCK + 1)):
            place = written.find(text[at:at + RUN])
            if place >= 0:
                length = len(os.path.commonprefix([text[at:], written[place:place + len(text)]]))
                yield range(at, at + length)
        at += max(1, length - RUN + 1)


def _short(text: str, written: list[str]) -> Iterator[range]:
    """The spans of ``text`` that are one of ``written`` shorter than a run."""
    for one in {given.strip() for given in written}:
        if 0 < len(one) < RUN and one in text:  # of a hundred thousand texts that are embedded, very few
            escaped = re.escape(one)
            pattern = escaped if len(one) >= WORD else rf"(?<!\w){escaped}(?!\w)"
            yield from (range(*match.span()) for match in re.finditer(pattern, text))
