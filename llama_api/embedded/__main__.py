"""Start the embedded Ollama: ``python -m llama_api.embedded --port 11434``."""
from __future__ import annotations

import argparse
import contextlib
import os
import pathlib
import signal
import sys
import threading
import time

from .model import Model, find_file
from .server import Handler, Listener


def read_arguments() -> argparse.Namespace:
    """Read the command line; an invalid one ends the process with the usage."""
    parser = argparse.ArgumentParser(prog="python -m llama_api.embedded", description="A small stand-in for Ollama.")
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on")
    add("--port", type=int, required=True, help="0 picks a free one")
    add("--model-file", type=pathlib.Path, help="a GGUF file in place of SmolLM2's")
    add("--threads", type=int, help="of the engine; by default one less than there are cores")
    add("--parallel", type=int, default=1, help="answers generated at once")
    add("--parent", type=int, metavar="PID", help="the process that starts this one; end when it does")
    return parser.parse_args()


def main() -> None:
    """Load the model and serve until a signal arrives or the parent process ends."""
    arguments = read_arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Exit at once without cleanup: none is needed, and in it llama.cpp crashes while a generation runs.
        signal.signal(number, lambda *_: os._exit(0))
    try:
        listener = Listener((arguments.host, arguments.port), Handler)
    except OSError as error:
        sys.exit(f"Cannot listen on {arguments.host}:{arguments.port} ({error.strerror}): choose another --port.")
    try:
        listener.model = Model(arguments.model_file or find_file(), arguments.parallel, arguments.threads)
    except (OSError, RuntimeError) as error:
        sys.exit(f"No model to answer with: {error}. `make clean setup` installs what is needed.")
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    address = f"http://{arguments.host}:{listener.server_address[1]}"
    with contextlib.suppress(BrokenPipeError):  # the reader may have ended in the meantime
        print(f"{address} {listener.model.name} is ready, a small stand-in and not Llama 3", flush=True)
    while arguments.parent in (None, os.getppid()):
        time.sleep(0.5)
    os._exit(0)


if __name__ == "__main__":
    main()
