"""JSON by RFC 8259 to the letter: UTF-8, no duplicate keys, no NaN."""

import json
from typing import Any

from .errors import MalformedJSON


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
