"""Failures in the format of OpenAI's API: faults of fields, and the body and headers of every error."""

import re
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidRequest, ModelNotServed, OllamaRefused, PromptTooLong
from ..faults import Fault
from ..model_call import ModelCall

LONGEST_PARAM = 200  # characters of a caller's text to repeat
LONGEST_WAIT = 59  # seconds; most clients replace a longer Retry-After by a short one
_CODES = {"malformed-json": "invalid_json", "unauthorized": "invalid_api_key", "not-found": "unknown_url",
          "method-not-allowed": "method_not_allowed", "rate-limited": "rate_limit_exceeded",
          "prompt-too-long": "context_length_exceeded"}
# Whether automatic retries help; clients retry every 5xx unless this header forbids it.
_RETRIED = {"overloaded": True, "ollama-unavailable": True, "model-not-found": False, "ollama-timeout": False,
            "not-cached": False, "cancelled": False, "internal-error": False}
# Refusals by Ollama: the field of its API, the words that identify it, the param, and its fault.
_BLAME = (("think", r"think", "reasoning_effort", "names an effort that the model does not know"),
          ("tools", r"unmarshal|tool", "tools", "has a schema that Ollama cannot read"),
          ("images", r"image|mmproj|vision", "messages", "has an image that the model cannot read"),
          ("format", r"", "response_format", "has a schema that Ollama cannot hold an answer to"))
_ASKED_BY = {"tools": "tools", "thinking": "reasoning_effort", "insert": "suffix", "vision": "messages"}


class FieldError(InvalidRequest):
    """A field is wrong: ``param`` is its path, ``code`` OpenAI's word, ``rule`` completes the sentence "`param` …"."""

    def __init__(self, param: str, code: str, rule: str):
        self.param = param.encode("utf-8", "replace").decode()[:LONGEST_PARAM]
        self.code, self.rule = code, rule
        super().__init__({self.param: [f"{rule[:1].upper()}{rule[1:]}."]})

    def __str__(self) -> str:
        return f"`{self.param}` {self.rule}."


class NotSupported(FieldError):
    """The ``model`` lacks the ``ability`` that the field at ``param`` asks for."""

    def __init__(self, param: str, model: str, ability: str):
        super().__init__(param, "unsupported_parameter", f"cannot be used: {model} does not support {ability}")


def refusal(error: Exception, call: ModelCall, needs: Mapping[str, str]) -> FieldError | None:
    """The field for which Ollama refused ``call``, None when no field is to blame.

    ``needs`` maps the required abilities to the paths of the fields that require them.
    """
    if not isinstance(error, OllamaRefused) or error.status not in (400, 501):
        return None
    if (lacking := re.search(r"does not support (\w+)", error.text)) is not None:
        if (param := needs.get(lacking[1]) or _ASKED_BY.get(lacking[1])) is None:
            rule = f"cannot be {call.model}, which does not support {lacking[1]}"
            return FieldError("model", "unsupported_value", rule)
        return NotSupported(param, call.model, lacking[1])
    used = {name for name in ("think", "tools", "format") if call.body.get(name)} | {
        "images" for message in call.body.get("messages", ()) if message.get("images")}
    told = [row for row in _BLAME if row[0] in used and re.search(row[1], error.text, re.I)]
    for field, _, param, rule in told or [row for row in _BLAME if row[0] in used - {"think"}]:
        ability = {"images": "vision", "think": "thinking"}.get(field, "")
        return FieldError(needs.get(ability, param), "invalid_value", rule)
    return None


def error_object(fault: Fault, error: Exception) -> dict[str, Any]:
    """The body for ``error`` with its ``fault``."""
    kind = ("rate_limit_error" if fault.status == 429 else "server_error" if fault.status >= 500
            else "invalid_request_error")
    param, code, message = None, _CODES.get(fault.slug, fault.slug), fault.detail
    if isinstance(error, FieldError):
        param, code = error.param, error.code
    elif isinstance(error, ModelNotServed):
        param, code = "model", "model_not_found"
    elif isinstance(error, PromptTooLong):
        message = _too_long(error)
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def status_of(fault: Fault) -> int:
    """The status of an error: here 422 is another exception, which some clients take for their own mistake."""
    return 400 if fault.status == 422 else fault.status


def headers_of(fault: Fault, error: Exception) -> dict[str, str]:
    """The headers that tell clients whether to retry, and when."""
    headers = {}
    retried = _RETRIED.get(fault.slug)
    if isinstance(error, OllamaRefused) and 400 <= error.status < 500:
        retried = False
    if retried is not None:
        headers["x-should-retry"] = str(retried).lower()
    if fault.status == 429:
        headers["Retry-After"] = str(LONGEST_WAIT)  # the limiter inserts the real time when that is shorter
    elif fault.retry_after is not None:
        headers["Retry-After"] = str(min(LONGEST_WAIT, max(1, fault.retry_after)))
    return headers


def _too_long(error: PromptTooLong) -> str:
    """A sentence with all the words by which clients recognize this error."""
    if error.tokens is None or error.window is None:
        return ("This model's maximum context length is exceeded: your prompt is too long; shorten it"
                " (context_length_exceeded).")
    return (f"This model's maximum context length is {error.window} tokens. However, your prompt is too long: it has"
            f" {error.tokens} tokens (context_length_exceeded).")
