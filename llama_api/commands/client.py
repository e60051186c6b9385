"""The commands' client of the running service; every failure is a sentence that says what to do."""

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
    """The settings in force. Raises ClickException that lists every fault."""
    try:
        return Settings.from_env()
    except SettingsError as error:
        raise click.ClickException(str(error)) from None


def tell(message: str) -> None:
    """Print to stderr, replacing the progress bar's line if there is one; the bar is drawn again below it."""
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
        """The address of the service, for messages."""
        return self._address.path or self.url

    @cached_property
    def url(self) -> str:
        """The base URL of the service: https if its port speaks TLS and not plain HTTP."""
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

        Certificates are not verified on loopback, where they may be for the service's public name.
        """
        headers = options.pop("headers", {})
        if hosts := self.settings.trusted_hosts:
            headers["Host"] = hosts[0].removeprefix(".")
        loopback = is_loopback(f"{self._address.host}:0")
        bundle = ca_bundle()
        with requests.Session() as session, warnings.catch_warnings():
            warnings.simplefilter("ignore", urllib3.exceptions.InsecureRequestWarning)
            session.trust_env = False  # ignore proxies from the environment
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
        """The JSON object of a response about the cache. Raises ClickException for anything else."""
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
        """The exception for a request that failed with ``error``."""
        if isinstance(error, requests.exceptions.SSLError):
            return click.ClickException(f"The certificate of {self.place} is not trusted; set REQUESTS_CA_BUNDLE to its"
                                        " issuer's certificate file, which is its own if it is self-signed.")
        if isinstance(error, requests.Timeout):
            return click.ClickException(f"The server at {self.place} does not answer in time; run `llama-api doctor`"
                                        " to find out why.")
        if could_not_connect(error):
            return click.ClickException(
                f"No server answers at {self.place}; start it, or set {PREFIX}BIND to its address.")
        return click.ClickException(f"The server at {self.place} closed the connection; its log says why.")

    def stranger(self) -> click.ClickException:
        """The exception for a response of another program."""
        return click.ClickException(f"The server at {self.place} is not llama_api; set {PREFIX}BIND to its address.")

    def refused(self, answer: requests.Response, reply: dict[str, Any]) -> click.ClickException:
        """The exception for an error response."""
        if not str(reply.get("type")).startswith("/problems/"):
            return self.stranger()
        if answer.status_code == 401:
            return click.ClickException(f"The server requires an API key; set {PREFIX}API_KEYS or {PREFIX}API_KEYS_FILE"
                                        " as for the server.")
        return click.ClickException(problem(answer, reply))


def could_not_connect(error: requests.RequestException) -> bool:
    """Whether the connection could not be established."""
    cause = error.args[0] if error.args else None
    reason = getattr(cause, "reason", None)
    return isinstance(reason, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError)


def object_of(answer: requests.Response) -> dict[str, Any]:
    """The JSON object in ``answer``, or an empty one."""
    try:
        reply = answer.json()
    except ValueError:
        return {}
    return reply if isinstance(reply, dict) else {}


def problem(answer: requests.Response, reply: dict[str, Any]) -> str:
    """A problem as a sentence, with the faults of each field."""
    faults = "; ".join(f"{name}: {' '.join(texts)}" for name, texts in reply.get("errors", {}).items())
    return f"the server answered {answer.status_code}: {reply.get('detail', answer.reason)} {faults}".strip()
