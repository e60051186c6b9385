"""The service as it is run, gunicorn on a free loopback port, and a client that sees every byte of it."""

import http.client
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parent.parent.parent
GUNICORN = Path(sys.executable).with_name("gunicorn")
JSON = {"Content-Type": "application/json"}
PATIENCE = 20.0  # seconds that a test waits for what must come
_numbers = itertools.count(1)


def until(condition, seconds=PATIENCE, what="it"):
    """Poll ``condition`` until it is true and return its value; the last look is not before ``seconds`` have passed.

    What takes long is looked at less often, down to ten times a second: a look may cost the service a request.
    """
    started = time.monotonic()
    while True:
        waited = time.monotonic() - started
        if value := condition():
            return value
        assert waited < seconds, f"{what} did not come to be within {seconds:g} s"
        time.sleep(min(max(0.01, waited / 20), 0.1))


def together(count, call):
    """Call ``call(n)`` for n below ``count``, each in a thread of its own, all at once; return the results in order."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


def new_prompt(markers=""):
    """A prompt that no test has used before; ``markers`` are those of the double."""
    return f"Question {next(_numbers)}? {markers}".strip()


def free_port():
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass(frozen=True)
class Reply:
    """A whole response; ``headers`` find a name in any case."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes
    seconds: float

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def slug(self):
        """The slug of a problem; the problem itself must be whole."""
        problem = self.json
        assert self.headers["Content-Type"] == "application/problem+json", self.headers["Content-Type"]
        assert problem["status"] == self.status and problem["request_id"] == self.headers["X-Request-ID"]
        assert {"type", "title", "status", "detail", "instance", "request_id"} <= problem.keys()
        assert (problem.keys() - {"errors"} == problem.keys()) != ("errors" in problem)
        return problem["type"].removeprefix("/problems/")

    @property
    def text(self):
        """The text of an answer, plain or streamed."""
        if self.headers["Content-Type"].startswith("text/event-stream"):
            return "".join(data["response"] for event, data in self.events if event == "message")
        return self.json["response"]

    @property
    def events(self):
        """The server-sent events, as pairs of their name and their data; comments are none."""
        blocks = self.body.split(b"\n\n")[:-1]
        return [read_event(block.split(b"\n")) for block in blocks if not block.startswith(b":")]

    @property
    def cache(self):
        """The value of Cache-Status."""
        return self.headers["Cache-Status"]


def read_event(lines):
    """The name and the data of a server-sent event."""
    fields = dict(line.decode().split(": ", 1) for line in lines)
    assert fields.keys() <= {"event", "data"}, fields
    return fields.get("event", "message"), json.loads(fields["data"])


class Exchange:
    """A request that is under way: ``head`` it has, the body is read event by event. Close it to leave."""

    def __init__(self, connection):
        self._connection = connection
        self._response = None

    @property
    def head(self):
        """The response's status and headers, as soon as they come."""
        self._response = self._response or self._connection.getresponse()
        return self._response

    def event(self):
        """The next server-sent event, past what says that a wait goes on; None at the end."""
        while True:
            lines = []
            while line := self.head.readline().rstrip(b"\n"):
                lines.append(line)
            if not lines or not lines[0].startswith(b":"):
                return read_event(lines) if lines else None

    def read(self):
        """The rest of the body."""
        return self.head.read()

    def close(self):
        if self._response is not None:
            self._response.close()
        self._connection.close()

    def __enter__(self):
        return self

    def __exit__(self, *details):
        self.close()


class Server:
    """A gunicorn with this service; ``settings`` are LLAMA_API_* without the prefix, in lower case, and ``workers``."""

    application = "wsgi:app"

    def __init__(self, directory, settings):
        self.directory = Path(directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = self.directory / "api.log"
        self.settings = {"bind": f"127.0.0.1:{self.port}", "log_file": self.log_path, **settings}
        self.arguments = []  # of gunicorn's command line
        self.variables = {}  # of the environment, as they are
        self.machine = self.directory.parent  # where all servers of a test share the slots of a double
        self.root = ROOT  # of the source that is run
        self.tls = None  # the client's context, for a server that speaks TLS
        self.process = None

    @property
    def environment(self):
        """The environment of the process: ours, without what would change the service."""
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("LLAMA_API_", "PROMETHEUS_", "GUNICORN_", "WEB_CONCURRENCY"))}
        return {**kept, "TMPDIR": str(self.directory), "RUNTIME_DIRECTORY": str(self.machine), **self.variables, **{
            "WEB_CONCURRENCY" if name == "workers" else f"LLAMA_API_{name.upper()}": str(value)
            for name, value in self.settings.items()}}

    def spawn(self):
        """Start the process; what it prints is appended to two files."""
        with open(self.directory / "stdout", "ab") as out, open(self.directory / "stderr", "ab") as err:
            self.process = subprocess.Popen(
                [sys.executable, GUNICORN, *map(str, self.arguments), self.application], cwd=self.root,
                stdout=out, stderr=err, env=self.environment, start_new_session=True)

    def start(self):
        """Start the process and wait until every worker answers."""
        self.spawn()
        until(self._answers, what="the service")
        workers = self.settings.get("workers", 1)
        until(lambda: self.stderr.count("Booting worker") >= workers or self.process.poll() is not None)
        return self

    def _answers(self):
        assert self.process.poll() is None, self.stderr
        try:
            return self.get("/livez", timeout=5).status == 200
        except OSError:
            return False

    # Requests

    def open(self, method, path, body=None, headers=None, timeout=PATIENCE):
        """Send a request and return its Exchange."""
        if self.tls is None:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        else:
            connection = http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=self.tls)
        try:
            connection.request(method, path, body, headers or {})
        except BaseException:
            connection.close()
            raise
        return Exchange(connection)

    def request(self, method, path, body=None, headers=None, timeout=PATIENCE):
        """Send a request and return its whole Reply."""
        started = time.monotonic()
        with self.open(method, path, body, headers, timeout) as exchange:
            head = exchange.head
            return Reply(head.status, head.headers, exchange.read(), time.monotonic() - started)

    def get(self, path, **options):
        return self.request("GET", path, **options)

    def open_ask(self, prompt, headers=None, timeout=PATIENCE, **fields):
        """Send a prompt and return its Exchange; underscores in names of ``headers`` are not changed."""
        body = json.dumps({"prompt": prompt, **fields})
        return self.open("POST", "/generate", body, {**JSON, **(headers or {})}, timeout)

    def ask(self, prompt, headers=None, timeout=PATIENCE, **fields):
        """Send a prompt and return the whole Reply."""
        body = json.dumps({"prompt": prompt, **fields})
        return self.request("POST", "/generate", body, {**JSON, **(headers or {})}, timeout)

    def ask_raw(self, body, headers=None, **options):
        """Send ``body`` to /generate as it is."""
        return self.request("POST", "/generate", body, JSON if headers is None else headers, **options)

    def send_raw(self, data, timeout=PATIENCE):
        """A socket on which ``data`` has been sent. Close it."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout)
        client.sendall(data)
        return client

    # its reports

    @property
    def stdout(self):
        return (self.directory / "stdout").read_text()

    @property
    def stderr(self):
        return (self.directory / "stderr").read_text()

    @property
    def records(self):
        """The records of the log file, those of requests and the others."""
        if not self.log_path.exists():
            return []
        lines = self.log_path.read_text().split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def _records_with(self, request_id):
        """The records of one request; the log is too long to parse it all each time."""
        text = self.log_path.read_text() if self.log_path.exists() else ""
        word = f'"request_id":"{request_id}"'
        return [json.loads(line) for line in text[:text.rfind("\n") + 1].split("\n") if word in line]

    def record_of(self, reply):
        """The log record of a reply; there must be one and no more."""
        request_id = reply if isinstance(reply, str) else reply.headers["X-Request-ID"]
        found = until(lambda: [record for record in self._records_with(request_id) if "status" in record])
        assert len(found) == 1
        return found[0]

    def metrics(self, **options):
        """The samples of /metrics: (name, label values in the order of the labels' names ...) to a number."""
        text = self.get("/metrics", **options).body.decode()
        return {(sample.name.removeprefix("llama_api_"), *(value for _, value in sorted(sample.labels.items()))):
                sample.value
                for family in text_string_to_metric_families(text) for sample in family.samples}

    def total(self, name, **options):
        """The sum of all samples of a metric."""
        return sum(value for key, value in self.metrics(**options).items() if key[0] == name)

    def health(self):
        return self.get("/health").json

    # Its life

    @property
    def workers(self):
        """The ids of the worker processes."""
        return [child.pid for child in psutil.Process(self.process.pid).children()]

    @property
    def figures(self):
        """The directories of the figures that workers share: one for each master."""
        return {Path(path).parent for child in psutil.Process(self.process.pid).children(recursive=True)
                for path in re.findall(r"/\S+\.db$", Path(f"/proc/{child.pid}/maps").read_text(), re.MULTILINE)}

    def signal(self, number):
        """Send a signal to the master."""
        os.kill(self.process.pid, number)

    def stop(self, seconds=30.0):
        """End it by SIGTERM: it exits with status 0 and leaves no process behind."""
        if self.process is None:
            return
        self.process.terminate()
        self.wait(seconds)

    def wait(self, seconds=30.0):
        """Wait for the end that a SIGTERM has brought about."""
        process, self.process = self.process, None
        try:
            assert process.wait(seconds) == 0, self.stderr
            until(lambda: not _group_lives(process.pid), PATIENCE, "the end of every worker")
        finally:
            _kill_group(process.pid)
            process.wait()

    def kill(self):
        """End it, workers too, as a power cut would; what they had in memory is lost."""
        memory = set()
        with suppress(psutil.NoSuchProcess, OSError):  # it may have died before
            memory = self.figures
        process, self.process = self.process, None
        _kill_group(process.pid)
        process.wait()
        until(lambda: not _group_lives(process.pid), PATIENCE, "the end of every worker")
        for directory in memory:
            shutil.rmtree(directory)

    def assert_clean(self):
        """No fault of its own has shown up anywhere."""
        assert "Traceback" not in self.stderr, self.stderr
        stacks = [record for record in self.records if "stack" in record]
        assert not stacks, stacks[0]["stack"]


def _group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def _kill_group(group):
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        pass


@contextmanager
def servers(directory):
    """A factory of servers under ``directory``; at the end each one stops, and must do so well."""
    made = []

    def serve(double=None, start=True, **settings):
        if double is not None:
            settings.setdefault("ollama_url", double.url)
        server = Server(directory / f"server{len(made)}", settings)
        made.append(server)
        return server.start() if start else server

    try:
        yield serve
    finally:
        failures = []
        for server in made:
            if server.process is not None:
                server.process.terminate()  # all at once; stop() then waits for each
        for server in made:
            try:
                if server.process is not None:
                    server.wait()
                server.assert_clean()
            except (AssertionError, subprocess.TimeoutExpired) as failure:
                failures.append(failure)
    if failures:
        raise failures[0]
