"""The running service, as the commands call it: every failure is a sentence that says what to do."""

import sys
import warnings
from functools import cached_property
from typing import Any

import click
import requests
import urllib3

from ..settings import PREFIX, Settings, SettingsError, ca_bundle, is_loopback
from .address import Address
from .unix_socket import UnixAdapter

PROBE_SECONDS, SHORT_SECONDS = 3.0, 10.0
INTERRUPTED = 130  # the exit status that shells expect after a Ctrl-C


def settings() -> Settings:
    """The settings in force. Raises ClickException that names every fault."""
    try:
        return Settings.from_env()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def tell(message: str) -> None:
    """Print to stderr, on a line of its own also where a progress bar stands; the bar is drawn anew below it."""
    if sys.stdout.isatty():
        click.echo("\r\033[K", nl=False)
    click.echo(message, err=True)


class Server:
    """The service that runs by ``settings``, over TCP or a Unix socket, in plain or over TLS."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._address = Address.of(settings)

    @property
    def place(self) -> str:
        """Where it is called, for people to read."""
        return self._address.path or self.url

    @cached_property
    def url(self) -> str:
        """Its base URL: https where whoever listens there does not take plain HTTP but TLS."""
        address = self._address
        if address.path or address.tls:
            return address.url
        try:
            if self._request(address.url, "GET", "/livez", PROBE_SECONDS).status_code != 400:
                return address.url
        except requests.RequestException as error:
            if could_not_connect(error):
                return address.url
        secure = Address(address.bind, tls=True).url
        try:
            self._request(secure, "GET", "/livez", PROBE_SECONDS)
        except requests.exceptions.SSLError as error:
            return secure if "CERTIFICATE_VERIFY_FAILED" in str(error) else address.url
        except requests.RequestException:
            return address.url
        return secure

    def send(self, method: str, path: str, seconds: float, body: Any = None, stream: bool = False) -> requests.Response:
        """Send one request, with a key. Raises requests.RequestException."""
        keys = self.settings.keys
        headers = {"Authorization": f"Bearer {keys[0]}"} if keys else {}
        return self._request(self.url, method, path, seconds, headers=headers, json=body, stream=stream)

    def generate(self, body: dict[str, Any], stream: bool = False) -> requests.Response:
        """Send a request to POST /generate, and wait for as long as it may take. Raises requests.RequestException."""
        seconds = self.settings.timeout + self.settings.queue_timeout + SHORT_SECONDS
        return self.send("POST", "/generate", seconds, body, stream)

    def _request(self, url: str, method: str, path: str, seconds: float, **options: Any) -> requests.Response:
        """Send one request. Raises requests.RequestException.

        A certificate is not looked at on loopback, where it may be of the service's public name.
        """
        headers = options.pop("headers", {})
        if hosts := self.settings.trusted_hosts:
            headers["Host"] = hosts[0].removeprefix(".")
        loopback = is_loopback(f"{self._address.host}:0")
        bundle = ca_bundle()
        with requests.Session() as session, warnings.catch_warnings():
            warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
            session.trust_env = False  # a proxy from the environment is no way to a local server
            if self._address.path:
                session.mount("http://", UnixAdapter(self._address.path))
            try:
                return session.request(method, url + path, headers=headers, timeout=seconds,
                                       verify=False if loopback else bundle, **options)
            except OSError as error:
                if isinstance(error, requests.RequestException):
                    raise
                raise click.ClickException(f"REQUESTS_CA_BUNDLE={bundle} cannot be read; correct it.") from None

    def call(self, method: str, path: str) -> dict[str, Any]:
        """The object that it answers about its cache. Raises ClickException for anything else."""
        try:
            answer = self.send(method, path, SHORT_SECONDS)
        except requests.RequestException as error:
            raise self.unreachable(error) from None
        reply = object_of(answer)
        if not answer.ok:
            raise self.refused(answer, reply)
        if answer.status_code != 204 and "max_entries" not in reply:
            raise self.stranger()
        return reply

    def unreachable(self, error: requests.RequestException) -> click.ClickException:
        """It gave no answer, for the reason ``error``."""
        if isinstance(error, requests.exceptions.SSLError):
            return click.ClickException(f"The certificate of {self.place} is not trusted; set REQUESTS_CA_BUNDLE to the"
                                        " file of whoever signed it, which is its own when it is self-signed.")
        if isinstance(error, requests.Timeout):
            return click.ClickException(f"The server at {self.place} does not answer in time; `llama-api doctor` tells"
                                        " what may be wrong.")
        if could_not_connect(error):
            return click.ClickException(
                f"No server answers at {self.place}; start it, or set {PREFIX}BIND to where it is.")
        return click.ClickException(f"The server at {self.place} broke the connection off; its log says why.")

    def stranger(self) -> click.ClickException:
        """Something else answered."""
        return click.ClickException(f"What answers at {self.place} is not llama_api; set {PREFIX}BIND to where it is.")

    def refused(self, answer: requests.Response, reply: dict[str, Any]) -> click.ClickException:
        """It answered with an error."""
        if not str(reply.get("type")).startswith("/problems/"):
            return self.stranger()
        if answer.status_code == 401:
            return click.ClickException(f"The server wants an API key; set {PREFIX}API_KEYS or {PREFIX}API_KEYS_FILE as"
                                        " it was set for the server.")
        return click.ClickException(problem(answer, reply))


def could_not_connect(error: requests.RequestException) -> bool:
    """Whether nobody took the connection at all."""
    cause = error.args[0] if error.args else None
    reason = getattr(cause, "reason", None)
    return isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


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
