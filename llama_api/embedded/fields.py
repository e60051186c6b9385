"""The fields of each request: their types, and Ollama's messages for invalid ones (api/types.go)."""
from __future__ import annotations

import re
from typing import Any

from . import go_json
from .errors import Refused

FOR_EVER = 2**63 // 10**9  # seconds: the longest Go duration, to which Ollama sets a negative keep_alive
ANY = "interface {}"  # of several types, checked separately
ALL = {"model": "string", "options": "map[string]interface {}", "keep_alive": ANY}
GENERATION = ALL | dict.fromkeys(("stream", "truncate", "shift", "logprobs", "_debug_render_only"), "bool") | {
    "top_logprobs": "int", "think": ANY, "format": ANY}
FIELDS: dict[str, dict[str, str]] = {
    "GenerateRequest": GENERATION | dict.fromkeys(("prompt", "system", "template", "suffix"), "string") | {
        "raw": "bool", "context": "[]int", "images": "[]api.ImageData"},
    "ChatRequest": GENERATION | {"messages": "[]api.Message", "tools": "api.Tools"},
    "EmbedRequest": ALL | {"input": ANY, "truncate": "bool", "dimensions": "int"},
    "EmbeddingRequest": ALL | {"prompt": "string"},
    "ShowRequest": ALL | dict.fromkeys(("name", "system", "template"), "string") | {"verbose": "bool"},
    "messages": {"role": "string", "content": "string", "images": "[]api.ImageData"}}
PYTHON_TYPES: dict[str, Any] = {
    "string": str, "bool": bool, "int": int, "map[string]interface {}": dict,
    "api.Message": dict, "api.Tools": list, "api.ImageData": str}
LEVELS = ("high", "medium", "low", "max")
UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def read(raw: bytes, kind: str) -> dict[str, Any]:
    """Return the known fields of a request of this kind, `keep_alive` in seconds and `messages` normalized."""
    body = go_json.decode(raw)
    if not isinstance(body, dict | None):
        raise Refused(400, f"json: cannot unmarshal {go_json.JSON_TYPES[type(body)]} into Go value of type api.{kind}")
    request = _known(body or {}, FIELDS[kind], f"{kind}.")
    if "think" in request:
        _check_think(request["think"])
    if "keep_alive" in request:
        request["keep_alive"] = seconds(request["keep_alive"])
    if "messages" in request:
        request["messages"] = [_message(item) for item in request["messages"]]
    if not 0 <= request.get("top_logprobs", 0) <= 20:
        raise Refused(400, "top_logprobs must be between 0 and 20")
    return request


def _known(given: dict[str, Any], types: dict[str, str], where: str) -> dict[str, Any]:
    """Return the fields in the table; as in Go, keys match in any case, null is absent, and others are ignored."""
    fields = {key.lower(): value for key, value in given.items() if value is not None}
    known = {key: fields[key] for key in types if key in fields}
    for key, value in known.items():
        _check_value(value, types[key], where + key)
    return known


def _check_value(value: Any, go_type: str, where: str) -> None:
    if value is None or go_type == ANY:
        return
    item_type = go_type.removeprefix("[]")
    wanted = PYTHON_TYPES[go_type] if item_type == go_type else list
    if type(value) is not wanted:
        found = f"number {value}" if isinstance(value, float) else go_json.JSON_TYPES[type(value)]
        raise Refused(400, f"json: cannot unmarshal {found} into Go struct field {where} of type {go_type}")
    if item_type != go_type:
        for item in value:
            _check_value(item, item_type, where)


def _message(given: dict[str, Any] | None) -> dict[str, Any]:
    fields = _known(given or {}, FIELDS["messages"], "ChatRequest.messages.")
    return {"role": fields.get("role", "").lower(), "content": fields.get("content", ""),
            "images": fields.get("images", [])}


def _check_think(value: Any) -> None:
    choice = ", ".join(f'"{level}"' for level in LEVELS) + ", true, or false"
    if isinstance(value, str):
        if value not in LEVELS:
            raise Refused(400, f'invalid think value: "{value}" (must be {choice})')
    elif not isinstance(value, bool):
        raise Refused(400, f"think must be a boolean or string ({choice})")


def seconds(keep_alive: Any) -> int | float:
    """Return a keep_alive, a number of seconds or a Go duration, in seconds."""
    if isinstance(keep_alive, str):
        sign, text = (-1, keep_alive[1:]) if keep_alive.startswith("-") else (1, keep_alive)
        if text != "0" and re.fullmatch(r"[0-9]+\.?[0-9]*", text):
            raise Refused(400, f'time: missing unit in duration "{keep_alive}"')
        if not re.fullmatch(r"0|(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|ms|s|m|h))+", text):
            raise Refused(400, f'time: invalid duration "{keep_alive}"')
        keep_alive = sign * sum(float(n) * UNITS[unit] for n, unit in re.findall(r"([0-9.]+)([a-zµ]+)", text))
    if isinstance(keep_alive, bool) or not isinstance(keep_alive, (int, float)):
        raise Refused(400, f"Unsupported type: '{go_json.JSON_TYPES[type(keep_alive)]}'")
    return min(keep_alive, FOR_EVER) if keep_alive >= 0 else FOR_EVER
