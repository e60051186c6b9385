"""``ask``: send one question to the running server and print the answer as it is generated."""

import codecs
import json
import sys
from collections.abc import Iterator
from typing import Any

import click
import requests

from .client import INTERRUPTED, Server, object_of, settings


@click.command()
@click.argument("prompt", required=False)
@click.option("--model", help="One of the served models.")
@click.option("--system", help="Replaces the model's system message.")
@click.option("--max-tokens", type=int, help="Maximum number of tokens in the answer.")
@click.option("--temperature", type=float, help="0 always picks the most likely token; higher values are more random.")
@click.option("--seed", type=int, help="The same seed repeats the same random choices.")
def ask(prompt: str | None, **fields: Any) -> None:
    """Ask PROMPT (- for standard input) and print the answer while it is generated.

    Only the answer goes to standard output. Ctrl-C also ends the generation.
    """
    if prompt is None:
        raise click.ClickException('Give a prompt, as in `llama-api ask "Why is the sky blue?"`, or - to read one from'
                                   " standard input.")
    server = Server(settings())
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        with _begin(server, {"prompt": _input() if prompt == "-" else prompt, "stream": True, **given}) as answer:
            _print(answer)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def _input() -> str:
    """The text from standard input. Raises ClickException when it is not UTF-8."""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise click.ClickException(f"Standard input is not UTF-8 ({error.reason} at byte {error.start}).") from None


def _begin(server: Server, body: dict[str, Any]) -> requests.Response:
    """The response, once it has begun. Raises ClickException that says why it has not."""
    try:
        answer = server.generate(body, stream=True)
        if not answer.ok:
            raise server.refused(answer, object_of(answer))
    except requests.RequestException as error:
        raise server.unreachable(error) from None
    if not answer.headers.get("Content-Type", "").startswith("text/event-stream"):
        raise server.stranger()
    return answer


def _print(answer: requests.Response) -> None:
    """Print the pieces as they come; until the first one, the wait goes to stderr where that is a terminal."""
    wait = WaitLine()
    ended = False
    try:
        for name, data in events(answer.iter_content(chunk_size=None)):
            if name == "waiting":
                wait.show(data)
                continue
            event = json.loads(data)
            if name == "error":
                raise click.ClickException(f"{event.get('detail', 'the generation failed')}")
            if event["response"]:
                wait.end()
                click.echo(event["response"].encode(), nl=False)  # as bytes, whatever the terminal's encoding
            ended = event["done"]
    except (requests.RequestException, ValueError, KeyError):
        pass  # reported below, as the answer has not ended
    finally:
        wait.end()
        if sys.stdout.isatty():
            click.echo(err=True)  # ends the line without adding to the answer
    if not ended:
        raise click.ClickException("The server broke off before the answer was complete; only a part was printed.")


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


class WaitLine:
    """The line on stderr that reports the wait for the answer, if stderr is a terminal."""

    def __init__(self) -> None:
        self._shown = self._ended = False

    def show(self, text: str) -> None:
        """Show ``text`` in place of what was shown; never after the answer has begun on that line."""
        if sys.stderr.isatty() and not self._ended:
            click.echo(f"\r\033[K{text}", nl=False, err=True)
            self._shown = True

    def end(self) -> None:
        """Remove the line for good."""
        if self._shown:
            click.echo("\r\033[K", nl=False, err=True)
        self._shown, self._ended = False, True
