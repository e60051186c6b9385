"""The findings of ``doctor``."""

from typing import NamedTuple

OK, WARNING, FAULT = "ok", "warning", "fault"


class Finding(NamedTuple):
    """The level, the subject, and a sentence with the result and, unless it is ok, the cure."""

    level: str
    subject: str
    text: str
