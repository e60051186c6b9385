"""Load: wrk for throughput, a client on a plain socket for percentiles and streams."""

import contextlib
import json
import math
import pathlib
import socket
import subprocess
import threading
import time

HERE = pathlib.Path(__file__).parent
SCRIPT = str(HERE / "post.lua")


def wrk(url, body_file, connections, seconds, mode="same", salt="0", threads=1):
    """Load ``url`` for ``seconds``; a dict of requests, seconds, rate, p50, p90, p99 (ms) and failed."""
    output = subprocess.run(
        ["wrk", f"-t{threads}", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", SCRIPT, url, "--", mode,
         str(body_file), str(salt)], capture_output=True, text=True, check=True, timeout=seconds + 60).stdout
    line = next(line for line in output.splitlines() if line.startswith("RESULT "))
    result = json.loads(line.removeprefix("RESULT "))
    return {**result, "rate": result["requests"] / result["seconds"]}


class Client:
    """One kept-alive connection that sends JSON and reads answers, plain or chunked."""

    def __init__(self, port):
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()

    def send(self, path, body=None, method="POST"):
        """Send a request without waiting for its answer."""
        data = b"" if body is None else json.dumps(body).encode()
        head = (f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(data)}\r\n\r\n")
        self._socket.sendall(head.encode() + data)

    def ask(self, path, body=None, method="POST"):
        """Send a request, read its answer; (seconds, status, body)."""
        started = time.perf_counter()
        self.send(path, body, method)
        status, data, _ = self._read()
        return time.perf_counter() - started, status, data

    def stream(self, path, body):
        """Send a request for a stream; (seconds to each event, one value an event)."""
        started = time.perf_counter()
        self.send(path, body)
        status, data, arrivals = self._read(b'"done":')
        if status != 200:
            raise RuntimeError(f"{path} answered {status}: {data[:200]!r}")
        return [moment - started for moment in arrivals]

    def _read(self, mark=None):
        data, arrivals, seen = b"", [], 0
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"]) if b"content-length" in fields else None
        while True:
            if mark:
                found = body.count(mark)
                arrivals += [time.perf_counter()] * (found - seen)
                seen = found
            if len(body) >= length if length is not None else body.endswith(b"\r\n0\r\n\r\n") or body == b"0\r\n\r\n":
                return int(head[9:12]), body, arrivals
            body += self._more()

    def _more(self):
        data = self._socket.recv(65536)
        if not data:
            raise ConnectionError("the server closed the connection")
        return data


def fleet(count, work):
    """Run ``work(number)`` in ``count`` threads that begin together; (seconds, results). Raises the first failure."""
    results, barrier = [None] * count, threading.Barrier(count + 1)

    def run(number):
        barrier.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait()
    started = time.perf_counter()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - started
    for result in results:
        if isinstance(result, Exception):
            raise result
    return seconds, results


@contextlib.contextmanager
def waiting(server, count):
    """Send ``count`` requests with new prompts, whose answers are not read before the block ends."""
    with contextlib.ExitStack() as stack:
        for number in range(count):
            client = stack.enter_context(Client(server.port))
            client.send(server.path, server.body(f"Who waits? {number}"))
        yield


def percentile(values, percent):
    """The smallest value that ``percent`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]
