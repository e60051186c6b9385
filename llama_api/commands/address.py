"""The address of the service, from GUNICORN_CMD_ARGS or else the settings."""

import argparse
import errno
import os
import re
import shlex
import socket
from dataclasses import dataclass

from ..settings import PREFIX, Settings


@dataclass(frozen=True, slots=True)
class Address:
    """The address that gunicorn binds, HOST:PORT or unix:PATH, and whether it is known to speak TLS."""

    bind: str
    tls: bool = False

    @classmethod
    def of(cls, settings: Settings) -> "Address":
        """The address of the service that runs by ``settings`` and by this environment."""
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("-b", "--bind", action="append", default=[])
        parser.add_argument("--certfile")
        try:
            given, _ = parser.parse_known_args(shlex.split(os.environ.get("GUNICORN_CMD_ARGS", "")))
        except (argparse.ArgumentError, ValueError):  # gunicorn reports the fault itself
            return cls(settings.bind)
        bind = next((one for one in given.bind if re.fullmatch(r"unix:.+|.+:[0-9]{1,5}", one)), settings.bind)
        return cls(bind, given.certfile is not None)

    @property
    def path(self) -> str:
        """The path of a Unix socket, else empty."""
        return self.bind.removeprefix("unix:") if self.bind.startswith("unix:") else ""

    @property
    def host(self) -> str:
        """The host to connect to from this machine: loopback for a wildcard address."""
        host = self.bind.rpartition(":")[0]
        return {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)

    @property
    def url(self) -> str:
        """The base URL; without a port for a Unix socket."""
        scheme = "https" if self.tls else "http"
        return f"{scheme}://localhost" if self.path else f"{scheme}://{self.host}:{self.bind.rpartition(':')[2]}"

    def fault(self) -> str | None:
        """Why the address cannot be bound, with the cure, or None. Unix sockets are left to gunicorn."""
        if self.path:
            return None
        host, _, port = self.bind.rpartition(":")
        host = host.strip("[]")
        try:
            with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((host, int(port)))
        except OSError as error:
            cure = {errno.EADDRINUSE: f"end the program that uses it (see `ss -ltnp`), or set {PREFIX}BIND",
                    errno.EACCES: f"choose a port of 1024 or above by {PREFIX}BIND"}
            return (f"{self.bind} cannot be listened on ({error.strerror}):"
                    f" {cure.get(error.errno or 0, f'set {PREFIX}BIND to an address of this machine')}")
        return None
