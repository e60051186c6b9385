"""Start the contenders as processes on free loopback ports, and end them by their ids."""

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

import psutil

from tests.support.double import DoubleRemote

ROOT = pathlib.Path(__file__).parent.parent
GUNICORN = [sys.executable, "-m", "gunicorn"]
MODEL = "llama3:8b"
DIRECT, NAIVE = "upstream, direct", "naive Flask view"
NGINX = """
worker_processes 1; error_log {home}/error.log; pid {home}/pid; {user}
events {{ worker_connections 2048; }}
http {{
  access_log off; client_body_buffer_size 1m; client_max_body_size 1m; keepalive_requests 100000000;
  client_body_temp_path {home}/body; proxy_temp_path {home}/temp;
  proxy_cache_path {home}/cache keys_zone=answers:64m max_size=1g inactive=1h;
  upstream model {{ server 127.0.0.1:{upstream}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port} backlog=1024;
    location / {{
      proxy_pass http://model; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_cache answers; proxy_cache_methods POST; proxy_cache_key $request_body; proxy_cache_valid 200 1h;
      proxy_cache_lock on; proxy_cache_lock_timeout 60s; proxy_read_timeout 60s;
    }}
    location /stream/ {{
      proxy_pass http://model/; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
    }}
  }}
}}
"""


@dataclass
class Server:
    """A server that answers POST ``path`` on ``port``; ``body(prompt, **more)`` makes a request for it."""

    name: str
    port: int
    path: str
    process: subprocess.Popen
    home: pathlib.Path
    ollama: bool = False  # speaks Ollama's protocol, not ours

    @property
    def url(self):
        """The URL for wrk."""
        return f"http://127.0.0.1:{self.port}{self.path}"

    def body(self, prompt, stream=False):
        """The request for ``prompt``; Ollama gets what the service would send to it."""
        if self.ollama:
            return {"model": MODEL, "prompt": prompt, "stream": stream, "truncate": False,
                    "options": {"num_predict": 100, "temperature": 0.7}}
        return {"prompt": prompt, **({"stream": True} if stream else {})}

    def body_file(self, prompt):
        """A file with the request for ``prompt``, for wrk."""
        path = self.home / "request.json"
        path.write_text(json.dumps(self.body(prompt)))
        return path

    def rss(self):
        """Bytes of memory of the largest process."""
        return max(one.memory_info().rss for one in self._family())

    def pss(self):
        """Bytes of memory of all processes, shared pages counted once."""
        return sum(one.memory_full_info().pss for one in self._family())

    def cpu_seconds(self):
        """Seconds of processor time of the workers so far, or of the one process that there is."""
        parent, *workers = self._family()
        return sum(times.user + times.system for times in (one.cpu_times() for one in workers or [parent]))

    def _family(self):
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]


def free_port():
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_up(port, process, path="/livez", seconds=20):
    """Wait for any answer from ``port`` and return its time (perf_counter)."""
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"{process.args} ended with {process.returncode}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", path)
            connection.getresponse().read()
            return time.perf_counter()
        except OSError:
            time.sleep(0.005)
        finally:
            connection.close()
    raise TimeoutError(f"{process.args} does not answer")


@contextlib.contextmanager
def _running(name, command, port, path, home, environ=None, ollama=False):
    """Run ``command`` with its output in files under ``home``; end it, by its id, on the way out."""
    home.mkdir(parents=True, exist_ok=True)
    clean = {key: value for key, value in os.environ.items()
             if not key.startswith(("LLAMA_API_", "WEB_CONCURRENCY", "PROMETHEUS_", "GUNICORN_"))}
    with open(home / "stdout", "wb") as out, open(home / "stderr", "wb") as err:
        process = subprocess.Popen(command, cwd=ROOT, env={**clean, **(environ or {})}, stdout=out, stderr=err)
    try:
        yield Server(name, port, path, process, home, ollama)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Stage:
    """All processes of one section: a context manager whose methods start contenders, all ended together."""

    def __init__(self):
        self._stack = contextlib.ExitStack()
        self.double = None
        self.processes = []  # of the upstreams

    def __enter__(self):
        self.home = pathlib.Path(tempfile.mkdtemp(prefix="bench-"))
        self._stack.callback(shutil.rmtree, self.home, ignore_errors=True)
        return self

    def __exit__(self, *_):
        self._stack.close()

    def _home(self):
        return pathlib.Path(tempfile.mkdtemp(dir=self.home))

    def _start(self, *arguments, **more):
        return self.enter(_running(*arguments, **more))

    def enter(self, resource):
        """Enter a context manager that ends with the stage, and return its value."""
        return self._stack.enter_context(resource)

    def upstream(self, **controls):
        """The double of Ollama with ``controls``; ``self.double`` steers it."""
        port = free_port()
        options = [f"--{name.replace('_', '-')}={value}" for name, value in {"slots": 1000, **controls}.items()]
        command = [sys.executable, "-m", "tests.support.double", f"--port={port}", *options]
        server = self._start(DIRECT, command, port, "/api/generate", self._home(), ollama=True)
        wait_until_up(port, server.process, "/")
        self.processes.append(server.process)
        self.double = DoubleRemote(f"http://127.0.0.1:{port}")
        return server

    def service(self, name="llama_api", workers=1, wait=True, **settings):
        """The service as shipped: log to file and stdout, metrics, ids, headers, validation."""
        port, home = free_port(), self._home()
        environ = {"LLAMA_API_BIND": f"127.0.0.1:{port}", "LLAMA_API_LOG_FILE": str(home / "api.log"),
                   "LLAMA_API_OLLAMA_URL": self.double.url, "LLAMA_API_MODEL": MODEL, "WEB_CONCURRENCY": str(workers),
                   **{f"LLAMA_API_{key.upper()}": str(value) for key, value in settings.items()}}
        server = self._start(name, [*GUNICORN, "wsgi:app"], port, "/generate", home, environ=environ)
        if wait:
            wait_until_up(port, server.process)
        return server

    def bare(self, application, answer, name, workers=1, worker=""):
        """One of the baselines of bare.py: it returns the bytes ``answer``, under the service's gunicorn settings."""
        home = self._home()
        (home / "body").write_bytes(answer)
        return self._baseline(name, f"benchmarks.bare:{application}", home, worker, workers,
                              BENCH_BODY=str(home / "body"))

    def naive(self):
        """The view of naive.py under gunicorn's own gevent worker: the baseline of a miss."""
        return self._baseline(NAIVE, "benchmarks.naive:app", self._home(), "gevent", 1,
                              BENCH_UPSTREAM=f"{self.double.url}/api/generate")

    def _baseline(self, name, application, home, worker, workers, **environ):
        port = free_port()
        environ |= {"LLAMA_API_BIND": f"127.0.0.1:{port}", "BENCH_WORKER": worker, "WEB_CONCURRENCY": str(workers)}
        command = [*GUNICORN, "-c", "benchmarks/bare.conf.py", application]
        server = self._start(name, command, port, "/generate", home, environ=environ)
        wait_until_up(port, server.process)
        return server

    def nginx(self, path="/api/generate"):
        """nginx before the upstream, caching by the request's body; None if nginx is not installed."""
        if not (program := shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")):
            return None
        return self._nginx("nginx", program, path, NGINX, upstream=self.double.port)

    def balancer(self, name, template, **values):
        """nginx with another configuration; None if nginx is not installed."""
        program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
        return self._nginx(name, program, "/api/generate", template, **values) if program else None

    def _nginx(self, name, program, path, template, **values):
        port, home = free_port(), self._home()
        (home / "nginx.conf").write_text(template.format(
            home=home, port=port, user="user root;" if os.geteuid() == 0 else "", **values))
        server = self._start(name, [program, "-p", str(home), "-c", str(home / "nginx.conf"), "-g", "daemon off;"],
                             port, path, home, ollama=True)
        wait_until_up(port, server.process, "/")
        return server
