"""``make run``: the service in the foreground, with the embedded model behind it where no Ollama answers."""

import os
import socket
import subprocess
import sys
from pathlib import Path

from .concurrency import Watchdog
from .ollama import OllamaClient
from .ollama_protocol import OllamaError
from .settings import PREFIX, Settings, SettingsError

EMBEDDED_MODEL = "smollm2:135m"
PROBE_SECONDS = 2.0


def main() -> None:
    """Check what can be checked, choose the model, and become gunicorn."""
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        sys.exit(f"llama_api does not start: {error}")
    _require_free(settings.bind)
    if not _announce_ollama(settings):
        os.environ[PREFIX + "OLLAMA_URL"] = _start_embedded()
        os.environ[PREFIX + "MODEL"] = EMBEDDED_MODEL
    print(f"Serving on {settings.bind}; try:\n  curl -s {_base_url(settings.bind)}/generate"
          " -H 'Content-Type: application/json' -d '{\"prompt\": \"Why is the sky blue?\"}'\nCtrl-C ends it.",
          flush=True)
    gunicorn = Path(sys.executable).with_name("gunicorn")
    os.execv(gunicorn, [str(gunicorn), "wsgi:app"])


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
    client = OllamaClient(settings, Watchdog())
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
    command = [sys.executable, "-m", "llama_api.embedded", "--port", "0", "--exit-with-parent"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    url = next((word.rstrip(",;:.") for word in line.split() if word.startswith("http://")), None)
    if url is None:
        process.wait()
        sys.exit("The stand-in model did not start; run `make setup` again, or start Ollama.")
    print(line, flush=True)
    return url


def _base_url(bind: str) -> str:
    return "http://" + bind.replace("0.0.0.0", "127.0.0.1")


if __name__ == "__main__":
    main()
