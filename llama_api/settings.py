"""The settings: read once from the environment, checked together, then frozen."""

import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import urlsplit

from . import setting_parsers as parse
from .model_names import normal
from .setting_parsers import OllamaHost

__all__ = ["DEFAULT_MODEL", "PREFIX", "OllamaHost", "Settings", "SettingsError", "ca_bundle", "is_loopback", "variable"]

PREFIX = "LLAMA_API_"
DEFAULT_MODEL = "llama3:8b"


class SettingsError(ValueError):
    """One or more settings are wrong. ``faults`` has a sentence for each."""

    def __init__(self, faults: list[str]):
        self.faults = faults
        super().__init__("\n".join(["the settings are wrong:", *(f"  {fault}" for fault in faults)]))


def _var(default: Any, parse: Callable[[str], Any], variable: str = "", prefix: str = PREFIX,
         secret: bool = False) -> Any:
    return field(default=default, metadata={"parse": parse, "variable": variable, "prefix": prefix, "secret": secret})


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings. Each field is the variable ``LLAMA_API_<FIELD>``; times are seconds."""

    bind: str = _var("127.0.0.1:8000", parse.bind)
    ollamas: tuple[OllamaHost, ...] = _var((OllamaHost("http://127.0.0.1:11434"),), parse.ollamas,
                                           variable="OLLAMA_URL")
    model: str = _var(DEFAULT_MODEL, parse.model)
    models: tuple[str, ...] = _var((), parse.models)
    model_aliases: tuple[tuple[str, str], ...] = _var((), parse.aliases)
    parallel: int = _var(1, parse.integer(1))
    preload: bool = _var(False, parse.boolean)
    heartbeat: float = _var(10.0, parse.seconds(zero=True))
    queue: int = _var(64, parse.integer(0))
    queue_timeout: float = _var(60.0, parse.seconds())
    connect_timeout: float = _var(3.0, parse.seconds())
    timeout: float = _var(300.0, parse.seconds())
    keep_alive: str | int | float | None = _var(None, parse.keep_alive)
    num_ctx: int | None = _var(None, parse.integer(1))
    cache_url: str = _var("memory://", parse.cache_url)
    cache_max_entries: int = _var(1000, parse.integer(0))
    cache_max_bytes: int = _var(67108864, parse.integer(1))
    cache_ttl: float = _var(0.0, parse.seconds(zero=True))
    cache_stale_if_error: float = _var(86400.0, parse.seconds(zero=True))
    max_body_bytes: int = _var(1048576, parse.integer(1))
    max_tokens_limit: int = _var(8192, parse.integer(1))
    api_keys: tuple[str, ...] = _var((), parse.api_keys, secret=True)
    api_keys_file: tuple[str, ...] = _var((), parse.api_keys_file)  # the keys in it
    rate_limit: str = _var("", parse.rate_limit)
    trusted_proxies: int = _var(0, parse.integer(0))
    trusted_hosts: tuple[str, ...] = _var((), parse.hosts)
    cors_origins: tuple[str, ...] = _var((), parse.origins)
    log_file: str = _var("api.log", str)
    log_level: str = _var("INFO", parse.log_level)
    log_prompts: bool = _var(False, parse.boolean)
    workers: int = _var(1, parse.integer(1), variable="WEB_CONCURRENCY", prefix="")
    otlp_endpoint: str = _var("", parse.otlp_endpoint, variable="OTEL_EXPORTER_OTLP_ENDPOINT", prefix="")
    unknown: tuple[str, ...] = ()

    @classmethod
    def from_env(cls, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Read the settings from ``environ``. Raises SettingsError that lists every fault."""
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
        if environ.get(PREFIX + "LOG_FILE") == "":  # the only setting whose empty value is not the default: no file
            values["log_file"] = ""
        unknown = sorted(name for name in environ if name.startswith(PREFIX) and name not in known)
        return cls(**values, unknown=tuple(unknown))

    @property
    def keys(self) -> tuple[str, ...]:
        """The API keys of the variable and of the file."""
        return self.api_keys + self.api_keys_file

    def shown(self) -> dict[str, Any]:
        """The settings by variable, with keys and passwords in URLs masked."""
        return {variable(spec): _shown(spec.name, getattr(self, spec.name)) for spec in fields(self) if spec.metadata}

    def warnings(self) -> list[str]:
        """A sentence for each setting that is valid but probably a mistake."""
        found = [f"{name} is not a setting of this service; is it misspelled?" for name in self.unknown]
        if not is_loopback(self.bind) and not self.keys:
            found.append(f"{PREFIX}BIND={self.bind} can be reached from other hosts and no {PREFIX}API_KEYS are set,"
                         " so anyone there can use the model")
        if self.workers > 1 and self.cache_url == "memory://":
            found.append(f"WEB_CONCURRENCY={self.workers} with {PREFIX}CACHE_URL=memory://: each worker has its own"
                         " cache; set sqlite:/// or redis:// to share answers")
        if self.cache_url.startswith("redis") and not _is_local(self.cache_url):
            found += [f"{PREFIX}OLLAMA_URL={_masked(url, False)} with Redis on another host: machines that use both"
                      " count their local Ollamas as one; use a host name that all of them can resolve"
                      for url, _ in self.ollamas if _is_local(url)]
        return found


def _alias_faults(values: Mapping[str, Any], text: str) -> list[str]:
    """The faults of the aliases in ``text``, given the served models."""
    served = {normal(name) for name in (values.get("model", DEFAULT_MODEL), *values.get("models", ()))}
    everything = "*" in values.get("models", ())
    faults = []
    for alias, model in values.get("model_aliases", ()):
        if normal(alias) in served:
            faults.append(f"names other than those of served models, but {alias} is one")
        elif not everything and normal(model) not in served:
            faults.append(f"names for models in {PREFIX}MODEL or {PREFIX}MODELS, but {model} is not one")
    return [f"{PREFIX}MODEL_ALIASES={text!r} must be {fault}" for fault in faults]


def ca_bundle() -> str | bool:
    """Whose signature makes a certificate trusted: the file that the environment names for requests, else True."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or True


def variable(spec: Any) -> str:
    """The environment variable of a field of Settings."""
    return str(spec.metadata["prefix"] + (spec.metadata["variable"] or spec.name.upper()))


def _shown(name: str, value: Any) -> Any:
    """A value in the form of its variable, without secrets."""
    if name in ("api_keys", "api_keys_file"):
        return "***" if value else ""
    if name == "ollamas":  # as pairs, because after a reload their class is not this OllamaHost
        return ",".join(_masked(url, False) + ("" if slots is None else f"*{slots}") for url, slots in value)
    if name == "model_aliases":
        return ",".join(f"{alias}={model}" for alias, model in value)
    if isinstance(value, tuple):
        return ",".join(_shown("", item) for item in value)
    return _masked(value, False) if isinstance(value, str) and "://" in value else value


def _masked(text: str, secret: bool) -> str:
    """``text`` without passwords, wherever a malformed URL may have them."""
    return "***" if secret else re.sub(r"(?s)\A((?:[a-z]+:)?/*).*@|\?.+", _mask, text)


def _mask(found: re.Match[str]) -> str:
    return "?***" if found[1] is None else f"{found[1]}***@"


def _is_local(url: str) -> bool:
    return is_loopback(f"{urlsplit(url).hostname}:0")


def is_loopback(bind: str) -> bool:
    """Whether a socket bound to ``bind`` can be reached only from this machine."""
    host = bind.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or bind.startswith("unix:")
