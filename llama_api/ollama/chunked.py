"""Reads everything that has arrived of a chunked body at once (RFC 9112 §7.1).

``http.client`` returns one chunk per call, and Ollama sends a chunk for each token: under load these calls and
urllib3's work around them took more processor time than everything else (benchmarks/README.md, the profile of a miss).
"""

import http.client
from functools import lru_cache
from typing import Any

READ_BYTES = 65536
LONGEST_LINE = 4096  # bytes of a chunk's size with its extensions


class ChunkedDecoder:
    """Removes the framing of a chunked body, however its bytes are split. ``ended`` says that it is complete."""

    def __init__(self) -> None:
        self.ended = False
        self._rest = b""  # an incomplete line
        self._left = 0  # bytes left of the current chunk and its line break
        self._trailers = False  # the last chunk has arrived

    def feed(self, data: bytes) -> bytes:
        """The content in ``data``. Raises http.client.HTTPException if it is not a chunked body."""
        if not data:
            raise http.client.IncompleteRead(b"")
        data, left = self._rest + data, self._left
        found, at = ([], 0) if left or self._trailers else _whole_chunks(data)
        size = len(data)
        while at < size and not self.ended:
            if not left:
                end = data.find(b"\n", at)
                if end < 0:
                    break
                left = self._line(data[at:end])
                at = end + 1
            if left:
                end = at + left
                found.append(data[at:max(at, end - 2)])
                left, at = max(0, end - size), min(end, size)
        self._rest, self._left = data[at:], left
        if len(self._rest) > LONGEST_LINE:
            raise http.client.LineTooLong("chunk size")
        return b"".join(found)

    def _line(self, line: bytes) -> int:
        """Read a line of the framing; returns the number of bytes up to the next one, a chunk and its line break."""
        if self._trailers:
            self.ended = not line.strip()
            return 0
        length = _length(line)
        self._trailers = not length
        return length + 2 if length else 0


def _whole_chunks(data: bytes) -> tuple[list[bytes], int]:
    """The contents of the complete chunks at the beginning of ``data``, and their end.

    Tokens contain no line breaks, so all are found at once; if one does, none is found here.
    """
    parts = data.split(b"\r\n")
    contents = parts[1:-1:2]
    sizes = parts[:2 * len(contents):2]
    try:
        lengths = [*map(_length, sizes)]
    except http.client.HTTPException:
        return [], 0
    if lengths and not lengths[-1]:  # the last chunk is not content
        for one in (contents, sizes, lengths):
            one.pop()
    if 0 in lengths or lengths != [*map(len, contents)]:
        return [], 0
    return contents, sum(map(len, sizes)) + sum(lengths) + 4 * len(contents)


@lru_cache(4096)
def _length(line: bytes) -> int:
    """The length of the chunk that follows ``line``; those of tokens recur."""
    size = line.partition(b";")[0].strip()
    if not size or size.strip(b"0123456789abcdefABCDEF"):
        raise http.client.HTTPException("a chunk without a size")
    return int(size, 16)


class EagerResponse(http.client.HTTPResponse):
    """A response whose ``read1`` returns all content that has arrived, after waiting for the first byte."""

    def begin(self) -> None:
        """Read the head."""
        super().begin()
        self._decoder = ChunkedDecoder()

    def read1(self, n: int = -1) -> bytes:
        """The content that has arrived, ``b""`` at the end of the body. Raises http.client.HTTPException."""
        if not self.chunked:
            content = super().read1(n)
            if not content and self.length:
                raise http.client.IncompleteRead(content, self.length)
            if self.length == 0:
                self.close()  # as later versions of http.client do
            return content
        fp: Any = self.fp
        while fp is not None:
            content = self._decoder.feed(fp.read1(READ_BYTES))
            if self._decoder.ended:
                self.close()
                return content
            if content:
                return content
        return b""
