"""The trace of a request, from its caller and to Ollama: W3C Trace Context, ``traceparent``, ``tracestate``."""

import re
import secrets
from typing import NamedTuple

_PARENT = re.compile(r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_STATE = re.compile(r"[\t -~]{1,512}")
_KNOWN_FLAGS = 0x03  # sampled, random (§2.2.5); all others must be sent as zero


class TraceContext(NamedTuple):
    """A span of a trace: ids in hexadecimal digits, flags, vendors' state; ``parent`` is a span's id."""

    trace_id: str
    span_id: str
    flags: int = 1
    state: str = ""
    parent: str | None = None

    @classmethod
    def received(cls, parent: str, state: str = "") -> "TraceContext | None":
        """The caller's span from its two headers, None when missing or malformed."""
        found = _PARENT.fullmatch(parent)
        if found is None or (found[1] == "00" and found[5] is not None):
            return None
        return cls(found[2], found[3], int(found[4], 16) & _KNOWN_FLAGS, state if _STATE.fullmatch(state) else "")

    @classmethod
    def begun(cls) -> "TraceContext":
        """The first span of a new trace."""
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    def child(self) -> "TraceContext":
        """A new span inside this one."""
        return self._replace(span_id=secrets.token_hex(8), parent=self.span_id)

    @property
    def sampled(self) -> bool:
        """Whether its spans are to be recorded."""
        return bool(self.flags & 1)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that pass this span on to the next service."""
        parent = {"traceparent": f"00-{self.trace_id}-{self.span_id}-{self.flags:02x}"}
        return parent | {"tracestate": self.state} if self.state else parent
