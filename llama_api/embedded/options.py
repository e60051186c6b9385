"""The options of a request as settings of the engine."""
from __future__ import annotations

from typing import Any

from . import go_json
from .errors import Refused

STOPS = ["<|im_start|>", "<|im_end|>"]
# DefaultOptions in api/types.go; a given option must have the type of its default.
OPTIONS: dict[str, Any] = {
    "num_predict": -1, "temperature": 0.8, "seed": -1, "top_k": 40, "top_p": 0.9, "min_p": 0.0, "typical_p": 1.0,
    "repeat_penalty": 1.0, "repeat_last_n": 64, "presence_penalty": 0.0, "frequency_penalty": 0.0, "num_keep": 4,
    "num_ctx": 4096, "num_batch": 512, "num_gpu": -1, "main_gpu": 0, "num_thread": 0, "draft_num_predict": 0,
    "use_mmap": True, "stop": STOPS}
OPTION_TYPES = {int: "integer", float: "float32", bool: "boolean", list: "array"}


def engine_settings(request: dict[str, Any], window: int) -> dict[str, Any]:
    """Return the engine's settings for a request's `options`, `format`, `logprobs` and `top_logprobs`."""
    settings = read_options(request.get("options", {}), window) | read_format(request.get("format"))
    if request.get("logprobs"):
        settings["n_probs"] = max(1, request.get("top_logprobs", 0))
    return settings


def read_options(given: dict[str, Any], window: int) -> dict[str, Any]:
    """Return the settings for options; a wrong type is a 500, unknown ones are ignored (FromMap in api/types.go)."""
    options = dict(OPTIONS)
    for key, value in given.items():
        if value is None or key not in OPTIONS:
            continue
        kind = type(OPTIONS[key])
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number if kind in (int, float) else isinstance(value, kind)):
            raise Refused(500, f'option "{key}" must be of type {OPTION_TYPES[kind]}')
        if kind is list and not all(isinstance(text, str) for text in value):
            raise Refused(500, f'option "{key}" must be of type an array of strings')
        if is_number:
            bound = 2**31 - 1 if kind is int else 1e38  # the range of the engine's types
            value = kind(max(-bound, min(value, bound)))
        options[key] = value
    limit = 10 * window  # llm/llama_server.go: no answer is unbounded, nor is it with 0 here
    wanted = options["num_predict"]
    return options | {"n_predict": wanted if 0 < wanted <= limit else limit, "n_keep": max(0, options["num_keep"])}


def read_format(value: Any) -> dict[str, Any]:
    """Return the engine's setting for a `format` (llm/llama_server.go)."""
    if value in (None, ""):
        return {}
    if value != "json" and not isinstance(value, dict):
        text = go_json.encode(value).decode()
        raise Refused(500, f'invalid format: {text}; expected "json" or a valid JSON Schema object')
    return {"json_schema": {"type": "object"} if value == "json" else value}
