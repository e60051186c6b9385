"""The settings: read once from the environment, checked together, then frozen."""

import ipaddress
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from .model_names import is_cloud, normal

PREFIX = "LLAMA_API_"
DEFAULT_MODEL = "llama3:8b"
_TRUE, _FALSE = {"true", "1", "yes", "on"}, {"false", "0", "no", "off"}
_NAME_PART = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}"
_MODEL = re.compile(rf"(?:[A-Za-z0-9_][A-Za-z0-9_.:-]*/)?(?:{_NAME_PART}/)?{_NAME_PART}(?::{_NAME_PART})?")
_DURATION = re.compile(r"-?(?:\d+(?:\.\d+)?(?:ns|us|µs|ms|s|m|h))+")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.\-\[\]:]+")


class SettingsError(ValueError):
    """One or more settings are wrong. ``faults`` has a sentence for each."""

    def __init__(self, faults: list[str]):
        self.faults = faults
        super().__init__("\n".join(["the settings are wrong:", *(f"  {fault}" for fault in faults)]))


class OllamaHost(NamedTuple):
    """One Ollama: its base URL, and its number of slots where it has one of its own (else PARALLEL)."""

    url: str
    slots: int | None = None

    @property
    def name(self) -> str:
        """What names it in the log and in metrics, such as ``a:11434``; equal for URLs of one Ollama."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{host}:{parts.port or (443 if parts.scheme == 'https' else 80)}{parts.path}"


def _integer(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < least:
            raise ValueError(f"an integer of at least {least}, of at most 15 digits")
        return int(text)

    return parse


def _seconds(zero: bool = False) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text) if re.fullmatch(r"[0-9]+(\.[0-9]*)?|\.[0-9]+", text) else math.nan
        if not (0 < value <= 1e9 or (zero and value == 0)):
            least = "of at least" if zero else "greater than"
            raise ValueError(f"a number of seconds {least} 0 and at most 1000000000, such as 2.5")
        return value

    return parse


def _boolean(text: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise ValueError("one of true, false, 1, 0, yes, no, on, off")
    return text.lower() in _TRUE


def _bind(text: str) -> str:
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


def _ollamas(text: str) -> tuple[OllamaHost, ...]:
    hosts = []
    for item in _items(text):
        url, star, slots = item.partition("*")
        if star and not (re.fullmatch(r"[0-9]{1,6}", slots) and int(slots)):
            raise ValueError("one URL or several, separated by commas, each with its own number of slots or none, as in"
                             " http://a:11434*4,http://b:11434")
        hosts.append(OllamaHost(_http_url(url.strip()), int(slots) if star else None))
    names = [host.name for host in hosts]
    if len(set(names)) < len(names):
        raise ValueError("a list in which no Ollama appears twice")
    return tuple(hosts)


def _cache_url(text: str) -> str:
    if text == "memory://":
        return text
    if text.startswith("sqlite:///") and (path := text.removeprefix("sqlite:///")):
        if not Path(path).parent.is_dir() or Path(path).is_dir():
            raise ValueError("sqlite:///PATH of a file, in a directory that exists")
        return text
    try:
        url = _url(("redis", "rediss"))(text)
        if re.fullmatch(r"(/[0-9]{1,3})?", urlsplit(url).path):
            return url
    except ValueError:
        pass
    raise ValueError("memory://, sqlite:///PATH (four slashes for an absolute path) or redis://HOST:PORT/DB")


def _model(text: str) -> str:
    if not _MODEL.fullmatch(text):
        raise ValueError("a model name such as llama3:8b")
    if is_cloud(text):
        raise ValueError("a local model: a cloud tag would send the prompts to another host")
    return text


def _models(text: str) -> tuple[str, ...]:
    return tuple(name if name == "*" else _model(name) for name in _items(text))


def _aliases(text: str) -> tuple[tuple[str, str], ...]:
    found = []
    for item in _items(text):
        alias, equals, model = (part.strip() for part in item.partition("="))
        if not equals:
            raise ValueError("a list of NAME=MODEL, separated by commas")
        found.append((_model(alias), _model(model)))
    if len({normal(alias) for alias, _ in found}) < len(found):
        raise ValueError("a list of NAME=MODEL in which no name appears twice")
    return tuple(found)


def _keep_alive(text: str) -> str | int | float:
    if re.fullmatch(r"-?[0-9]{1,9}(\.[0-9]+)?", text):
        return float(text) if "." in text else int(text)
    if not _DURATION.fullmatch(text):
        raise ValueError("seconds, such as 300 or -1, or a duration such as 10m or 1h30m")
    return text


def _items(text: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in text.split(",") if item.strip())
    if not items:
        raise ValueError("a list, its items separated by commas")
    return items


def _api_keys(text: str) -> tuple[str, ...]:
    keys = _items(text)
    if not all(map(_is_key, keys)):
        raise ValueError("a list of keys of printable ASCII without blanks, separated by commas")
    return keys


def _is_key(text: str) -> bool:
    return text.isascii() and text.isprintable() and " " not in text


def _api_keys_file(text: str) -> tuple[str, ...]:
    try:
        lines = Path(text).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"a readable text file ({type(error).__name__})") from None
    keys = tuple(line.strip() for line in lines if line.strip())
    if not keys or not all(map(_is_key, keys)):
        raise ValueError("a file with at least one key of printable ASCII without blanks, one per line")
    return keys


def _hosts(text: str) -> tuple[str, ...]:
    hosts = _items(text)
    if not all(re.fullmatch(r"\.?[A-Za-z0-9.-]+(:[0-9]+)?|\[[0-9a-fA-F:.]+\](:[0-9]+)?", host) for host in hosts):
        raise ValueError("a list of host names (a leading dot means every subdomain), separated by commas")
    return hosts


def _origins(text: str) -> tuple[str, ...]:
    origins = _items(text)
    if not all(origin == "*" or _ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError("a list of origins such as https://app.example.com, or *, separated by commas")
    return origins


def _rate_limit(text: str) -> str:
    if not re.fullmatch(r"[1-9][0-9]{0,8}/(second|minute|hour|day)", text):
        raise ValueError("N/second, N/minute, N/hour or N/day")
    return text


def _log_level(text: str) -> str:
    if text.upper() not in {"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}:
        raise ValueError("one of DEBUG, INFO, WARNING, ERROR, CRITICAL")
    return text.upper()


def _var(default: Any, parse: Callable[[str], Any], variable: str = "", prefix: str = PREFIX,
         secret: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "variable": variable, "prefix": prefix, "secret": secret})


@dataclass(frozen=True, slots=True)
class Settings:
    """All that an operator can set. Each field is the variable ``LLAMA_API_<FIELD>``; times are seconds."""

    bind: str = _var("127.0.0.1:8000", _bind)
    ollamas: tuple[OllamaHost, ...] = _var((OllamaHost("http://127.0.0.1:11434"),), _ollamas, variable="OLLAMA_URL")
    model: str = _var(DEFAULT_MODEL, _model)
    models: tuple[str, ...] = _var((), _models)
    model_aliases: tuple[tuple[str, str], ...] = _var((), _aliases)
    parallel: int = _var(1, _integer(1))
    preload: bool = _var(False, _boolean)
    heartbeat: float = _var(10.0, _seconds(zero=True))
    queue: int = _var(64, _integer(0))
    queue_timeout: float = _var(60.0, _seconds())
    connect_timeout: float = _var(3.0, _seconds())
    timeout: float = _var(300.0, _seconds())
    keep_alive: str | int | float | None = _var(None, _keep_alive)
    num_ctx: int | None = _var(None, _integer(1))
    cache_url: str = _var("memory://", _cache_url)
    cache_max_entries: int = _var(1000, _integer(0))
    cache_max_bytes: int = _var(67108864, _integer(1))
    cache_ttl: float = _var(0.0, _seconds(zero=True))
    cache_stale_if_error: float = _var(86400.0, _seconds(zero=True))
    max_body_bytes: int = _var(1048576, _integer(1))
    max_tokens_limit: int = _var(8192, _integer(1))
    api_keys: tuple[str, ...] = _var((), _api_keys, secret=True)
    api_keys_file: tuple[str, ...] = _var((), _api_keys_file)  # the keys in it
    rate_limit: str = _var("", _rate_limit)
    trusted_proxies: int = _var(0, _integer(0))
    trusted_hosts: tuple[str, ...] = _var((), _hosts)
    cors_origins: tuple[str, ...] = _var((), _origins)
    log_file: str = _var("api.log", str)
    log_level: str = _var("INFO", _log_level)
    log_prompts: bool = _var(False, _boolean)
    workers: int = _var(1, _integer(1), variable="WEB_CONCURRENCY", prefix="")
    unknown: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings from ``environ``. Raises SettingsError that names every fault at once."""
        values: dict[str, Any] = {}
        faults: list[str] = []
        known = {variable(spec): spec for spec in fields(cls) if spec.metadata}
        for name, spec in known.items():
            text = environ.get(name, "").strip()
            if text == "":
                continue
            try:
                values[spec.name] = spec.metadata["parse"](text)
            except ValueError as error:
                faults.append(f"{name}={_masked(text, spec.metadata['secret'])!r} must be {error}")
        faults += _alias_faults(values, environ.get(PREFIX + "MODEL_ALIASES", "").strip())
        if faults:
            raise SettingsError(faults)
        if environ.get(PREFIX + "LOG_FILE") == "":  # here alone an empty value says something: no file
            values["log_file"] = ""
        unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
        return cls(**values, unknown=tuple(unknown))

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys, those of the variable and those of the file."""
        return self.api_keys + self.api_keys_file

    @property
    def local_url(self) -> str:
        """Where a program on this host finds the service, unless it listens on a Unix socket."""
        host, _, port = self.bind.rpartition(":")
        return f"http://{ {'0.0.0.0': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"

    def shown(self) -> dict[str, Any]:
        """The settings by their variables, fit to be shown: keys, and what URLs have of passwords, are masked."""
        return {variable(spec): _shown(spec.name, getattr(self, spec.name)) for spec in fields(self) if spec.metadata}

    def warnings(self) -> list[str]:
        """What is allowed but probably not meant, a sentence each."""
        found = [f"{name} is not a setting of this service; is it misspelled?" for name in self.unknown]
        if not is_loopback(self.bind) and not self.keys:
            found.append(f"{PREFIX}BIND={self.bind} can be reached from other hosts and no {PREFIX}API_KEYS are set:"
                         " anyone there can use the model")
        if self.workers > 1 and self.cache_url == "memory://":
            found.append(f"WEB_CONCURRENCY={self.workers} with {PREFIX}CACHE_URL=memory://: each worker has a cache of"
                         " its own; set sqlite:/// or redis:// to share answers")
        return found


def _alias_faults(values: Mapping[str, Any], text: str) -> list[str]:
    """What is wrong with the aliases, written as ``text``, beside the models that are served."""
    served = {normal(name) for name in (values.get("model", DEFAULT_MODEL), *values.get("models", ()))}
    everything = "*" in values.get("models", ())
    faults = []
    for alias, model in values.get("model_aliases", ()):
        if normal(alias) in served:
            faults.append(f"other names than those of served models, and {alias} is one")
        elif not everything and normal(model) not in served:
            faults.append(f"names for models of {PREFIX}MODEL or {PREFIX}MODELS, and {model} is not one")
    return [f"{PREFIX}MODEL_ALIASES={text!r} must be {fault}" for fault in faults]


def variable(spec: Any) -> str:
    """The environment variable of a field of Settings."""
    return str(spec.metadata["prefix"] + (spec.metadata["variable"] or spec.name.upper()))


def _shown(name: str, value: Any) -> Any:
    """A value as one would write it, without its secrets."""
    if name in ("api_keys", "api_keys_file"):
        return "***" if value else ""
    if name == "ollamas":  # whose class may be that of before a reload
        return ",".join(_masked(url, False) + ("" if slots is None else f"*{slots}") for url, slots in value)
    if name == "model_aliases":
        return ",".join(f"{alias}={model}" for alias, model in value)
    if isinstance(value, tuple):
        return ",".join(_shown("", item) for item in value)
    return _masked(value, False) if isinstance(value, str) and "://" in value else value


def _masked(text: str, secret: bool) -> str:
    """``text`` fit to be shown: without passwords, wherever a malformed URL may have them."""
    return "***" if secret else re.sub(r"(?s)\A((?:[a-z]+:)?/*).*@|\?.+", _mask, text)


def _mask(found: re.Match[str]) -> str:
    return "?***" if found[1] is None else f"{found[1]}***@"


def is_loopback(bind: str) -> bool:
    """Whether a socket bound to ``bind`` can be reached from this machine alone."""
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or bind.startswith("unix:")
