"""The fields of Ollama's requests, read as Go reads them (``api/types.go``, ``encoding/json``).

Names are case-insensitive and unknown ones are ignored; null counts as absent, as do values that Go treats as absent.
"""

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from ..core import MOST_TEXTS
from ..errors import InvalidRequest, MalformedJSON
from ..strict_json import DEEPEST, Json


@dataclass(frozen=True, slots=True)
class FieldType:
    """The type of a field: ``schema`` as JSON schema, ``read`` as code.

    ``read`` gets the field's path and value and returns the value to send on, or None. It raises InvalidRequest with
    Ollama's text.
    """

    schema: Json
    read: Callable[[str, Any], Any]


_GO: dict[type, str] = {str: "string", bool: "bool", dict: "object", list: "array", int: "number", float: "number",
                        type(None): "null"}
THINK = ("high", "medium", "low", "max")
_THINK = '"high", "medium", "low", "max", true, or false'
# A duration of Go (time.ParseDuration), or none
_DURATION = r"^([-+]?(0|(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h))+))?$"


def parse(body: bytes) -> Json:
    """The JSON object that ``body`` begins with; what follows it is ignored. Raises MalformedJSON."""
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise MalformedJSON("missing request body")
    try:
        value = _sound(_decoder.raw_decode(text)[0])
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise MalformedJSON("unexpected EOF") from None
        raise MalformedJSON(f"invalid character {text[error.pos]!r}: {error.msg}") from None
    except RecursionError:
        raise MalformedJSON("exceeded max depth") from None
    except ValueError as error:
        raise MalformedJSON(str(error)) from None
    if value is not None and not isinstance(value, dict):
        raise MalformedJSON(f"json: cannot unmarshal {_GO[type(value)]} into Go value of type object")
    return value or {}


def read(struct: str, kinds: Mapping[str, FieldType], given: Json, at: str = "") -> Json:
    """The fields of ``given`` that ``kinds`` know; ``struct`` and ``at`` name the place in an error."""
    by_name = {name.lower(): name for name in kinds}
    found: Json = {}
    for key, value in given.items():
        name = key if key in kinds else by_name.get(key.lower(), "")
        if name and value is not None:
            found[name] = kinds[name].read(f"{struct}.{at}{name}", value)
    return {name: found[name] for name in kinds if found.get(name) is not None}


def schema_of(kinds: Mapping[str, FieldType]) -> Json:
    """The JSON schema of an object with these fields."""
    return {"type": "object", "properties": {
        name: {"anyOf": [kind.schema, {"type": "null"}]} for name, kind in kinds.items()}}


def refuse(path: str, text: str) -> NoReturn:
    """Refuse the request for its field at ``path``, with Ollama's text."""
    raise InvalidRequest({path.partition(".")[2]: [text]})


def typed(go: str, name: str, *types: type) -> FieldType:
    """Values of these Python types, which Go calls ``go`` and JSON schema ``name``."""
    def reader(path: str, value: Any) -> Any:
        if type(value) not in types:
            kind = f"number {value}" if go == "int" and type(value) is float else _GO[type(value)]
            refuse(path, f"json: cannot unmarshal {kind} into Go struct field {path} of type {go}")
        return value

    return FieldType({"type": name}, reader)


def filled(kind: FieldType) -> FieldType:
    """A value that is absent when it is empty, zero or false."""
    return FieldType(kind.schema, lambda path, value: kind.read(path, value) or None)


def items(kind: FieldType) -> FieldType:
    """A list of such values; an empty one is absent."""
    a_list = typed("[]", "array", list)

    def reader(path: str, value: Any) -> Any:
        return [kind.read(f"{path}[{at}]", item) for at, item in enumerate(a_list.read(path, value))] or None

    return FieldType({"type": "array", "items": kind.schema}, reader)


TEXT, BOOLEAN = typed("string", "string", str), typed("bool", "boolean", bool)
OBJECT, WHOLE = typed("object", "object", dict), typed("int", "integer", int)
WORDS, FLAG = filled(TEXT), filled(BOOLEAN)


def _whole(path: str, value: Any) -> int:
    """A whole number of 64 bits, however it is written; a larger one could not be sent on."""
    if type(value) is float and value.is_integer() and abs(value) < 2 ** 63:
        return int(value)
    number: int = WHOLE.read(path, value)
    return number


def _keep_alive(path: str, value: Any) -> None:
    """Check a keep_alive, which is reserved for the operator and not sent on."""
    given = typed("Duration", "", str, int, float).read(path, value)
    if isinstance(given, str) and not re.fullmatch(_DURATION, given):
        fault = "missing unit in" if re.fullmatch(r"[-+]?[0-9.]+", given) else "invalid"
        refuse(path, f"time: {fault} duration {json.dumps(given[:100], ensure_ascii=False)}")


def _image(path: str, value: Any) -> str:
    encoded: str = TEXT.read(path, value)
    try:
        base64.b64decode(encoded.replace("\r", "").replace("\n", ""), validate=True)
    except ValueError:
        refuse(path, f"illegal base64 data in {path}")
    return encoded


def _input(path: str, value: Any) -> list[str] | None:
    if isinstance(value, str):
        return [value] if value else None
    if not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        refuse(path, "invalid input type")
    if len(value) > MOST_TEXTS:
        refuse(path, f"input has {len(value)} texts; this server takes at most {MOST_TEXTS} in one request")
    if "" in value:
        refuse(path, f"input[{value.index('')}] is empty: no input provided")
    return value or None


def _format(path: str, value: Any) -> Any:
    if value == "":
        return None
    if value != "json" and not isinstance(value, dict):
        refuse(path, f'invalid format: {json.dumps(value)[:100]}; expected "json" or a valid JSON Schema object')
    return value


def _think(path: str, value: Any) -> Any:
    if value == "":
        return None
    if isinstance(value, str) and value not in THINK:
        refuse(path, f"invalid think value: {json.dumps(value[:100])} (must be {_THINK})")
    if not isinstance(value, (bool, str)):
        refuse(path, f"think must be a boolean or string ({_THINK})")
    return value


def _top_logprobs(path: str, value: Any) -> int | None:
    number: int = INTEGER.read(path, value)
    if not 0 <= number <= 20:
        refuse(path, "top_logprobs must be between 0 and 20")
    return number or None


def _member(path: str, holder: Json, name: str, kind: FieldType) -> Any:
    """The member ``name`` of ``holder``, None where it is absent or null."""
    value = holder.get(name)
    return None if value is None else kind.read(f"{path}.{name}", value)


def _with_function(member: str) -> Callable[[str, Any], Json]:
    """A reader of an object whose function has a name and an object as its ``member``."""
    def reader(path: str, value: Any) -> Json:
        function = _member(path, OBJECT.read(path, value), "function", OBJECT) or {}
        _member(f"{path}.function", function, "name", TEXT)
        _member(f"{path}.function", function, member, OBJECT)
        return dict(value)

    return reader


def _message(path: str, value: Any) -> Json:
    struct, _, at = path.partition(".")
    return {"role": "", "content": "", **read(struct, MESSAGE_FIELDS, OBJECT.read(path, value), f"{at}.")}


def _function(**members: Json) -> Json:
    return {"type": "object", "properties": {"function": {"type": "object", "properties": {
        "name": {"type": "string"}, **members}}}}


INTEGER = FieldType(WHOLE.schema, _whole)
KEEP_ALIVE = FieldType({"anyOf": [{"type": "number"}, {"type": "string", "pattern": _DURATION}]}, _keep_alive)
IMAGE = FieldType({"type": "string", "pattern": "^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}, _image)
INPUT = FieldType({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string", "minLength": 1},
                                                  "maxItems": MOST_TEXTS}]}, _input)
FORMAT = FieldType({"anyOf": [{"enum": ["", "json"]}, {"type": "object"}]}, _format)
THINKING = FieldType({"enum": [True, False, "", *THINK]}, _think)
TOP_LOGPROBS = FieldType({"type": "integer", "minimum": 0, "maximum": 20}, _top_logprobs)
# Kept as given, as the order inside them is rendered into the prompt.
TOOL = FieldType(_function(description={"type": "string"}, parameters={"type": "object"}), _with_function("parameters"))
TOOL_CALL = FieldType(_function(arguments={"type": "object"}), _with_function("arguments"))
MESSAGE_FIELDS = {
    "role": FieldType(TEXT.schema, lambda path, value: TEXT.read(path, value).lower()), "content": TEXT,
    "thinking": WORDS, "images": items(IMAGE), "tool_calls": items(TOOL_CALL), "tool_name": WORDS,
    "tool_call_id": WORDS}
MESSAGE = FieldType(schema_of(MESSAGE_FIELDS), _message)


def _bounded(number: str) -> int | float:
    value = float(number)
    if math.isinf(value):
        raise ValueError(f"json: cannot unmarshal number {number[:40]} into Go value of type float64")
    return value


def _integer(number: str) -> int | float:
    """An integer of 64 bits; a longer one is read as a float, as JSON has only one type of number."""
    return int(number) if len(number) < 19 else _bounded(number)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"invalid character {name[0]!r} looking for beginning of value")


_decoder = json.JSONDecoder(parse_int=_integer, parse_float=_bounded, parse_constant=_no_constant)


def _sound(value: Any, depth: int = 0) -> Any:
    """``value`` with U+FFFD in place of lone surrogates, as Go reads them. Raises ValueError when it is too deep."""
    if depth > DEEPEST:
        raise ValueError("exceeded max depth")
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_sound(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_sound(key): _sound(item, depth + 1) for key, item in value.items()}
    return value
