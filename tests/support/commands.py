"""The commands as an operator types them: as processes, with streams or on a terminal."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import contextmanager

from tests.support.gunicorn_server import ROOT

PATIENCE = 60


def environment(bind, **settings):
    """The environment of a command: ours, with these settings alone; names in capitals are variables as they are."""
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith(("LLAMA_API_", "WEB_CONCURRENCY", "GUNICORN_", "REQUESTS_CA", "CURL_CA"))}
    return {**kept, "LLAMA_API_LOG_FILE": "", "LLAMA_API_BIND": str(bind), "PYTHONUNBUFFERED": "1", **{
        name if name.isupper() else f"LLAMA_API_{name.upper()}": str(value) for name, value in settings.items()}}


def start(bind, *arguments, settings=None, program=("llama_api",), **options):
    """Start a command as a process in a group of its own."""
    return subprocess.Popen([sys.executable, "-m", *program, *map(str, arguments)], cwd=ROOT,
                            env=environment(bind, **(settings or {})), start_new_session=True, **options)


def run(bind, *arguments, text=b"", program=("llama_api",), **settings):
    """Run a command with ``text`` on its standard input; returns its exit status, stdout and stderr."""
    with start(bind, *arguments, settings=settings, program=program, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
               stderr=subprocess.PIPE) as process:
        try:
            out, err = process.communicate(text, PATIENCE)
        finally:
            process.kill()
    assert b"Traceback" not in out + err, err.decode()
    return process.returncode, out.decode(), err.decode()


@contextmanager
def terminal():
    """Both ends of a terminal of 120 columns: ours to read, and the one for the process."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
    try:
        yield ours, theirs
    finally:
        os.close(ours)


def screens(ours):
    """The terminal's content after each redraw, as one line each, until its other end is closed."""
    seen = b""
    try:
        while data := os.read(ours, 65536):
            seen += data
    except OSError:  # EIO: the other end is closed
        pass
    return re.sub(r"\x1b\[[?0-9]*[A-Za-z]", "", seen.decode().replace("\r\n", "\n")).replace("\r", "\n")
