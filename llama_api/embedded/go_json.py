"""JSON and times as Go's standard library reads and prints them."""
from __future__ import annotations

import json
import time
from typing import Any

from .errors import Refused

JSON_TYPES = {str: "string", bool: "bool", dict: "object", list: "array", int: "number", float: "number"}
ESCAPES: dict[int, str] = {
    **{ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"},
    **dict.fromkeys(range(0xD800, 0xE000), "\ufffd")}  # half of a surrogate pair is not a character
TOO_DEEP = "exceeded max depth"


def encode(value: Any) -> bytes:
    """Encode as Go's encoder does: compact, raw UTF-8, with <, > and & escaped."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).translate(ESCAPES).encode()
    except RecursionError as error:
        raise Refused(400, TOO_DEEP) from error


def decode(raw: bytes) -> Any:
    """Read the first value and ignore what follows it; Refused with Go's message if it is not JSON."""
    text = raw.decode(errors="replace").lstrip(" \t\r\n")
    if not text:
        raise Refused(400, "missing request body")
    try:
        return json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text)[0]
    except json.JSONDecodeError as error:
        if error.pos >= len(text) or "Unterminated" in error.msg:
            raise Refused(400, "unexpected EOF") from error
        raise Refused(400, f"invalid character '{text[error.pos]}' looking for beginning of value") from error
    except RecursionError as error:
        raise Refused(400, TOO_DEEP) from error
    except ValueError as error:  # an integer of thousands of digits
        raise Refused(400, "json: cannot unmarshal number into Go value of type float64") from error


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's decoder would accept."""
    raise Refused(400, f"invalid character '{name[0]}' looking for beginning of value")


def rfc3339(nanoseconds: int) -> str:
    """Format a time as Go does: UTC, without trailing zeros in the fraction."""
    whole, fraction = divmod(nanoseconds, 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{fraction:09d}".rstrip("0").rstrip(".") + "Z"
