"""Files in a directory that all workers of the service share: replaced as a whole, and read when they have changed."""

import os
from pathlib import Path

from gevent import get_hub


def replace(path: Path, data: bytes) -> None:
    """Have the file at ``path`` be ``data``: its readers see the old one or the new one, whole. Raises OSError.

    The disk may be slow, so only the calling greenlet waits for it.
    """
    get_hub().threadpool.apply(_replace, (path, data))


def _replace(path: Path, data: bytes) -> None:
    draft = path.with_suffix(f".{os.getpid()}")
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
    os.replace(draft, path)


class Watched:
    """A file or a directory that others change; ``read`` gives the bytes of a file that has changed since."""

    def __init__(self, path: Path):
        self.path = path
        self._seen: tuple[int, int] | None = None

    @property
    def revision(self) -> int:
        """A number that changes whenever the file is replaced, 0 while it is missing."""
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def read(self) -> bytes | None:
        """The bytes of a file not seen before, None when it is the same. Raises FileNotFoundError."""
        status = self.path.stat()
        seen = (status.st_ino, status.st_mtime_ns)
        if seen == self._seen:
            return None
        data = self.path.read_bytes()
        self._seen = seen
        return data
