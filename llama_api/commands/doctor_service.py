"""The checks of ``doctor`` on the service: whether it runs, its health, and whether it runs with these settings."""

from collections.abc import Iterator

import requests

from ..settings import PREFIX, Settings
from .address import Address
from .client import PROBE_SECONDS, Server, could_not_connect, object_of
from .finding import FAULT, OK, WARNING, Finding

OWN = {PREFIX + "BIND", "WEB_CONCURRENCY"}  # gunicorn's command line may override them


class ServiceCheck:
    """The service at the address of ``chosen`` and the checks on it."""

    def __init__(self, chosen: Settings):
        self._settings, self._server = chosen, Server(chosen)
        self.running = 0  # generations under way

    def findings(self) -> Iterator[Finding]:
        """Check that it runs or could run, its health, and its settings."""
        place = self._server.place
        try:
            health = object_of(self._server.send("GET", "/health", PROBE_SECONDS))
        except requests.exceptions.SSLError as error:
            yield Finding(WARNING, "port", self._server.unreachable(error).message)
            return
        except requests.RequestException as error:
            yield self._port(f"the program that listens at {place} does not answer: if it is the service, see its log"
                             f" and restart it, else end it or set {PREFIX}BIND", could_not_connect(error))
            return
        if "status" not in health or "queue" not in health:
            yield self._port(f"the program that answers at {place} is not llama_api: end it, or set"
                             f" {PREFIX}BIND", False)
            return
        yield Finding(OK, "port", f"the service runs at {place}")
        self.running = health["queue"]["running"]
        level = {"healthy": OK, "degraded": WARNING}.get(health["status"], FAULT)
        yield Finding(level, "service", f"is {health['status']}" + (f": {health['reason']}" if "reason" in health
                                                                    else ""))
        yield self._started_with()

    def _port(self, text: str, vacant: bool) -> Finding:
        """The finding when the service does not run here; ``text`` says why unless the port is ``vacant``."""
        if not vacant:
            return Finding(FAULT, "port", text)
        if fault := Address.of(self._settings).fault():
            return Finding(FAULT, "port", fault)
        return Finding(OK, "port", f"{self._server.place} is free; the service does not run: start it with"
                                   " `llama-api run`")

    def _started_with(self) -> Finding:
        """Check that the service runs with the settings of this environment."""
        subject = "its settings"
        try:
            answer = self._server.send("GET", "/stats", PROBE_SECONDS)
        except requests.RequestException as error:
            return Finding(WARNING, subject, self._server.unreachable(error).message)
        reply = object_of(answer)
        if not answer.ok or "settings" not in reply:
            return Finding(WARNING, subject, self._server.refused(answer, reply).message)
        theirs, ours = reply["settings"], self._settings.shown()
        other = [f"{name}={theirs[name]!r} and not {ours[name]!r}" for name in sorted(theirs.keys() & ours.keys() - OWN)
                 if theirs[name] != ours[name]]
        if other:
            return Finding(WARNING, subject, f"are not those of this environment: it has {', '.join(other)}; run this"
                                             " in the environment of the service, or restart the service in this one")
        return Finding(OK, subject, "are those of this environment")
