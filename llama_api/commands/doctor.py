"""``doctor``: check everything that may be wrong, and report each finding with its cure."""

import os
import sys
from collections.abc import Iterator

import click

from ..cache import StoreError, inspect_store
from ..settings import PREFIX, Settings, SettingsError
from .doctor_ollama import OllamaCheck
from .doctor_service import ServiceCheck
from .finding import FAULT, OK, WARNING, Finding

COLOURS = {OK: "green", WARNING: "yellow", FAULT: "red"}


@click.command()
def doctor() -> None:
    """Check settings, log file, port, each Ollama, the shared store and a generation; change nothing."""
    faults = 0
    for level, subject, text in findings():
        faults += level == FAULT
        click.echo(f"{click.style(f'{level:8}', COLOURS[level])} {subject:22} {text}")
    sys.exit(1 if faults else 0)


def findings() -> Iterator[Finding]:
    """The findings of all checks, as they are made."""
    try:
        chosen = Settings.from_env()
    except SettingsError as error:
        yield from (Finding(FAULT, "settings", fault) for fault in error.faults)
        yield Finding(WARNING, "the rest", "was not checked: correct the settings, and run this again")
        return
    yield Finding(OK, "settings", "all are valid")
    yield from (Finding(WARNING, "settings", warning) for warning in chosen.warnings())
    yield log_file(chosen.log_file)
    service = ServiceCheck(chosen)
    yield from service.findings()
    checks = [OllamaCheck(host, chosen) for host in chosen.ollamas]
    for check in checks:
        yield from check.findings()
    yield builds(checks, chosen.model)
    yield store(chosen)
    for check in checks:
        if check.present:
            yield from check.generations(service.running)


def log_file(path: str) -> Finding:
    """Whether the log file can be written."""
    if not path:
        return Finding(OK, "log file", "none is set: the log goes to stdout alone")
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.isdir(path):
        cure = f"is a directory: set {PREFIX}LOG_FILE to a file in it"
    elif not os.path.isdir(folder):
        cure = f"is in a directory that does not exist: create it, or set {PREFIX}LOG_FILE"
    elif not os.access(path if os.path.exists(path) else folder, os.W_OK):
        cure = f"cannot be written by this user: change its owner, or set {PREFIX}LOG_FILE"
    else:
        return Finding(OK, "log file", f"{path} can be written")
    return Finding(WARNING, "log file", f"{path} {cure}; until then the log goes to stdout alone")


def builds(checks: list[OllamaCheck], model: str) -> Finding:
    """Whether all Ollamas have the same build of the model."""
    found = [check for check in checks if check.present]
    if len({check.digest for check in found}) > 1:
        told = ", ".join(f"{check.host.name} has {check.digest[:12]}" for check in found)
        return Finding(FAULT, "builds", f"{model} is not the same everywhere ({told}), and only one build is used: run"
                                        " `llama-api pull`; one made by `ollama create` is equal only if its blobs"
                                        " and its manifest were copied to the same path")
    if len(found) > 1:
        return Finding(OK, "builds", f"{model} is the same on {len(found)} of {len(checks)}")
    return Finding(OK, "builds", f"{len(found)} of {len(checks)} has {model}: there is nothing to compare")


def store(chosen: Settings) -> Finding:
    """Whether the shared store can be used, and how fast it is."""
    url, subject = chosen.cache_url, "shared store"
    if not chosen.cache_max_entries:
        return Finding(OK, subject, f"none is used, as {PREFIX}CACHE_MAX_ENTRIES is 0: there is no cache")
    if url == "memory://":
        return Finding(OK, subject, "none is set: answers are kept in each worker and do not survive a restart")
    path = url.removeprefix("sqlite:///")
    if path != url:
        there = os.path.exists(path)
        if not os.access(path if there else os.path.dirname(os.path.abspath(path)), os.W_OK):
            return Finding(FAULT, subject, f"{path} cannot be written by this user: change its owner, or set"
                                           f" {PREFIX}CACHE_URL")
        if not there:
            return Finding(OK, subject, f"{path} does not exist yet; the service will create it")
    try:
        found = inspect_store(url)
    except StoreError as error:
        cure = "start it, or" if path == url else "move it away, or"
        return Finding(FAULT, subject, f"cannot be used: {error}; {cure} correct {PREFIX}CACHE_URL")
    return Finding(OK, subject, f"{url.partition(':')[0]} holds {found.entries} answers, {found.bytes} bytes; a round"
                                f" trip takes {1000 * found.seconds:.1f} ms")
