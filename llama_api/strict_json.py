"""JSON by RFC 8259 to the letter: UTF-8, no duplicate keys, no NaN; and the check that a value can be sent on."""

import json
import math
from typing import Any

from .errors import MalformedJSON

Json = dict[str, Any]

DEEPEST = 100  # levels of a value that is sent on; the writer of JSON can go no deeper than 253


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise MalformedJSON("a key appears twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise MalformedJSON(f"{name} is not JSON")


_decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def parse_object(body: bytes) -> dict[str, Any]:
    """Parse one JSON object (RFC 8259: UTF-8, no duplicate keys, no NaN). Raises MalformedJSON with the reason."""
    try:
        found = _decoder.decode(body.decode())
    except RecursionError:
        raise MalformedJSON("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise MalformedJSON(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except UnicodeDecodeError as error:
        raise MalformedJSON(f"byte {error.start} is not UTF-8") from None
    except MalformedJSON:
        raise
    except ValueError:
        raise MalformedJSON("a number is too long") from None
    if not isinstance(found, dict):
        raise MalformedJSON("it is not an object")
    return found


def unsendable(value: Any, path: str = "", depth: int = 0) -> tuple[str, str] | None:
    """The path of the first part of a parsed ``value`` that cannot be sent on, and its fault, or None."""
    if depth > DEEPEST:
        return path, f"is nested more than {DEEPEST} levels deep"
    if isinstance(value, str):
        return None if is_text(value) else (path, "has a lone surrogate, which is no character")
    if isinstance(value, float):
        return None if math.isfinite(value) else (path, "is too large a number")
    if isinstance(value, int):
        return None if -2 ** 63 <= value < 2 ** 64 else (path, "is too large a number")
    if isinstance(value, list):
        found = (unsendable(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value))
    elif isinstance(value, dict):
        if not all(map(is_text, value)):
            return path, "has a name with a lone surrogate, which is no character"
        found = (unsendable(item, f"{path}.{name}" if path else name, depth + 1) for name, item in value.items())
    else:
        return None
    return next((fault for fault in found if fault is not None), None)


def is_text(text: str) -> bool:
    """Whether ``text`` has no lone surrogates, so that it can be encoded."""
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False
