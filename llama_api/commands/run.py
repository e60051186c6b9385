"""``make run``: the service in the foreground, with the embedded model behind it where no Ollama answers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import click

from ..waiting import Watchdog
from ..ollama import OllamaClient
from ..errors import OllamaError
from ..settings import PREFIX, Settings, SettingsError

EMBEDDED_MODEL = "smollm2:135m"
PROBE_SECONDS = 2.0
INTERRUPTED = 130  # the exit status that shells expect after a Ctrl-C


@click.command()
def run() -> None:
    """Serve in the foreground, with the embedded model where no Ollama answers."""
    try:
        settings = Settings.from_env()
        _require_free(settings.bind)
        if not _announce_ollama(settings):
            os.environ[PREFIX + "OLLAMA_URL"] = _start_embedded()
            os.environ[PREFIX + "MODEL"] = EMBEDDED_MODEL
    except SettingsError as error:
        sys.exit(f"llama_api does not start: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    print(f"Serving on {settings.bind}; try:\n  {_example(settings)}\n{_clients(settings)}Ctrl-C ends it.", flush=True)
    gunicorn = Path(sys.executable).with_name("gunicorn")  # by way of this Python: its first line breaks in a move
    os.execv(sys.executable, [sys.executable, str(gunicorn), "-c", "python:llama_api.server.gunicorn_conf",
                              "llama_api.wsgi:app"])


def _require_free(bind: str) -> None:
    if bind.startswith("unix:"):
        return
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            sys.exit(f"llama_api cannot listen on {bind} ({error.strerror}); end what uses the port,"
                     f" or choose another one: {PREFIX}BIND=127.0.0.1:8001 make run")


def _announce_ollama(settings: Settings) -> bool:
    """Tell whether an Ollama answers, and whether it has the model."""
    client = OllamaClient(settings.ollamas[0].url, settings, Watchdog())
    try:
        client.version(PROBE_SECONDS)
    except OllamaError:
        print("No Ollama answers at OLLAMA_URL. In its place a small stand-in model runs on this machine: real text,"
              f"\nbut of {EMBEDDED_MODEL} and NOT of Llama 3. For Llama 3: install Ollama,"
              f" `ollama pull {settings.model}`, and run this again.", flush=True)
        return False
    print(f"Ollama answers; the model is {settings.model}. Should it be missing: `ollama pull {settings.model}`.",
          flush=True)
    return True


def _start_embedded() -> str:
    """Start the embedded model, which ends with this process, and return its URL."""
    command = [sys.executable, "-m", "llama_api.embedded", "--port", "0", "--parent", str(os.getpid())]
    # A group of its own keeps a Ctrl-C from it: gunicorn ends first, and it sees that and follows.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, process_group=0)
    assert process.stdout is not None
    try:
        line = process.stdout.readline().strip()
    except KeyboardInterrupt:
        process.kill()
        raise
    url = line.partition(" ")[0]
    if not url:
        process.wait()
        sys.exit("The stand-in model did not start. Without it, llama_api needs an Ollama: run `ollama serve`.")
    print(line, flush=True)
    return url


def _example(settings: Settings) -> str:
    """A call to try."""
    where = settings.local_url
    if settings.bind.startswith("unix:"):
        where = f"--unix-socket {settings.bind.removeprefix('unix:')} http://localhost"
    key = " -H 'Authorization: Bearer KEY'" if settings.keys else ""
    return (f"curl -s {where}/generate{key} -H 'Content-Type: application/json'"
            " -d '{\"prompt\": \"Why is the sky blue?\"}'")


def _clients(settings: Settings) -> str:
    """How the clients of other APIs are pointed here."""
    if settings.bind.startswith("unix:"):
        return ""
    key = "KEY" if settings.keys else "any"
    return (f"OpenAI's client:   OpenAI(base_url=\"{settings.local_url}/v1\", api_key=\"{key}\")\n"
            f"Ollama's client:   Client(host=\"{settings.local_url}\")\n"
            f"In a browser:      {settings.local_url}/\n")
