"""The messages and tools of a chat in OpenAI's form, made into Ollama's."""

import base64
import re

from ..errors import MalformedJSON
from ..strict_json import Json, parse_object, unsendable
from .openai_errors import FieldError
from .openai_fields import RequestObject

Needs = dict[str, str]  # required abilities, with the path of the first field that requires them
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
BETWEEN_PARTS = "\n\n"  # the templates' separator between two messages of one role
_DATA_URL = re.compile(r"data:(?:image/(?:jpeg|jpg|png|webp))?;base64,")


def read_messages(request: RequestObject, needs: Needs) -> list[Json]:
    """The messages of a request; abilities that they require are added to ``needs``. Raises FieldError."""
    request.require("messages")
    if not request.items("messages"):
        raise request.wrong("messages", "invalid_type" if request.get("messages") is None else "invalid_value",
                            "must be a list of at least one message")
    called: dict[str, str] = {}  # by the id of a tool call: the name of its function
    return [_message(message, called, needs) for message in request.each("messages")]


def read_tools(request: RequestObject, needs: Needs) -> list[Json] | None:
    """The tools that the model may call, None when it may call none. Raises FieldError."""
    tools = [_tool(tool) for tool in request.each("tools")]
    choice = request.get("tool_choice")
    if choice not in (None, "auto", "none"):
        known = choice == "required" or isinstance(choice, dict)
        raise request.wrong("tool_choice", "unsupported_value" if known else "invalid_value",
                            "must be auto or none: no model can be forced to call a tool here")
    if not tools or choice == "none":
        return None
    needs.setdefault("tools", "tools")
    return tools


def _tool(tool: RequestObject) -> Json:
    if tool.required_text("type") != "function":
        raise tool.wrong("type", "unsupported_value", "must be function")
    function = RequestObject(tool.require("function"), tool.path("function"))
    found: Json = {"name": function.name("name")}
    if (description := function.text("description")) is not None:
        found["description"] = description
    if (parameters := function.object("parameters")) is not None:
        found["parameters"] = parameters
    return {"type": "function", "function": found}


def _message(message: RequestObject, called: dict[str, str], needs: Needs) -> Json:
    role = ROLES.get(message.required_text("role"))
    if role is None:
        raise message.wrong("role", "invalid_value", f"must be one of {', '.join(ROLES)}")
    images: list[str] = []
    found: Json = {"role": role, "content": _content(message, role, images, needs)}
    if images:
        found["images"] = images
    if role == "assistant":
        found |= _assistant(message, called, needs)
    elif role == "tool":
        needs.setdefault("tools", message.path("role"))
        call_id = message.name("tool_call_id")
        if call_id not in called:
            raise message.wrong("tool_call_id", "invalid_value", "must be the id of a tool call in an earlier message")
        found |= {"tool_name": called[call_id], "tool_call_id": call_id}
    return found


def _assistant(message: RequestObject, called: dict[str, str], needs: Needs) -> Json:
    """The thinking and the tool calls of an assistant's message."""
    if message.get("function_call") is not None:
        raise message.wrong("function_call", "unsupported_parameter", "is deprecated: use tool_calls")
    found: Json = {}
    if thinking := message.text("reasoning") or message.text("reasoning_content"):
        found["thinking"] = thinking
    if calls := [_tool_call(call) for call in message.each("tool_calls")]:
        needs.setdefault("tools", message.path("tool_calls"))
        called |= {call["id"]: call["function"]["name"] for call in calls}
        found["tool_calls"] = calls
    return found


def _tool_call(call: RequestObject) -> Json:
    call.require_constant("type", "function")
    function = RequestObject(call.require("function"), call.path("function"))
    arguments = function.required_text("arguments") or "{}"
    try:
        parsed = parse_object(arguments.encode())
    except MalformedJSON:
        raise function.wrong("arguments", "invalid_value", "must be a string with a JSON object in it") from None
    if (fault := unsendable(parsed)) is not None:
        raise function.wrong("arguments", "invalid_value", fault[1])
    return {"id": call.name("id"), "function": {"name": function.name("name"), "arguments": parsed}}


def _content(message: RequestObject, role: str, images: list[str], needs: Needs) -> str:
    """The text of a message; its images are added to ``images``."""
    value = message.get("content")
    if isinstance(value, str):
        return message.required_text("content")
    if role == "assistant" and (value is None or value == []):
        return ""  # with tool calls; and clients send empty turns back
    if not isinstance(message.require("content"), list):
        raise message.wrong("content", "invalid_type", "must be a string or a list of parts")
    if not value:
        raise message.wrong("content", "invalid_value", "must have at least one part")
    texts = [_part(part, role, images, needs) for part in message.each("content")]
    return BETWEEN_PARTS.join([text for text in texts if text is not None])


def _part(part: RequestObject, role: str, images: list[str], needs: Needs) -> str | None:
    """The text of one part of a message; None of an image, which is added to ``images``."""
    kind = part.required_text("type")
    if kind == "text":
        return part.required_text("text")
    if kind == "refusal" and role == "assistant":
        return part.required_text("refusal")
    if kind == "image_url" and role == "user":
        needs.setdefault("vision", part.path("image_url"))
        images.append(_image(part))
        return None
    allowed = {"user": "text or image_url", "assistant": "text or refusal"}.get(role, "text")
    raise part.wrong("type", "unsupported_value", f"must be {allowed} in a message of this role")


def _image(part: RequestObject) -> str:
    """The image of a part, in base64 as it is always written."""
    value = part.require("image_url")
    url = value if isinstance(value, str) else RequestObject(value, part.path("image_url")).required_text("url")
    path = part.path("image_url")
    if (start := _DATA_URL.match(url)) is None:
        raise FieldError(path, "invalid_value", "must be a data URL with an image of type jpeg, png or webp in base64:"
                                                " images at other addresses are never fetched")
    try:
        image = base64.b64decode(re.sub("[\r\n]", "", url[start.end():]), validate=True)  # some encoders break lines
    except ValueError:
        image = b""
    if not image:
        raise FieldError(path, "invalid_value", "has no image in base64 after the comma")
    return base64.b64encode(image).decode()
