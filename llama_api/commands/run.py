"""``make run``: serve in the foreground, with the embedded model if no Ollama answers."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click

from ..errors import OllamaError
from ..ollama import OllamaClient
from ..settings import PREFIX, OllamaHost, Settings, SettingsError
from ..waiting import Watchdog
from .address import Address
from .client import INTERRUPTED

EMBEDDED_MODEL = "smollm2:135m"
PROBE_SECONDS = 2.0


@click.command()
def run() -> None:
    """Serve in the foreground, with the embedded model if no Ollama answers."""
    try:
        settings = Settings.from_env()
        address = Address.of(settings)
        if fault := address.fault():
            sys.exit(f"llama_api does not start: {fault}, as in {PREFIX}BIND=127.0.0.1:8001 make run")
        if not _announce_ollama(settings):
            os.environ[PREFIX + "OLLAMA_URL"] = _start_embedded()
            os.environ[PREFIX + "MODEL"] = EMBEDDED_MODEL
    except SettingsError as error:
        sys.exit(f"llama_api does not start: {error}")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    keys = bool(settings.keys)
    print(f"Serving on {address.bind}; try:\n  {example(address, keys)}\n{clients(address, keys)}Ctrl-C ends it.",
          flush=True)
    gunicorn = Path(sys.executable).with_name("gunicorn")  # run by this Python, as a moved venv breaks its first line
    os.execv(sys.executable, [sys.executable, str(gunicorn), "-c", "python:llama_api.server.gunicorn_conf",
                              "llama_api.wsgi:app"])


def _announce_ollama(settings: Settings) -> bool:
    """Print whether an Ollama answers, and how to pull the model."""
    if not any(_answers(host, settings) for host in settings.ollamas):
        print("No Ollama answers at OLLAMA_URL. In its place a small stand-in model runs on this machine: real text,"
              f"\nbut of {EMBEDDED_MODEL} and NOT of Llama 3. For Llama 3: install Ollama,"
              f" `ollama pull {settings.model}`, and run this again.", flush=True)
        return False
    print(f"Ollama answers; the model is {settings.model}. Should it be missing: `ollama pull {settings.model}`.",
          flush=True)
    return True


def _answers(host: OllamaHost, settings: Settings) -> bool:
    try:
        OllamaClient(host.url, settings, Watchdog()).version(PROBE_SECONDS)
    except OllamaError:
        return False
    return True


def _start_embedded() -> str:
    """Start the embedded model, which ends with this process, and return its URL."""
    command = [sys.executable, "-m", "llama_api.embedded", "--port", "0", "--parent", str(os.getpid())]
    # Its own process group keeps Ctrl-C from it: gunicorn ends first, and then the model follows.
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


def example(address: Address, keys: bool) -> str:
    """An example call, with a placeholder for the key if ``keys`` are required."""
    key = " -H 'Authorization: Bearer KEY'" if keys else ""
    over = f" --unix-socket {shlex.quote(address.path)}" if address.path else " -k" if address.tls else ""
    return (f"curl -s{over} {address.url}/generate{key} -H 'Content-Type: application/json'"
            " -d '{\"prompt\": \"Why is the sky blue?\"}'")


def clients(address: Address, keys: bool) -> str:
    """How to point OpenAI's and Ollama's clients here; empty for a Unix socket."""
    if address.path:
        return ""
    key = "KEY" if keys else "any"
    return (f"OpenAI's client:   OpenAI(base_url=\"{address.url}/v1\", api_key=\"{key}\")\n"
            f"Ollama's client:   Client(host=\"{address.url}\")\n"
            f"In a browser:      {address.url}/\n")
