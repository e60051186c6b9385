"""Commands for the operator: ``flask --app wsgi cache stats|clear|warm``. They ask the running server."""

import json
import time
from collections import Counter
from typing import Any

import click
import requests
from flask import Flask, current_app
from flask.cli import AppGroup

from .settings import PREFIX, Settings

cache = AppGroup("cache", help="Look after the cache of the running server.")
SHORT_SECONDS = 10.0


def init_app(app: Flask) -> None:
    """Add the commands to ``flask``."""
    app.cli.add_command(cache)


@cache.command()
def stats() -> None:
    """Tell what is in the cache and what it was good for."""
    for name, value in _call("GET", "/cache").json().items():
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
    lines = [(number, line.strip()) for number, line in enumerate(file, 1) if line.strip()]
    counts: Counter[str] = Counter()
    started = time.monotonic()

    def rate(_: Any) -> str:
        return f"{sum(counts.values()) / max(0.001, time.monotonic() - started):.1f}/s"

    try:
        with click.progressbar(lines, label="warming", show_pos=True, show_eta=True, item_show_func=rate) as bar:
            for number, line in bar:
                outcome, fault = _warm_one(line)
                counts[outcome] += 1
                if fault:
                    click.echo(f"\nline {number}: {fault}", err=True)
    except KeyboardInterrupt:
        click.echo("\ninterrupted; run it again to go on")
    left = len(lines) - sum(counts.values())
    click.echo(f"{len(lines)} lines: {counts['generated']} generated, {counts['cached']} were cached, "
               f"{counts['failed']} failed, {left} left; {time.monotonic() - started:.1f} s")
    if counts["failed"]:
        raise SystemExit(1)


def _warm_one(line: bytes) -> tuple[str, str | None]:
    """Send one line; returns what became of it (cached, generated, failed) and the fault, if any."""
    try:
        text = line.decode()
        body = json.loads(text) if text.startswith("{") else {"prompt": text}
        body["stream"] = False
    except ValueError as error:
        return "failed", f"neither text nor JSON: {error}"
    settings = _settings()
    try:
        answer = _send("POST", "/generate", settings.timeout + settings.queue_timeout + SHORT_SECONDS, body)
        reply = answer.json()
    except requests.ConnectionError:
        raise _unreachable() from None
    except (requests.RequestException, ValueError) as error:
        return "failed", f"no answer: {type(error).__name__}"
    if answer.status_code != 200:
        return "failed", f"{answer.status_code} {reply.get('detail', '')} {reply.get('errors', '')}".strip()
    return ("cached" if reply["cached"] else "generated"), None


def _call(method: str, path: str) -> requests.Response:
    try:
        answer = _send(method, path, SHORT_SECONDS)
    except requests.RequestException:
        raise _unreachable() from None
    if not answer.ok:
        raise click.ClickException(f"The server answered {answer.status_code}: {answer.json().get('detail')}")
    return answer


def _send(method: str, path: str, seconds: float, body: Any = None) -> requests.Response:
    settings = _settings()
    headers = {"Authorization": f"Bearer {settings.keys[0]}"} if settings.keys else {}
    with requests.Session() as session:
        session.trust_env = False
        return session.request(method, _url(settings) + path, json=body, headers=headers, timeout=seconds)


def _settings() -> Settings:
    settings: Settings = current_app.extensions["llama_api"].settings
    return settings


def _url(settings: Settings) -> str:
    host, _, port = settings.bind.rpartition(":")
    return f"http://{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"


def _unreachable() -> click.ClickException:
    where = _url(_settings())
    return click.ClickException(f"No server answers at {where}; start it, or set {PREFIX}BIND to where it is.")
