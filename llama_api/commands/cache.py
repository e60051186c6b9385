"""Commands for the operator: ``flask --app wsgi cache stats|clear|warm``. They ask the running server."""

import sys
import time
from collections import Counter
from datetime import timedelta
from typing import Any

import click
import requests
import urllib3

from ..errors import MalformedJSON
from ..strict_json import parse_object
from ..settings import PREFIX, Settings

cache = click.Group("cache", help="Look after the cache of the running server.")
SHORT_SECONDS = 10.0
NOTED_SECONDS = 5.0  # a wait longer than this is told
INTERRUPTED = 130  # the exit status that shells expect after a Ctrl-C
BUSY = {"/problems/rate-limited", "/problems/overloaded"}  # no fault of the line: it has its turn later


@cache.command()
def stats() -> None:
    """Tell what is in the cache and what it was good for."""
    for name, value in _call("GET", "/cache").items():
        click.echo(f"{name:12} {value}")


@cache.command()
def clear() -> None:
    """Remove every answer."""
    _call("DELETE", "/cache")
    click.echo("The cache is empty.")


@cache.command()
@click.argument("file", type=click.File("rb"))
def warm(file: Any) -> None:
    """Generate the answers to FILE (- for standard input) ahead of need.

    A line is a prompt, or a JSON object: the body of a request. A line that fails is reported and skipped. Run it again
    to go on after an interruption: what the cache holds already costs nothing.
    """
    room = _call("GET", "/cache")["max_entries"]
    lines = [(number, line.strip()) for number, line in enumerate(file, 1) if line.strip()]
    if len(lines) > room:
        _tell(f"The cache has room for {room} answers, and these are {len(lines)} lines: raise the server's"
              f" {PREFIX}CACHE_MAX_ENTRIES.")
    pace, end, status = Pace(len(lines)), "", 0
    try:
        with click.progressbar(lines, label="warming", show_pos=True, show_eta=False, item_show_func=pace.text) as bar:
            for number, line in bar:
                outcome, fault = _warm_one(number, line)
                pace.note(outcome)
                if fault:
                    _tell(f"line {number}: {fault}")
    except KeyboardInterrupt:
        end, status = "Interrupted; run it again to go on.", INTERRUPTED
    except click.ClickException as error:
        end, status = f"Error: {error.message} Then run it again to go on.", 1
    click.echo(pace.summary())
    if end:
        click.echo(end, err=True)
    sys.exit(status or int(pace.counts["failed"] > 0))


class Pace:
    """How many of ``total`` lines are done, and from that how fast it goes and how long it will take."""

    def __init__(self, total: int):
        self.counts: Counter[str] = Counter()
        self._total = total
        self._spent: Counter[str] = Counter()
        self._started = self._last = time.monotonic()

    def note(self, outcome: str) -> None:
        """Count a line that is done: generated, cached or failed."""
        now = time.monotonic()
        self.counts[outcome] += 1
        self._spent[outcome] += now - self._last  # type: ignore[assignment]
        self._last = now

    @property
    def left(self) -> int:
        """The number of lines that are not done."""
        return self._total - self.counts.total()

    def text(self, _: Any = None) -> str | None:
        """The rate and the time left; the lines left are taken for such that must be generated, if there were any."""
        if not self.counts:
            return None
        generated = self.counts["generated"]
        each = self._spent["generated"] / generated if generated else self._spent.total() / self.counts.total()
        rate = 1 / max(each, 1e-6)
        return (f"{rate:.1f}/s" if rate >= 1 else f"{60 * rate:.1f}/min") + (
            f"  {timedelta(seconds=round(each * self.left))} left")

    def summary(self) -> str:
        """What became of all lines."""
        counts = self.counts
        return (f"{self._total} lines: {counts['generated']} generated, {counts['cached']} were cached,"
                f" {counts['failed']} failed, {self.left} left; {time.monotonic() - self._started:.1f} s")


def _warm_one(number: int, line: bytes) -> tuple[str, str | None]:
    """Send one line; returns what became of it (cached, generated, failed) and the fault, if any."""
    try:
        text = line.decode("utf-8-sig")
        body = parse_object(text.encode()) if text.startswith("{") else {"prompt": text}
    except UnicodeDecodeError as error:
        return "failed", f"it is not UTF-8 ({error.reason} at byte {error.start})"
    except MalformedJSON as error:
        return "failed", f"it is not one JSON object: {error.args[0]}"
    settings = _settings()
    while True:
        try:
            answer = _send("POST", "/generate", settings.timeout + settings.queue_timeout + SHORT_SECONDS,
                           {**body, "stream": False})
        except requests.RequestException as error:
            if isinstance(error, requests.ConnectionError) and isinstance(
                    error.args[0], urllib3.exceptions.MaxRetryError):  # it could not even connect
                raise _unreachable() from None
            return "failed", f"no answer: {type(error).__name__}"
        reply = _object_of(answer)
        if answer.ok and "cached" in reply:
            return ("cached" if reply["cached"] else "generated"), None
        if str(reply.get("type")) not in BUSY:
            return "failed", _problem(answer, reply)
        seconds = float(answer.headers.get("Retry-After", 1))
        if seconds > NOTED_SECONDS:
            _tell(f"line {number}: {reply['detail']} Waiting {seconds:g} s.")
        time.sleep(seconds)


def _call(method: str, path: str) -> dict[str, Any]:
    """The object that the server answers; anything else becomes a sentence."""
    try:
        answer = _send(method, path, SHORT_SECONDS)
    except requests.RequestException:
        raise _unreachable() from None
    reply = _object_of(answer)
    if answer.status_code == 401:
        raise click.ClickException(f"The server wants an API key; set {PREFIX}API_KEYS or {PREFIX}API_KEYS_FILE as it"
                                   " was set for the server.")
    if not answer.ok:
        raise click.ClickException(_problem(answer, reply))
    if answer.status_code != 204 and "max_entries" not in reply:
        raise click.ClickException(f"What answers at {_url(_settings())} is not llama_api;"
                                   f" set {PREFIX}BIND to where it is.")
    return reply


def _object_of(answer: requests.Response) -> dict[str, Any]:
    try:
        reply = answer.json()
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


def _problem(answer: requests.Response, reply: dict[str, Any]) -> str:
    """A problem as a sentence, with what is wrong in each field."""
    faults = "; ".join(f"{name}: {' '.join(texts)}" for name, texts in reply.get("errors", {}).items())
    return f"the server answered {answer.status_code}: {reply.get('detail', answer.reason)} {faults}".strip()


def _tell(message: str) -> None:
    """Print to stderr, on a line of its own also where the progress bar stands; the bar is drawn anew below it."""
    if sys.stdout.isatty():
        click.echo("\r\033[K", nl=False)
    click.echo(message, err=True)


def _send(method: str, path: str, seconds: float, body: Any = None) -> requests.Response:
    settings = _settings()
    headers = {"Authorization": f"Bearer {settings.keys[0]}"} if settings.keys else {}
    if settings.trusted_hosts:
        headers["Host"] = settings.trusted_hosts[0].removeprefix(".")
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, _url(settings) + path, json=body, headers=headers, timeout=seconds)


def _settings() -> Settings:
    return Settings.from_env()


def _url(settings: Settings) -> str:
    if settings.bind.startswith("unix:"):
        raise click.ClickException(f"The server is called by TCP, not at {settings.bind}; set {PREFIX}BIND to the"
                                   " HOST:PORT of what stands in front of it, such as nginx.")
    return settings.local_url


def _unreachable() -> click.ClickException:
    where = _url(_settings())
    return click.ClickException(f"No server answers at {where}; start it, or set {PREFIX}BIND to where it is.")
