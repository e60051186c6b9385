"""HTTP/1.1 as the double of Ollama speaks it: connections and calls. Written by hand to be fast."""
import asyncio
import functools
import select
import socket
import struct
import time
from dataclasses import dataclass

from tests.support.double.golang import Refused

JSON, NDJSON, TEXT = 'application/json; charset=utf-8', 'application/x-ndjson', 'text/plain; charset=utf-8'
PLAIN_LIMIT = 2048              # a larger plain body is chunked, as Go does
PHRASES = {200: 'OK', 307: 'Temporary Redirect', 400: 'Bad Request', 401: 'Unauthorized', 403: 'Forbidden',
           404: 'Not Found', 405: 'Method Not Allowed', 500: 'Internal Server Error', 501: 'Not Implemented',
           502: 'Bad Gateway', 503: 'Service Unavailable'}


@functools.lru_cache(4096)
def parse_head(head):
    """Return (method, path, headers, length, keep) of a request head; names in lower case, length -1 if chunked."""
    first, *lines = head.decode('latin-1').split('\r\n')
    method, path, version = first.split(' ')
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(':') for line in lines)}
    keep = version == 'HTTP/1.1' and headers.get('connection', '').lower() != 'close'
    chunked = 'chunked' in headers.get('transfer-encoding', '').lower()
    return method, path, headers, -1 if chunked else int(headers.get('content-length', 0)), keep


def unchunk(data, at):
    """Return (body, end) of the chunked body that begins at AT; body is None while it is incomplete."""
    parts = []
    while (line := data.find(b'\r\n', at)) >= 0:
        size = int(data[at:line].partition(b';')[0], 16)
        at = line + 2 + size + 2
        if len(data) < at:
            break
        if not size:
            return b''.join(parts), at
        parts.append(data[line + 2:at - 2])
    return None, 0


@dataclass(slots=True)
class Call:
    """One request as it was seen; times are time.monotonic(), 0 = not yet."""

    method: str
    path: str
    headers: dict               # names in lower case
    started: float
    json: object = None         # the body of a generate, chat, embed, show, pull
    granted: float = 0.0        # when it got its slot
    beside: int = 0             # calls that had one then, this one too, whose clients had not left; seen or not by then
    ended: float = 0.0
    sent: int = 0               # pieces made so far
    cached: int = 0             # tokens of the prompt that the prefix memory had
    status: int = 0             # 0 = no response head was sent
    fault: str = ''
    closed_early: bool = False  # the client left before the end


class Connection(asyncio.Protocol):
    """One kept-alive connection: a request at a time, each served by a task that ends when the client leaves."""

    def __init__(self, server, steering=False):
        self.server, self.steering = server, steering
        self.data, self.task, self.call, self.resumed = b'', None, None, None
        self.keep, self.chunking, self.cut = True, False, False

    def connection_made(self, transport):
        self.transport = transport
        self.server.connections.add(self)
        if not (self.server.listener or self.steering):
            self.break_off()    # accepted just before a stop

    @property
    def has_client(self):
        """Whether the client is there at this moment, also when the news of its leaving has yet to be read."""
        if (number := self.transport.get_extra_info('socket').fileno()) < 0:
            return False
        look = select.poll()
        look.register(number, select.POLLRDHUP)
        return not look.poll(0)

    def connection_lost(self, exc):
        self.server.connections.discard(self)
        if self.task:
            self.call.closed_early = not self.cut
            self.task.cancel()

    def pause_writing(self):
        self.resumed = asyncio.get_running_loop().create_future()

    def resume_writing(self):
        if not self.resumed.done():
            self.resumed.set_result(None)
        self.resumed = None

    def data_received(self, data):
        self.data = self.data + data if self.data else data
        if not self.task:
            self.take()

    def take(self):
        """Start serving the next request if all of it is there."""
        head = self.data.find(b'\r\n\r\n')
        if head < 0:
            return
        try:
            method, path, headers, length, self.keep = parse_head(self.data[:head])
            end = head + 4 + length
            body, end = unchunk(self.data, head + 4) if length < 0 else (self.data[head + 4:end], end)
        except ValueError:
            self.transport.write(b'HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
            return self.transport.close()
        if body is None or len(self.data) < end:
            if 'expect' in headers:
                self.transport.write(b'HTTP/1.1 100 Continue\r\n\r\n')
            return
        self.data, self.chunking = self.data[end:], False
        self.call = Call(method, path, headers, time.monotonic())
        self.task = asyncio.get_running_loop().create_task(self.serve(self.call, body))

    async def serve(self, call, body):
        """Answer one request, then look for the next."""
        try:
            await self.server.answer(self, call, body)
        except Refused as refused:
            self.reply(refused.status, JSON, refused.body)
        except asyncio.CancelledError:
            return
        finally:
            call.ended, self.task = time.monotonic(), None
        if not self.keep:
            self.transport.close()
        elif self.data and not self.transport.is_closing():
            self.take()

    def break_off(self):
        """Close the connection, which is not the client's doing."""
        self.cut = True
        self.transport.abort()

    def reset(self):
        """Send RST instead of a close in good order."""
        linger = struct.pack('ii', 1, 0)
        self.transport.get_extra_info('socket').setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()

    def head(self, status, kind, framing, location=None):
        """Return the bytes of a response head."""
        self.call.status = status
        more = (f'\r\nLocation: {location}' if location else '') + ('' if self.keep else '\r\nConnection: close')
        return f'HTTP/1.1 {status} {PHRASES[status]}\r\nContent-Type: {kind}\r\n{framing}{more}\r\n\r\n'.encode()

    def reply(self, status, kind, body, location=None):
        """Answer at one go; a large body is chunked."""
        if len(body) <= PLAIN_LIMIT:
            head = self.head(status, kind, f'Content-Length: {len(body)}', location)
        else:
            head = self.head(status, kind, 'Transfer-Encoding: chunked')
            body = b'%x\r\n%b\r\n0\r\n\r\n' % (len(body), body)
        self.transport.write(head if self.call.method == 'HEAD' else head + body)

    def chunks(self, parts, kind):
        """Write each of PARTS as a chunk, before the first one the head; an empty part: the head alone."""
        head = b'' if self.chunking else self.head(200, kind, 'Transfer-Encoding: chunked')
        self.chunking = True
        self.transport.write(head + b''.join([b'%x\r\n%b\r\n' % (len(data), data) for data in parts if data]))

    def end(self):
        """Write the last chunk."""
        self.transport.write(b'0\r\n\r\n')
