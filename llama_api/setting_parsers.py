"""Parsers of settings: each takes a text and returns a value, or raises ValueError that says what is allowed."""

import importlib.util
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from .model_names import is_cloud, normal

_OTLP = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
_NAME_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_MODEL = re.compile(rf"(?:[A-Za-z0-9_][A-Za-z0-9_.:-]*/)?(?:{_NAME_PART}/)?{_NAME_PART}(?::{_NAME_PART})?")
_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class OllamaHost(NamedTuple):
    """One Ollama: its base URL, and its number of slots where it has one of its own (else PARALLEL)."""

    url: str
    slots: int | None = None

    @property
    def name(self) -> str:
        """The name in the log and in metrics, such as ``a:11434``; equal for URLs of the same Ollama."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}{parts.path}"


def integer(least: int) -> Callable[[str], int]:
    """A parser of integers of at least ``least``."""
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < least:
            raise ValueError(f"an integer of at least {least}, of at most 15 digits")
        return int(text)

    return parse


def seconds(zero: bool = False) -> Callable[[str], float]:
    """A parser of positive numbers of seconds, and of 0 where ``zero`` is allowed."""
    def parse(text: str) -> float:
        value = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text) else math.nan
        if not (0 < value <= 1e9 or (zero and value == 0)):
            least = "of at least" if zero else "greater than"
            raise ValueError(f"a number of seconds {least} 0 and at most 1000000000, such as 2.5")
        return value

    return parse


def boolean(text: str) -> bool:
    """True or false, in any of the usual words."""
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError("one of true, false, 1, 0, yes, no, on, off")
    return text.lower() in _TRUE


def bind(text: str) -> str:
    """An address to listen on."""
    host, colon, port = text.rpartition(":")
    if text.startswith("unix:") and len(text) > 5:
        return text
    if not (colon and host and re.fullmatch(r"[0-9]{1,5}", port) and int(port) < 65536):
        raise ValueError("HOST:PORT, such as 127.0.0.1:8000 or [::1]:8000, or unix:PATH")
    return text


def _url(schemes: tuple[str, ...]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            parts = urlsplit(text)
            good = parts.scheme in schemes and parts.hostname and not (parts.query or parts.fragment)
            good = good and (parts.port is None or parts.port > 0) and not re.search(r"[\s\\]", text)
        except ValueError:
            good = False
        if not good:
            raise ValueError(f"a URL such as {schemes[0]}://127.0.0.1:11434")
        return text.rstrip("/")

    return parse


_http_url = _url(("http", "https"))


def ollamas(text: str) -> tuple[OllamaHost, ...]:
    """A list of Ollamas without duplicates."""
    hosts = []
    for item in _items(text, complete=True):
        url, star, slots = item.partition("*")
        if star and not (re.fullmatch(r"[0-9]{1,6}", slots) and int(slots)):
            raise ValueError("a list of URLs, separated by commas, each optionally with its number of slots, as in"
                             " http://a:11434*4,http://b:11434")
        hosts.append(OllamaHost(_http_url(url.strip()), int(slots) if star else None))
    names = [host.name for host in hosts]
    if len(set(names)) < len(names):
        raise ValueError("a list in which no Ollama appears twice")
    return tuple(hosts)


def otlp_endpoint(text: str) -> str:
    """The URL of a collector; needs the packages of the ``otel`` extra."""
    try:
        installed = all(map(importlib.util.find_spec, _OTLP))
    except ModuleNotFoundError:  # a package above it is missing
        installed = False
    if not installed:
        raise ValueError("unset until its packages are installed: pip install '.[otel]'")
    return _http_url(text)


def cache_url(text: str) -> str:
    """The place of stored answers: memory, a SQLite file or Redis."""
    if text == "memory://":
        return text
    if text.startswith("sqlite:///") and (path := text.removeprefix("sqlite:///")):
        try:
            good = Path(path).parent.is_dir() and not Path(path).is_dir()
        except OSError:  # a directory without permission, or an invalid file name
            good = False
        if not good:
            raise ValueError("sqlite:///PATH of a file in an existing, readable directory")
        return text
    try:
        url = _url(("redis", "rediss"))(text)
        if re.fullmatch(r"(/[0-9]{1,3})?", urlsplit(url).path):
            return url
    except ValueError:
        pass
    raise ValueError("memory://, sqlite:///PATH (four slashes for an absolute path) or redis://HOST:PORT/DB")


def model(text: str) -> str:
    """The name of a model that runs on our own hosts."""
    if not _MODEL.fullmatch(text):
        raise ValueError("a model name such as llama3:8b")
    if is_cloud(text):
        raise ValueError("a local model: a cloud tag would send the prompts to another host")
    return text


def models(text: str) -> tuple[str, ...]:
    """Names of models, and ``*`` for all that Ollama has."""
    return tuple(name if name == "*" else model(name) for name in _items(text, complete=True))


def aliases(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs of an alias and its model."""
    found = []
    for item in _items(text, complete=True):
        alias, equals, target = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError("a list of NAME=MODEL, separated by commas")
        found.append((model(alias), model(target)))
    if len({normal(alias) for alias, _ in found}) < len(found):
        raise ValueError("a list of NAME=MODEL in which no name appears twice")
    return tuple(found)


def keep_alive(text: str) -> str | int | float:
    """Ollama's keep_alive: seconds as a number, or a duration in Go's grammar."""
    if re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]+)?", text):
        return float(text) if "." in text else int(text)
    if not _DURATION.fullmatch(text):
        raise ValueError("seconds, such as 300 or -1, or a duration such as 10m or 1h30m")
    return text


def _items(text: str, complete: bool = False) -> tuple[str, ...]:
    """The items of a comma-separated list; empty ones are ignored, or a fault if the list must be ``complete``."""
    items = tuple(item.strip() for item in text.split(","))
    found = tuple(filter(None, items))
    if not found or complete and found != items:
        raise ValueError("a list of non-empty items, separated by commas")
    return found


def api_keys(text: str) -> tuple[str, ...]:
    """API keys that fit into a header."""
    keys = _items(text)
    if not all(map(_is_key, keys)):
        raise ValueError("a list of keys of printable ASCII without spaces, separated by commas")
    return keys


def _is_key(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def api_keys_file(text: str) -> tuple[str, ...]:
    """The API keys in a file, one per line."""
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"a readable text file ({type(error).__name__})") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys or not all(map(_is_key, keys)):
        raise ValueError("a file with at least one key of printable ASCII without spaces, one per line")
    return keys


def hosts(text: str) -> tuple[str, ...]:
    """Host names; a leading dot means every subdomain."""
    hosts = _items(text)
    if not all(re.fullmatch(r"\.?[A-Za-z0-9.-]+(:[0-9]+)?|\[[0-9a-fA-F:.]+\](:[0-9]+)?", host) for host in hosts):
        raise ValueError("a list of host names (a leading dot means every subdomain), separated by commas")
    return hosts


def origins(text: str) -> tuple[str, ...]:
    """Origins of pages (RFC 6454), or ``*``."""
    origins = _items(text)
    if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("a list of origins such as https://app.example.com, or *, separated by commas")
    return origins


def rate_limit(text: str) -> str:
    """A rate in flask-limiter's grammar."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}/(second|minute|hour|day)", text):
        raise ValueError("N/second, N/minute, N/hour or N/day")
    return text


def log_level(text: str) -> str:
    """A level of the logging module."""
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
        raise ValueError("one of DEBUG, INFO, WARNING, ERROR, CRITICAL")
    return text.upper()
