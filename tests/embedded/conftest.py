"""The embedded Ollama as a process of its own: the real model, a real socket."""

import contextlib
import subprocess
import sys

import pytest
import requests

MODEL = "smollm2:135m"
COMMAND = [sys.executable, "-m", "llama_api.embedded", "--port", "0"]


@contextlib.contextmanager
def process(*command, **kwargs):
    """Start a command with its output in pipes; kill it at the end if it still runs."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kwargs) as started:
        try:
            yield started
        finally:
            started.kill()


def address_of(started):
    """The address of a started model, as ``host:port``."""
    return started.stdout.readline().split()[0].removeprefix("http://")


@pytest.fixture(scope="module")
def server():
    """The address of one process for all tests of a module; none of them may have left a word on its stderr."""
    pytest.importorskip("xllamacpp", reason="requirements-embedded.txt is not installed")
    with process(*COMMAND) as started:
        yield address_of(started)
        started.kill()
        assert started.stderr.read() == ""


@pytest.fixture
def post(server):
    """``post(path, body)`` sends a body as JSON, or bytes as they are."""
    def post(path, body, timeout=60):
        sent = {"data": body} if isinstance(body, bytes) else {"json": body}
        return requests.post(f"http://{server}{path}", timeout=timeout, **sent)
    return post


@pytest.fixture
def ask(post):
    """``ask(prompt, options={}, **fields)`` posts to /api/generate: plain, greedy and short by default."""
    def ask(prompt, timeout=60, options=(), **fields):
        options = {"temperature": 0, "num_predict": 8} | dict(options)
        return post("/api/generate", {"model": MODEL, "prompt": prompt, "stream": False, "options": options} | fields,
                    timeout)
    return ask


@pytest.fixture
def chat(post):
    """``chat(*messages, options={}, **fields)``, each ``(role, content)``, posts to /api/chat in the same way."""
    def chat(*messages, options=(), **fields):
        options = {"temperature": 0, "num_predict": 8} | dict(options)
        turns = [{"role": role, "content": content} for role, content in messages]
        return post("/api/chat", {"model": MODEL, "messages": turns, "stream": False, "options": options} | fields)
    return chat
