"""Take the README's picture of the page: ``python -m tests.page.picture docs/page.webp``.

It takes as long as the period that the page shows, as the figures are those of a real run: callers ask new and old
questions of two workers in front of the embedded model, which is down for a while.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.support.chromium import chromium
from tests.support.gunicorn_server import free_port, servers
from tests.support.page import ask

MINUTES = 15.5
OUTAGE = 0.55, 0.6  # from when to when, as shares of the run
CALLERS, TOKENS = 5, 40
SUBJECTS = "rain snow wind tides stars iron bread bees rivers glass salt clocks maps bridges tea ink".split()


def main():
    """Run the callers, look at the page, save what it shows."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("path", type=Path)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    options = parser.parse_args()
    seconds, port = 60 * options.minutes, free_port()
    with tempfile.TemporaryDirectory() as name, servers(Path(name)) as serve, ExitStack() as run:
        with _model(port):
            api = serve(ollama_url=f"http://127.0.0.1:{port}", model="smollm2:135m", workers=2,
                        cache_url=f"sqlite:///{name}/answers.db", cache_max_bytes=200_000)
            run.enter_context(_callers(api))
            time.sleep(seconds * OUTAGE[0])
        time.sleep(seconds * (OUTAGE[1] - OUTAGE[0]))
        with _model(port):
            time.sleep(seconds * (1 - OUTAGE[1]))
            with chromium(Path(name)) as browser, browser.tab() as tab:
                _picture(tab, api, options.path)


@contextmanager
def _model(port):
    """The embedded model, listening on ``port``."""
    command = [sys.executable, "-m", "llama_api.embedded", "--port", str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            process.stdout.readline()  # when it is ready
            yield
        finally:
            process.terminate()


@contextmanager
def _callers(api):
    """Callers that ask one question after another until the block ends."""
    over = threading.Event()
    callers = [threading.Thread(target=_call, args=(api, over, number)) for number in range(CALLERS)]
    for caller in callers:
        caller.start()
    try:
        yield
    finally:
        over.set()
        for caller in callers:
            caller.join()


def _call(api, over, number):
    """Ask old and new questions, at a pace that comes and goes."""
    chooser, started = random.Random(number), time.monotonic()
    while not over.wait(chooser.expovariate(0.9 if (time.monotonic() - started) % 240 < 150 else 0.35)):
        rank = int(chooser.paretovariate(0.6))
        question = f"What is {SUBJECTS[rank % len(SUBJECTS)]} good for, by {rank} examples?"
        api.ask(question, max_tokens=TOKENS, timeout=90)


def _picture(tab, api, path):
    tab.resize(1280, 1080)
    tab.call("Page.navigate", url=f"{api.url}/")
    tab.until("document.querySelectorAll('#requests tr').length > 20")
    ask(tab, "Explain in some sentences why the sky is blue.")
    tab.until("document.querySelectorAll('#flights tr').length")
    tab.screenshot(path, whole=False)


if __name__ == "__main__":
    main()
