"""``ask``: one question to the running server, its answer on standard output as it is written."""

import codecs
import json
import sys
from collections.abc import Iterator
from typing import Any

import click
import requests

from .client import INTERRUPTED, SHORT_SECONDS, Server, object_of, settings


@click.command()
@click.argument("prompt")
@click.option("--model", help="One of the models that are served.")
@click.option("--system", help="Replaces the model's system message.")
@click.option("--max-tokens", type=int, help="The most tokens that the answer may have.")
@click.option("--temperature", type=float, help="0 always takes the likeliest token, 2 is wild.")
@click.option("--seed", type=int, help="Repeats the same random choices.")
def ask(prompt: str, **fields: Any) -> None:
    """Ask PROMPT (- for standard input) and print the answer while it is written.

    Nothing but the answer goes to standard output. Ctrl-C ends the generation too.
    """
    if prompt == "-":
        prompt = sys.stdin.read()
    server = Server(settings())
    body = {"prompt": prompt, "stream": True, **{name: value for name, value in fields.items() if value is not None}}
    try:
        with _begin(server, body) as answer:
            _print(answer)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _begin(server: Server, body: dict[str, Any]) -> requests.Response:
    """The response, once it has begun. Raises ClickException that says why it has not."""
    seconds = server.settings.timeout + server.settings.queue_timeout + SHORT_SECONDS
    try:
        answer = server.send("POST", "/generate", seconds, body, stream=True)
    except requests.ConnectionError:
        raise server.unreachable() from None
    except requests.Timeout:
        raise click.ClickException(f"The server has not answered within {seconds:g} s; `llama-api doctor` tells what"
                                   " may be wrong.") from None
    if not answer.ok:
        raise server.refused(answer, object_of(answer))
    return answer


def _print(answer: requests.Response) -> None:
    """Print the pieces as they come; the wait goes to stderr where that is a terminal."""
    wait = Wait()
    ended = False
    try:
        for name, data in events(answer.iter_content(chunk_size=None)):
            if name == "waiting":
                wait.show(data)
                continue
            wait.clear()
            event = json.loads(data)
            if name == "error":
                raise click.ClickException(f"{event.get('detail', 'the generation failed')}")
            ended = event["done"]
            click.echo(event["response"], nl=False)
            sys.stdout.flush()
    except (requests.RequestException, ValueError, KeyError):
        pass  # told by what is missing
    finally:
        wait.clear()
    if not ended:
        raise click.ClickException("The server broke off before the answer was complete; what was printed is a part.")
    if sys.stdout.isatty():
        click.echo()


def events(chunks: Iterator[bytes]) -> Iterator[tuple[str, str]]:
    """Pairs of name and data of a server-sent event stream; the comments of a wait have the name ``waiting``."""
    decoder, rest, name = codecs.getincrementaldecoder("utf-8")(), "", "message"
    for chunk in chunks:
        *lines, rest = (rest + decoder.decode(chunk)).split("\n")
        for line in lines:
            if line.startswith(": waiting"):
                yield "waiting", line.removeprefix(": ")
            elif line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                yield name, line.removeprefix("data: ")
            elif not line:
                name = "message"


class Wait:
    """The line on stderr that tells of the wait, where stderr is a terminal."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, text: str) -> None:
        """Show ``text`` in place of what was shown."""
        if sys.stderr.isatty():
            click.echo(f"\r\033[K{text}", nl=False, err=True)
            self._shown = True

    def clear(self) -> None:
        """Remove the line."""
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)
            self._shown = False
