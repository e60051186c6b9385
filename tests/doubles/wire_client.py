"""A client of the double that hears every byte: for tests of what is on the wire."""
import http.client
import json
import socket
from dataclasses import dataclass, field

PROMPT = 'Why is the sky blue?'


@dataclass
class Said:
    """All that came over the wire, and how it ended: end, reset, silence (nothing for a while) or more (too much)."""

    how: str
    raw: bytes
    status: int = 0
    headers: dict = field(default_factory=dict)
    body: bytes = b''
    complete: bool = False

    def __post_init__(self):
        head, found, rest = self.raw.partition(b'\r\n\r\n')
        if not found or not head.startswith(b'HTTP/1.1 '):
            return
        first, *lines = head.decode().split('\r\n')
        self.status = int(first.split()[1])
        self.headers = dict(line.lower().split(': ', 1) for line in lines)
        if self.headers.get('transfer-encoding') == 'chunked':
            self.body, self.complete = unchunked(rest)
        else:
            self.body, self.complete = rest, len(rest) == int(self.headers['content-length'])

    @property
    def objects(self):
        return [json.loads(line) for line in self.body.split(b'\n') if line.strip()]

    @property
    def text(self):
        return ''.join(each['response'] for each in self.objects)

    @property
    def messages(self):
        return [each['message'] for each in self.objects]

    @property
    def content(self):
        return ''.join(message['content'] for message in self.messages)


def unchunked(data):
    """Return (body, whether it ended properly)."""
    body = b''
    while data:
        size, _, data = data.partition(b'\r\n')
        size = int(size, 16)
        if not size:
            return body, data == b'\r\n'
        body, data = body + data[:size], data[size + 2:]
    return body, False


def connected(double):
    return socket.create_connection(('127.0.0.1', double.port), timeout=5)


def send(sock, prompt=PROMPT, **body):
    """Send a generate request."""
    post(sock, '/api/generate', {'model': 'llama3', 'prompt': prompt} | body)


def post(sock, path, body):
    """Send BODY to PATH."""
    data = json.dumps(body).encode()
    head = f'POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n'
    sock.sendall(head.encode() + data)


def heard(sock, quiet=5.0, most=10**7):
    """Listen until the end, a reset, QUIET seconds of silence or MOST bytes."""
    sock.settimeout(quiet)
    data = b''
    while len(data) < most:
        try:
            part = sock.recv(2**16)
        except ConnectionResetError:
            return Said('reset', data)
        except TimeoutError:
            return Said('silence', data)
        if not part:
            return Said('end', data)
        data += part
    return Said('more', data)


def talk(double, prompt=PROMPT, quiet=5.0, most=10**7, **body):
    """Ask for PROMPT on a connection of its own."""
    with connected(double) as sock:
        send(sock, prompt, **body)
        return heard(sock, quiet, most)


def chat(double, messages=PROMPT, quiet=5.0, most=10**7, **body):
    """Ask for the answer to MESSAGES, or to one question, on a connection of its own."""
    messages = [user(messages)] if isinstance(messages, str) else messages
    with connected(double) as sock:
        post(sock, '/api/chat', {'model': 'llama3', 'messages': messages} | body)
        return heard(sock, quiet, most)


def embed(double, *texts, path='/api/embed', quiet=5.0, **body):
    """Ask for the vectors of TEXTS on a connection of its own."""
    with connected(double) as sock:
        post(sock, path, {'model': 'embedder', 'input': texts} | body)
        return heard(sock, quiet)


def user(text, **more):
    """Return a message of the user."""
    return {'role': 'user', 'content': text, **more}


def ps(double):
    """Return what /api/ps lists, by name."""
    return {model['name']: model for model in json.loads(fetch(double, 'GET', '/api/ps')[2])['models']}


def fetch(double, method, path, body=None, headers=None):
    """Return (status, headers, body) of a plain request."""
    connection = http.client.HTTPConnection('127.0.0.1', double.port, timeout=5)
    try:
        connection.request(method, path, body if body is None else json.dumps(body), headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()
