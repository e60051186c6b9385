"""Reads all that has arrived of a chunked body at once (RFC 9112 §7.1).

``http.client`` gives one chunk a call, and Ollama sends a chunk for each token: where many have arrived, that and what
urllib3 does around each call took more processor time than all else (benchmarks/README.md, the profile of a miss).
"""

import http.client
from typing import Any

READ_BYTES = 65536
LONGEST_LINE = 4096  # bytes of a chunk's size with its extensions


class ChunkedDecoder:
    """Takes the framing off a chunked body, however its bytes are split. ``ended`` tells that it is complete."""

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""  # a line that is not complete
        self._left = 0  # bytes of the chunk under way, with the line break after it
        self._trailers = False  # the last chunk has come

    def feed(self, data: bytes) -> bytes:
        """The content in ``data``. Raises http.client.HTTPException on what is not a chunked body."""
        if not data:
            raise http.client.IncompleteRead(b"")
        found = []
        at, data = 0, self._rest + data
        while at < len(data) and not self.ended:
            if self._left:
                taken = min(self._left, len(data) - at)
                found.append(data[at:min(at + taken, at + max(0, self._left - 2))])
                self._left -= taken
                at += taken
                continue
            end = data.find(b"\n", at)
            if end < 0:
                break
            self._line(data[at:end].strip())
            at = end + 1
        self._rest = data[at:]
        if len(self._rest) > LONGEST_LINE:
            raise http.client.LineTooLong("chunk size")
        return b"".join(found)

    def _line(self, line: bytes) -> None:
        if self._trailers:
            self.ended = not line
            return
        size = line.partition(b";")[0].strip()
        if not size or size.strip(b"0123456789abcdefABCDEF"):
            raise http.client.HTTPException("a chunk without a size")
        length = int(size, 16)
        self._left, self._trailers = (length + 2 if length else 0), not length


class EagerResponse(http.client.HTTPResponse):
    """A response whose ``read1`` gives the content of all chunks that have arrived; the first byte is waited for."""

    def begin(self) -> None:
        """Read the head."""
        super().begin()
        self._decoder = ChunkedDecoder()

    def read1(self, n: int = -1) -> bytes:
        """The content that has arrived, ``b""`` at the end of the body."""
        if not self.chunked:
            return super().read1(n)
        fp: Any = self.fp
        while fp is not None:
            content = self._decoder.feed(fp.read1(READ_BYTES))
            if self._decoder.ended:
                self.close()
                return content
            if content:
                return content
        return b""
