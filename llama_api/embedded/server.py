"""HTTP: the listening socket and the connections of the clients."""
from __future__ import annotations

import contextlib
import itertools
import re
import select
import socket
import socketserver
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from . import go_json
from .errors import ClientGone, Refused
from .model import Model
from .routes import ROUTES, Call, Record, Reply


class Listener(socketserver.ThreadingTCPServer):
    """The listening socket, and the model that all its connections share."""

    allow_reuse_address = daemon_threads = True
    request_queue_size = 512
    model: Model

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print the traceback of a fault, but ignore clients that have left."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """One connection of a client."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: Listener

    def answer(self) -> None:
        """Answer one request of any method."""
        arrived = time.monotonic_ns()
        self.close_connection |= "Transfer-Encoding" in self.headers  # a body in chunks is not read
        length, path = self.headers.get("Content-Length", "0"), self.path.partition("?")[0]
        methods, view = ROUTES.get(path, ("GET HEAD" if path == "/" else "", None))
        try:
            if not re.fullmatch("[0-9]{1,9}", length):
                self.close_connection = True
                self.send(400, "text/plain; charset=utf-8", b"400 Bad Request")
                return
            body = self.rfile.read(int(length))
            if not methods:
                self.send(404, "text/plain", b"404 page not found")
            elif self.command not in methods.split():
                self.send(405, "text/plain", b"405 method not allowed")
            elif view is None:
                self.send(200, "text/plain; charset=utf-8", b"Ollama is running")
            else:
                self.send_reply(view(Call(self.server.model, body, arrived, self.gone)))
        except Refused as error:
            self.send_json({"error": str(error)}, error.status)
        except (ClientGone, OSError):
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = answer

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the service in front has a log."""

    def gone(self) -> bool:
        """Whether the client has closed its connection."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        try:
            return bool(poll.poll(0)) and not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    def send(self, status: int, content_type: str, body: bytes) -> None:
        """Send a whole response; for HEAD, without its body."""
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: Any, status: int = 200) -> None:
        """Send a value as JSON, encoded as by Go."""
        self.send(status, "application/json; charset=utf-8", go_json.encode(value))

    def send_reply(self, reply: Reply) -> None:
        """Send one object or a stream; headers wait for the first object, so that an error gets its own status."""
        if isinstance(reply, dict):
            self.send_json(reply)
        else:
            with contextlib.closing(reply):
                self.send_lines(itertools.chain([next(reply)], reply))

    def send_lines(self, records: Iterator[Record]) -> None:
        """Stream one object per line, in chunks; an error is the last line, with status 200 (streamResponse)."""
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for record in records:
                self.send_chunk(go_json.encode(record) + b"\n")
        except Refused as error:
            self.send_chunk(go_json.encode({"error": str(error)}) + b"\n")
        self.send_chunk(b"")

    def send_chunk(self, data: bytes) -> None:
        """Send one chunk at once; an empty one ends the body (RFC 9112 §7.1)."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()
