"""The rude clients of the chaos run."""

import json
import socket
import time

from tests.chaos.clients import Caller
from tests.chaos.scene import SLACK
from tests.support.gunicorn_server import JSON

HEAD_SECONDS = 2.0  # that the service gives a request's head
GARBAGE = (b"\x00\xff\x16\x03\x01 garbage\r\n\r\n", b"GET /livez HTTP/9.9\r\n\r\n", b"GET\r\n\r\n",
           b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
           b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
           b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
           b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 300 + b"\r\n")


class RudeClient(Caller):
    """One client that keeps connections busy without purpose: half heads, trickled bodies, unread streams, garbage."""

    KINDS = {"half_head": 3, "trickle": 3, "deaf": 3, "garbage": 5}

    def _half_head(self, service):
        with service.send_raw(b"POST /generate HTTP/1.1\r\nHost: x\r\nX-Half: ") as client:
            self._until_closed("half head", client, HEAD_SECONDS + SLACK, b"")

    def _trickle(self, service):
        body = json.dumps(self._question().fields).encode()
        head = ("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()
        with service.send_raw(head) as client:
            for at in range(self._random.randrange(25)):
                try:
                    client.sendall(body[at:at + 1])
                except OSError:
                    break
                time.sleep(0.1)
        self._ledger.note("trickle", "left")

    def _deaf(self, service):
        question = self._question(stream=True, markers="[[tokens=400]]")
        body = json.dumps(question.fields | {"max_tokens": 8000}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(("127.0.0.1", service.port))
            client.sendall(f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON['Content-Type']}\r\n"
                           f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(self._random.uniform(0.5, 3))
        self._ledger.note("deaf", "left")

    def _garbage(self, service):
        with service.send_raw(self._random.choice(GARBAGE)) as client:
            self._until_closed("garbage", client, HEAD_SECONDS + SLACK, b"HTTP/1.1 4")

    def _until_closed(self, kind, client, seconds, begins):
        """Read to the end, which must come within ``seconds``; an answer must begin with ``begins``."""
        client.settimeout(seconds)
        data, end = b"", time.monotonic() + seconds
        try:
            while time.monotonic() < end and (more := client.recv(65536)):
                data += more
        except TimeoutError:
            return self._ledger.blame(f"{kind}: the connection is open after {seconds:g} s")
        except OSError:
            pass  # reset: what it sent was not read
        if data and not data.startswith(begins or b"HTTP/1.1 4"):
            self._ledger.blame(f"{kind}: answered {data[:200]!r}")
        self._ledger.note(kind, "refused" if data else "closed")
