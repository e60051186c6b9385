"""The fields of a request to OpenAI's API, read one by one: strict in their types, and null is absent."""

from collections.abc import Iterator
from typing import Any

from ..strict_json import is_text, unsendable
from .openai_errors import FieldError


class RequestObject:
    """The members of one object of a request. Every fault is a FieldError with the path of what is wrong."""

    def __init__(self, values: Any, path: str = ""):
        if not isinstance(values, dict):
            raise FieldError(path, "invalid_type", "must be an object")
        self.values, self._path = values, path

    def path(self, name: str) -> str:
        """Where the member ``name`` is in the whole request."""
        return f"{self._path}.{name}" if self._path else name

    def get(self, name: str) -> Any:
        """The value of ``name`` as it is, None where it is absent."""
        return self.values.get(name)

    def wrong(self, name: str, code: str, rule: str) -> FieldError:
        """The error that says what is wrong with ``name``."""
        return FieldError(self.path(name), code, rule)

    def require(self, name: str) -> Any:
        """The value of ``name``, which must be there; it may be null."""
        if name not in self.values:
            raise self.wrong(name, "missing_required_parameter", "is missing")
        return self.values[name]

    def text(self, name: str) -> str | None:
        """A string."""
        return None if self.get(name) is None else self.required_text(name)

    def required_text(self, name: str) -> str:
        """A string that must be there."""
        return _text(self.require(name), self.path(name))

    def name(self, name: str) -> str:
        """A string that must be there and not be empty."""
        if not (value := self.required_text(name)):
            raise self.wrong(name, "invalid_value", "must not be empty")
        return value

    def texts(self, name: str, most: int) -> list[str]:
        """A string, or a list of at most ``most``; none is empty. Absent is no string."""
        if (value := self.get(name)) is None:
            return []
        if isinstance(value, str):
            return [self.name(name)]
        if not isinstance(value, list) or len(value) > most:
            code = "invalid_value" if isinstance(value, list) else "invalid_type"
            raise self.wrong(name, code, f"must be a string or a list of at most {most} strings")
        texts = [_text(item, f"{self.path(name)}[{index}]") for index, item in enumerate(value)]
        if "" in texts:
            raise self.wrong(f"{name}[{texts.index('')}]", "invalid_value", "must not be empty")
        return texts

    def boolean(self, name: str) -> bool:
        """True or false; absent is false."""
        value = self.get(name)
        if value is not None and type(value) is not bool:
            raise self.wrong(name, "invalid_type", "must be true or false")
        return bool(value)

    def number(self, name: str, least: float, most: float, default: float | None = None) -> float | None:
        """A number in a range."""
        if (value := self.get(name)) is None:
            return default
        if type(value) not in (int, float):
            raise self.wrong(name, "invalid_type", f"must be a number from {least:g} to {most:g}")
        if not least <= value <= most:
            raise self.wrong(name, "invalid_value", f"must be from {least:g} to {most:g}")
        return float(value)

    def integer(self, name: str, least: int, most: int) -> int | None:
        """An integer in a range; 5.0 is one."""
        value = self.get(name)
        if type(value) is float and value.is_integer():
            value = int(value)
        if value is not None and type(value) is not int:
            raise self.wrong(name, "invalid_type", f"must be an integer from {least} to {most}")
        if value is not None and not least <= value <= most:
            raise self.wrong(name, "invalid_value", f"must be from {least} to {most}")
        return value

    def require_constant(self, name: str, allowed: Any) -> None:
        """See that ``name`` has no other than its one possible value, or is absent."""
        value = self.get(name)
        if value is not None and (type(value) is not type(allowed) or value != allowed):
            shown = {True: "true", False: "false"}.get(allowed, allowed) if type(allowed) is bool else repr(allowed)
            raise self.wrong(name, "unsupported_value", f"must be {shown} or be left out")

    def object(self, name: str) -> dict[str, Any] | None:
        """An object that can be sent on as it is."""
        if (value := self.get(name)) is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(name, "invalid_type", "must be an object")
        if (fault := unsendable(value, self.path(name))) is not None:
            raise FieldError(fault[0], "invalid_value", fault[1])
        return value

    def items(self, name: str) -> list[Any]:
        """A list; absent is empty."""
        value = self.get(name)
        if value is not None and not isinstance(value, list):
            raise self.wrong(name, "invalid_type", "must be a list")
        return value or []

    def each(self, name: str) -> Iterator["RequestObject"]:
        """The objects in a list."""
        for index, item in enumerate(self.items(name)):
            yield RequestObject(item, f"{self.path(name)}[{index}]")


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise FieldError(path, "invalid_type", "must be a string")
    if not is_text(value):
        raise FieldError(path, "invalid_value", "has a lone surrogate, which is no character")
    return value
