"""``pull``: have each Ollama pull the model, showing the progress."""

import json
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import click
import requests

from ..errors import OllamaUntrusted
from ..settings import PREFIX, OllamaHost, ca_bundle
from .client import INTERRUPTED, could_not_connect, settings, tell

CONNECT_SECONDS, SILENCE_SECONDS = 5.0, 300.0  # Ollama reports its progress many times a second


@click.command()
def pull() -> None:
    """Have each Ollama pull the model, showing the progress.

    A failure is reported, and the next Ollama is still tried.
    """
    chosen = settings()
    failed = 0
    try:
        for host in chosen.ollamas:
            try:
                _pull(host, chosen.model)
            except click.ClickException as error:
                failed += 1
                tell(f"Error: {error.message}")
    except KeyboardInterrupt:
        tell("Interrupted; run it again to continue.")
        sys.exit(INTERRUPTED)
    sys.exit(1 if failed else 0)


def _pull(host: OllamaHost, model: str) -> None:
    """Pull ``model`` at ``host``. Raises ClickException with Ollama's error message."""
    click.echo(f"{host.name}: pulling {model}")
    layers = Layers()
    status = ""
    try:
        for record in _records(host, model):
            if "error" in record:
                raise click.ClickException(f"{host.name} cannot pull {model}: {record['error']}")
            status = str(record.get("status", ""))
            layers.note(record)
    finally:
        layers.finish()
    if status != "success":
        raise click.ClickException(f"{host.name} broke off while pulling {model}; run it again to continue.")
    click.echo(f"{host.name}: {model} is complete")


def _records(host: OllamaHost, model: str) -> Iterator[dict[str, Any]]:
    """The progress records of a pull, which just end if the connection breaks."""
    begun = False
    with requests.Session() as session:
        session.trust_env = False  # ignore proxies from the environment
        try:
            with session.post(f"{host.url}/api/pull", json={"model": model}, stream=True,
                              timeout=(CONNECT_SECONDS, SILENCE_SECONDS), verify=ca_bundle()) as answer:
                for line in filter(None, answer.iter_lines()):
                    record = json.loads(line)
                    if not isinstance(record, dict):
                        raise ValueError
                    begun = True
                    yield record
        except (OSError, ValueError) as error:
            if isinstance(error, requests.exceptions.SSLError) or type(error) is OSError:  # no such bundle
                raise click.ClickException(f"{host.name}: {OllamaUntrusted()}") from None
            if isinstance(error, requests.RequestException) and could_not_connect(error):
                raise click.ClickException(f"No server answers at {host.name}; start Ollama there with `ollama serve`,"
                                           f" or correct {PREFIX}OLLAMA_URL.") from None
            if not begun:
                raise click.ClickException(f"{host.name} did not answer like an Ollama ({type(error).__name__}); check"
                                           f" {PREFIX}OLLAMA_URL.") from None


class Layers:
    """The progress of all layers as one bar: bytes, rate and time left."""

    def __init__(self) -> None:
        self._layers: dict[str, tuple[int, int]] = {}  # by digest: bytes in total, and bytes pulled
        self._bar: Any = None
        self._started = time.monotonic()
        self._before = 0  # bytes present at the start

    def note(self, record: dict[str, Any]) -> None:
        """Process one progress record."""
        digest, total, done = record.get("digest"), record.get("total"), record.get("completed", 0)
        if not (isinstance(digest, str) and isinstance(total, int) and isinstance(done, int) and total > 0):
            return
        done = min(done, total)
        if digest not in self._layers:
            self._before += done
        self._layers[digest] = (total, done)
        if self._bar is None:
            self._bar = click.progressbar(length=total, label="  ", show_percent=True, show_eta=False,
                                          item_show_func=lambda _: self.text())
            self._bar.__enter__()
        self._bar.length = sum(size for size, _ in self._layers.values())
        self._bar.update(self.done - self._bar.pos)

    @property
    def done(self) -> int:
        """Bytes pulled."""
        return sum(done for _, done in self._layers.values())

    def text(self) -> str:
        """The progress: bytes, rate, time left."""
        total = sum(size for size, _ in self._layers.values())
        rate = (self.done - self._before) / max(time.monotonic() - self._started, 1e-3)
        left = f"  {timedelta(seconds=round((total - self.done) / rate))} left" if rate > 0 else ""
        return f"{_megabytes(self.done)} of {_megabytes(total)}  {_megabytes(rate)}/s{left}"

    def finish(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


def _megabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
