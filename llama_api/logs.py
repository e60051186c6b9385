"""JSON lines to api.log and stdout, written by native threads, so that no disk or pipe ever delays a request."""

import atexit
import json
import logging
import os
import random
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson

from . import native

BATCH_SECONDS = 0.02
LINES_KEPT = 10_000  # behind a stalled destination; later ones are dropped and counted
PIPE_ATOMIC_BYTES = 4096  # PIPE_BUF: what several workers can write to one pipe without mixing (POSIX write)
STDOUT = 1


class LineWriter:
    """A bounded queue of lines for one destination, written in batches by a native thread."""

    def __init__(self, write: Callable[[bytes], None], batch_bytes: int):
        self._write = write
        self._batch_bytes = batch_bytes
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._armed = True
        self._writing = False
        self._wake = native.allocate_lock()
        self._wake.acquire()
        native.start_thread(self._run, ())
        atexit.register(self.flush)

    def put(self, line: bytes) -> None:
        """Queue one line, its line break included. Never blocks, never raises."""
        if len(self._lines) >= LINES_KEPT:
            self._dropped += 1
            return
        self._lines.append(line)
        if self._armed:
            self._armed = False
            try:
                self._wake.release()
            except RuntimeError:
                pass  # another thread has just done so

    def flush(self, seconds: float = 2.0) -> None:
        """Wait until all lines are written, at most ``seconds``, as the destination may be stuck."""
        deadline = time.monotonic() + seconds
        while (self._lines or self._writing) and time.monotonic() < deadline:
            native.sleep(0.002)

    def _run(self) -> None:
        while True:
            self._wake.acquire()
            native.sleep(BATCH_SECONDS)
            self._writing = self._armed = True
            while self._lines:
                self._write(self._next_batch())
            self._writing = False

    def _next_batch(self) -> bytes:
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self._lines.append(encode("WARNING", {"message": f"{dropped} log lines were dropped"}))
        batch = [self._lines.popleft()]
        size = len(batch[0])
        while self._lines and size + len(self._lines[0]) <= self._batch_bytes:
            batch.append(self._lines.popleft())
            size += len(batch[-1])
        return b"".join(batch)


def write_stdout(data: bytes) -> None:
    """Write to standard output, unless it is closed."""
    try:
        while data:
            data = data[os.write(STDOUT, data):]
    except OSError:
        pass


class LogFile:
    """An append-only file that may be rotated or deleted meanwhile, and whose disk may be full."""

    def __init__(self, path: str, complain: Callable[[str], None]):
        """Open ``path``. Raises OSError when that fails."""
        self._path = path
        self._complain = complain
        self._complained = -60.0
        self._torn = False  # a full disk truncated a line
        self._open()

    def write(self, data: bytes) -> None:
        """Append ``data``; on failure complain once a minute and drop the lines (stdout has them too)."""
        try:
            self._follow_rotation()
            data = b"\n" + data if self._torn else data
            while data:
                written = os.write(self._fd, data)
                self._torn = data[written - 1:written] != b"\n"
                data = data[written:]
        except OSError as error:
            if time.monotonic() - self._complained >= 60:
                self._complained = time.monotonic()
                self._complain(f"cannot write the log file: {error.strerror}; requests go on, stdout has every line")

    def _open(self) -> None:
        # O_NONBLOCK: the file may be a pipe, and a pipe without a reader must not block the start.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK
        self._fd = os.open(self._path, flags, 0o640)
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)

    def _follow_rotation(self) -> None:
        try:
            status = os.stat(self._path)
            if (status.st_dev, status.st_ino) == self._identity:
                return
        except FileNotFoundError:
            pass
        stale = self._fd
        self._open()
        self._torn = False
        os.close(stale)


def encode(level: str, fields: dict[str, Any]) -> bytes:
    """One JSON line. Unicode line breaks are escaped too, so that no caller can put a line break into the log."""
    record: dict[str, Any] = {"time": datetime.now(UTC), "level": level, **fields}
    try:
        line = orjson.dumps(record, default=str, option=orjson.OPT_UTC_Z | orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a lone surrogate or a number beyond 64 bits must not make logging fail
        return json.dumps({**record, "time": f"{record['time']:%Y-%m-%dT%H:%M:%S.%fZ}"}, default=str).encode() + b"\n"
    if not line.isascii():
        for raw, escaped in ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085")):
            line = line.replace(raw, escaped)
    return line


class JsonLog(logging.Handler):
    """The log: every record goes to stdout, and to the file when there is one."""

    def __init__(self, path: str, level: str):
        super().__init__(level)
        self._writers = [LineWriter(write_stdout, PIPE_ATOMIC_BYTES)]
        if path:
            try:
                file = LogFile(path, complain=self._complain)
                self._writers.append(LineWriter(file.write, 1 << 20))
            except OSError as error:
                self._complain(f"cannot open the log file {path}: {error.strerror}; logging to stdout alone")
        logger = logging.getLogger("llama_api")
        logger.handlers[:] = [self]
        logger.setLevel(level)
        logger.propagate = False

    def write(self, level: int, fields: dict[str, Any]) -> None:
        """Log a record of ``fields`` at a level of the logging module."""
        if level >= self.level:
            line = encode(logging.getLevelName(level), fields)
            for writer in self._writers:
                writer.put(line)

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record of the logging module, with its ``extra={"fields": {...}}`` and stack trace."""
        fields: dict[str, Any] = {"message": record.getMessage(), "logger": record.name}
        fields.update(getattr(record, "fields", {}))
        if record.exc_info:
            fields["stack"] = logging.Formatter().formatException(record.exc_info)
        self.write(record.levelno, fields)

    def flush(self) -> None:
        """Wait until everything logged so far is written."""
        for writer in self._writers:
            writer.flush()

    def _complain(self, sentence: str) -> None:
        self._writers[0].put(encode("WARNING", {"message": sentence, "logger": "llama_api.logs"}))


def new_request_id() -> str:
    """A unique id for a request and its log lines."""
    return f"{random.getrandbits(64):016x}"
