"""``cache stats|clear|warm``: the cache of the running server."""

import sys
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import click
import requests

from ..errors import MalformedJSON
from ..settings import PREFIX
from ..strict_json import parse_object
from .client import INTERRUPTED, Server, could_not_connect, object_of, problem, settings, tell

NOTED_SECONDS = 5.0  # a longer wait is reported
BUSY = {"/problems/rate-limited", "/problems/overloaded"}  # no fault of the line, which is sent again later


@click.group()
def cache() -> None:
    """Inspect, clear or fill the cache of the running server."""


@cache.command()
def stats() -> None:
    """Show the content and the use of the cache."""
    for name, value in _server().call("GET", "/cache").items():
        click.echo(f"{name:12} {value}")


@cache.command()
def clear() -> None:
    """Remove every answer."""
    _server().call("DELETE", "/cache")
    click.echo("The cache is empty.")


@cache.command()
@click.argument("file")
def warm(file: str) -> None:
    """Generate the answers to the lines of FILE (- for standard input) in advance.

    Each line is a prompt or a JSON object, the body of a request. A line that fails is reported and skipped. After an
    interruption, run it again to continue: answers in the cache are not generated again.
    """
    lines = _lines(file)
    server = _server()
    room = server.call("GET", "/cache")["max_entries"]
    if len(lines) > room:
        tell(f"The cache has room for {room} answers, but there are {len(lines)} lines: raise the server's"
             f" {PREFIX}CACHE_MAX_ENTRIES.")
    pace, end, status = Pace(len(lines)), "", 0
    try:
        with click.progressbar(lines, label="warming", show_pos=True, show_eta=False, item_show_func=pace.text) as bar:
            for number, line in bar:
                outcome, fault = warm_one(server, number, line)
                pace.note(outcome)
                if fault:
                    tell(f"line {number}: {fault}")
    except KeyboardInterrupt:
        end, status = "Interrupted; run it again to continue.", INTERRUPTED
    except click.ClickException as error:
        end, status = f"Error: {error.message} Then run it again to continue.", 1
    click.echo(pace.summary())
    if end:
        click.echo(end, err=True)
    sys.exit(status or int(pace.counts["failed"] > 0))


def _lines(path: str) -> list[tuple[int, bytes]]:
    """The non-blank lines of a file with their numbers. Raises ClickException."""
    try:
        with click.open_file(path, "rb") as file:
            return [(number, line.strip()) for number, line in enumerate(file, 1) if line.strip()]
    except OSError as error:
        raise click.ClickException(f"The file {path} cannot be read: {error.strerror}.") from None


def _server() -> Server:
    """The service; a word of warning where it has more caches than the one that will answer."""
    chosen = settings()
    if chosen.workers > 1 and chosen.cache_url == "memory://":
        tell(f"Each of the {chosen.workers} workers has a cache of its own, and one of them answers: set"
             f" {PREFIX}CACHE_URL to share one.")
    return Server(chosen)


class Pace:
    """How many of ``total`` lines are done, and from that how fast it goes and how long it will take."""

    def __init__(self, total: int):
        self.counts: Counter[str] = Counter()
        self._total = total
        self._spent: Counter[str] = Counter()
        self._started = self._last = time.monotonic()

    def note(self, outcome: str) -> None:
        """Count a finished line: generated, cached or failed."""
        now = time.monotonic()
        self.counts[outcome] += 1
        self._spent[outcome] += now - self._last  # type: ignore[assignment]
        self._last = now

    @property
    def left(self) -> int:
        """The number of unfinished lines."""
        return self._total - self.counts.total()

    def text(self, _: Any = None) -> str | None:
        """The rate and the time left, assuming that the lines left must be generated if any had to be."""
        if not self.counts:
            return None
        generated = self.counts["generated"]
        each = self._spent["generated"] / generated if generated else self._spent.total() / self.counts.total()
        rate = 1 / max(each, 1e-6)
        return (f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min") + (
            f"  {timedelta(seconds=round(each * self.left))} left")

    def summary(self) -> str:
        """The counts of all outcomes."""
        counts = self.counts
        return (f"{self._total} lines: {counts['generated']} generated, {counts['cached']} were cached,"
                f" {counts['failed']} failed, {self.left} left; {time.monotonic() - self._started:.1f} s")


def warm_one(server: Server, number: int, line: bytes) -> tuple[str, str | None]:
    """Send one line; returns its outcome (cached, generated, failed) and the fault, if any."""
    try:
        text = line.decode("utf-8-sig")
        body = parse_object(text.encode()) if text.startswith("{") else {"prompt": text}
    except UnicodeDecodeError as error:
        return "failed", f"it is not UTF-8 ({error.reason} at byte {error.start})"
    except MalformedJSON as error:
        return "failed", f"it is not one JSON object: {error.args[0]}"
    while True:
        try:
            answer = server.generate({**body, "stream": False})
        except requests.RequestException as error:
            if could_not_connect(error) or isinstance(error, requests.exceptions.SSLError):
                raise server.unreachable(error) from None
            return "failed", f"no answer: {type(error).__name__}"
        reply = object_of(answer)
        if answer.ok and "cached" in reply:
            return ("cached" if reply["cached"] else "generated"), None
        if str(reply.get("type")) not in BUSY:
            return "failed", problem(answer, reply)
        pause = float(answer.headers.get("Retry-After", 1))
        if pause > NOTED_SECONDS:
            tell(f"line {number}: {reply['detail']} Waiting {pause:g} s.")
        time.sleep(pause)
