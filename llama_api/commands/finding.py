"""What a check of ``doctor`` found."""

from typing import NamedTuple

OK, WARNING, FAULT = "ok", "warning", "fault"


class Finding(NamedTuple):
    """The level, what was looked at, and a sentence that tells what was found and, unless it is well, what to do."""

    level: str
    subject: str
    text: str
