"""The running service, as the commands call it: every failure is a sentence that says what to do."""

from typing import Any

import click
import requests

from ..settings import PREFIX, Settings, SettingsError

SHORT_SECONDS = 10.0
INTERRUPTED = 130  # the exit status that shells expect after a Ctrl-C


def settings() -> Settings:
    """The settings in force. Raises ClickException that names every fault."""
    try:
        return Settings.from_env()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


class Server:
    """The service that runs by ``settings``."""

    def __init__(self, settings: Settings):
        self.settings = settings

    @property
    def url(self) -> str:
        """Where it is called. Raises ClickException when it listens on a Unix socket."""
        if self.settings.bind.startswith("unix:"):
            raise click.ClickException(f"The server is called by TCP, not at {self.settings.bind}; set {PREFIX}BIND to"
                                       " the HOST:PORT of what stands in front of it, such as nginx.")
        return self.settings.local_url

    def send(self, method: str, path: str, seconds: float, body: Any = None, stream: bool = False) -> requests.Response:
        """Send one request. Raises requests.RequestException."""
        keys, hosts = self.settings.keys, self.settings.trusted_hosts
        headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        if hosts:
            headers["Host"] = hosts[0].removeprefix(".")
        with requests.Session() as session:
            session.trust_env = False
            return session.request(method, self.url + path, json=body, headers=headers, timeout=seconds, stream=stream)

    def call(self, method: str, path: str) -> dict[str, Any]:
        """The object that it answers. Raises ClickException for anything else."""
        try:
            answer = self.send(method, path, SHORT_SECONDS)
        except requests.RequestException:
            raise self.unreachable() from None
        reply = object_of(answer)
        if not answer.ok:
            raise self.refused(answer, reply)
        if answer.status_code != 204 and "max_entries" not in reply:
            raise click.ClickException(f"What answers at {self.url} is not llama_api; set {PREFIX}BIND to where it is.")
        return reply

    def unreachable(self) -> click.ClickException:
        """Nobody answers."""
        return click.ClickException(
            f"No server answers at {self.url}; start it, or set {PREFIX}BIND to where it is.")

    def refused(self, answer: requests.Response, reply: dict[str, Any]) -> click.ClickException:
        """It answered with an error."""
        if answer.status_code == 401:
            return click.ClickException(f"The server wants an API key; set {PREFIX}API_KEYS or {PREFIX}API_KEYS_FILE as"
                                        " it was set for the server.")
        return click.ClickException(problem(answer, reply))


def object_of(answer: requests.Response) -> dict[str, Any]:
    """The JSON object in ``answer``, an empty one when there is none."""
    try:
        reply = answer.json()
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


def problem(answer: requests.Response, reply: dict[str, Any]) -> str:
    """A problem as a sentence, with what is wrong in each field."""
    faults = "; ".join(f"{name}: {' '.join(texts)}" for name, texts in reply.get("errors", {}).items())
    return f"the server answered {answer.status_code}: {reply.get('detail', answer.reason)} {faults}".strip()
