"""Common parts of the OpenAPI document."""

from typing import Any

from ..strict_json import Json

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
NUMBER: Json = {"type": "number"}


def ref(kind: str, name: str) -> Json:
    """A reference to a component."""
    return {"$ref": f"#/components/{kind}/{name}"}


def headers(*names: str) -> Json:
    """References to response headers."""
    return {name: ref("headers", name) for name in names}


def nullable(schema: Json) -> Json:
    """The schema of a value that may be null."""
    return {"anyOf": [schema, {"type": "null"}]}


def array(items: Json, **bounds: int) -> Json:
    """The schema of an array, with its ``minItems`` and ``maxItems``."""
    return {"type": "array", "items": items, **bounds}


def in_path(name: str, *examples: str, **schema: Any) -> Json:
    """A parameter in the path."""
    return {"name": name, "in": "path", "required": True, "schema": {**TEXT, **schema, "examples": list(examples)}}


def kept(description: str, content: Json) -> Json:
    """The responses of a resource that clients keep by its ETag."""
    return {"200": {"description": description, "headers": headers("ETag"), "content": content},
            "304": {"description": "The copy at hand is still good.", "headers": headers("ETag")}}
