"""The settings: what each variable takes, what it refuses, and how a refusal reads."""

import dataclasses
import sys

import pytest

from llama_api import settings as module
from llama_api.settings import OllamaHost, Settings, SettingsError

DEFAULTS = {
    "bind": "127.0.0.1:8000", "ollamas": (OllamaHost("http://127.0.0.1:11434"),), "model": "llama3:8b",
    "models": (), "model_aliases": (), "parallel": 1, "preload": False, "heartbeat": 10.0,
    "queue": 64, "queue_timeout": 60.0, "connect_timeout": 3.0, "timeout": 300.0, "keep_alive": None, "num_ctx": None,
    "cache_url": "memory://", "cache_max_entries": 1000, "cache_max_bytes": 67108864, "cache_ttl": 0.0,
    "cache_stale_if_error": 86400.0, "max_body_bytes": 1048576, "max_tokens_limit": 8192, "api_keys": (),
    "api_keys_file": (), "rate_limit": "", "trusted_proxies": 0, "trusted_hosts": (), "cors_origins": (),
    "log_file": "api.log", "log_level": "INFO", "log_prompts": False, "workers": 1, "otlp_endpoint": "",
    "unknown": ()}

VARIABLES = {module.variable(spec): spec.name for spec in dataclasses.fields(Settings) if spec.metadata}
COUNTS = ("PARALLEL", "NUM_CTX", "CACHE_MAX_BYTES", "MAX_BODY_BYTES", "MAX_TOKENS_LIMIT", "WEB_CONCURRENCY")
COUNTS_FROM_ZERO = ("QUEUE", "CACHE_MAX_ENTRIES", "TRUSTED_PROXIES")
TIMES = ("QUEUE_TIMEOUT", "CONNECT_TIMEOUT", "TIMEOUT")
TIMES_FROM_ZERO = ("HEARTBEAT", "CACHE_TTL", "CACHE_STALE_IF_ERROR")

GOOD = [
    ("BIND", "0.0.0.0:80", "0.0.0.0:80"), ("BIND", "[::1]:8000", "[::1]:8000"), ("BIND", "host:65535", "host:65535"),
    ("BIND", "unix:/run/api.sock", "unix:/run/api.sock"), ("BIND", " localhost:1 ", "localhost:1"),
    *[("OLLAMA_URL", text, tuple(OllamaHost(*host) for host in hosts)) for text, hosts in (
        ("http://gpu:11434/", [("http://gpu:11434",)]), ("https://h/ollama/", [("https://h/ollama",)]),
        ("http://[::1]:11434", [("http://[::1]:11434",)]), ("https://me:pw@h", [("https://me:pw@h",)]),
        ("http://a:11434*4,http://b:11434", [("http://a:11434", 4), ("http://b:11434",)]),
        (" http://a*1 , http://a:81/ ", [("http://a", 1), ("http://a:81",)]))],
    ("MODELS", "mistral, phi3:mini", ("mistral", "phi3:mini")), ("MODELS", "*", ("*",)),
    ("MODEL_ALIASES", "gpt-4o-mini=llama3:8b, x = LLAMA3:8b", (("gpt-4o-mini", "llama3:8b"), ("x", "LLAMA3:8b"))),
    ("PRELOAD", "yes", True), ("PRELOAD", "0", False),
    ("MODEL", "llama3", "llama3"), ("MODEL", "library/llama3:8b", "library/llama3:8b"),
    ("MODEL", "registry.example:5000/me/my_model.x:q4-0", "registry.example:5000/me/my_model.x:q4-0"),
    ("MODEL", "cloudy:8b", "cloudy:8b"),
    ("KEEP_ALIVE", "300", 300), ("KEEP_ALIVE", "-1", -1), ("KEEP_ALIVE", "0", 0), ("KEEP_ALIVE", "1.5", 1.5),
    ("KEEP_ALIVE", "10m", "10m"), ("KEEP_ALIVE", "1h30m", "1h30m"), ("KEEP_ALIVE", "-1s", "-1s"),
    ("CACHE_URL", "sqlite:///cache.db", "sqlite:///cache.db"), ("CACHE_URL", "memory://", "memory://"),
    ("CACHE_URL", "sqlite:////var/lib/cache.db", "sqlite:////var/lib/cache.db"),
    ("CACHE_URL", "redis://h:6379/0", "redis://h:6379/0"), ("CACHE_URL", "redis://:pw@h/15", "redis://:pw@h/15"),
    ("CACHE_URL", "rediss://h", "rediss://h"), ("CACHE_URL", "redis://h:6379/", "redis://h:6379"),
    ("API_KEYS", "a", ("a",)), ("API_KEYS", "a, b ,,c", ("a", "b", "c")),
    ("RATE_LIMIT", "10/minute", "10/minute"), ("RATE_LIMIT", "1/second", "1/second"),
    ("RATE_LIMIT", "5/hour", "5/hour"), ("RATE_LIMIT", "7/day", "7/day"),
    ("TRUSTED_HOSTS", "api.example.com, .example.org,[::1]:80,h:8000",
     ("api.example.com", ".example.org", "[::1]:80", "h:8000")),
    ("CORS_ORIGINS", "https://app.example.com,http://localhost:3000",
     ("https://app.example.com", "http://localhost:3000")), ("CORS_ORIGINS", "*", ("*",)),
    ("LOG_FILE", "/var/log/other.log", "/var/log/other.log"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/", "http://collector:4318"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://me:pw@h/otlp", "https://me:pw@h/otlp"),
    ("LOG_LEVEL", "debug", "DEBUG"), ("LOG_LEVEL", "Error", "ERROR"),
    *[("LOG_PROMPTS", text, True) for text in ("true", "1", "yes", "on", "TRUE", "Yes")],
    *[("LOG_PROMPTS", text, False) for text in ("false", "0", "no", "off", "False")],
    *[(name, text, value) for name in COUNTS for text, value in (("1", 1), ("0012", 12), ("99999", 99999))],
    *[(name, text, value) for name in COUNTS_FROM_ZERO for text, value in (("0", 0), ("7", 7))],
    *[(name, text, value) for name in TIMES + TIMES_FROM_ZERO
      for text, value in (("2", 2.0), ("0.25", 0.25), (".5", 0.5), ("3.", 3.0))],
    *[(name, "0", 0.0) for name in TIMES_FROM_ZERO]]

NO_NUMBER = ("one", "1_0", "+1", "-1", "0x10", "1e3", "1,5", "nan", "inf", "١", "1 0")
BAD = [
    *[("BIND", text) for text in ("8000", ":8000", "host", "host:", "host:http", "host:65536", "unix:", "h:١")],
    *[("OLLAMA_URL", text) for text in (
        "http://a*0", "http://a*", "http://a*-1", "http://a*x", "http://a,http://a", "http://a:80,HTTP://A/",
        "http://a*2,http://a*3", ",", "http://a,,http://b", "http://a,", ", http://a",
        "127.0.0.1:11434", "ftp://h", "http://", "http://h:0", "http://h:99999", "http://h:x", "http://h?a=b",
        "http://h#a", "http://a b", "http://h\\x", "http://[::1", "//h", "h")],
    *[("MODEL", text) for text in (
        "llama3:", ":8b", "a b", "llama3:8b/x/y/z", "-llama", "../x", "x" * 81, "gpt-oss:120b-cloud", "glm:cloud",
        "glm:CLOUD", "llama3\n:8b", "lläma")],
    *[("MODELS", text) for text in (",", "a b", "llama3,glm:cloud", "**", "a,,b", "*,")],
    *[("MODEL_ALIASES", text) for text in (
        "gpt-4o", "=llama3:8b", "gpt-4o=", "gpt-4o=mistral", "llama3:8b=llama3:8b", "Llama3:8B=llama3:8b",
        "*=llama3:8b", "a=llama3:8b,A:latest=llama3:8b", "x:cloud=llama3:8b", "x=llama3:8b,")],
    *[("PRELOAD", text) for text in ("2", "maybe")],
    *[("KEEP_ALIVE", text) for text in ("10 m", "soon", "m", "10x", "--1", "1e3", "5m3")],
    *[("CACHE_URL", text) for text in (
        "memory", "memory:///x", "sqlite://x.db", "sqlite:///", "sqlite:////", f"sqlite:////{'x' * 300}",
        f"sqlite:////{'x' * 300}/cache.db", "sqlite:////nonexistent/cache.db", "redis://", "redis://h/x",
        "redis://h/0/1", "redis://h:99999/0", "redis://h/0?db=1", "memcached://h", "cache.db", "redis:h")],
    *[("API_KEYS", text) for text in (",", " , ", "a b", "schlüssel", "a\x07")],
    *[("RATE_LIMIT", text) for text in ("10", "10/min", "0/minute", "-1/minute", "10 / minute", "1.5/day", "x/day")],
    *[("TRUSTED_HOSTS", text) for text in (",", "a b", "http://h", "h/x", "*")],
    *[("CORS_ORIGINS", text) for text in (",", "app.example.com", "https://h/path", "https://", "ftp://h")],
    *[("LOG_LEVEL", text) for text in ("LOUD", "10", "TRACE")],
    *[("OTEL_EXPORTER_OTLP_ENDPOINT", text) for text in ("collector:4317", "grpc://h", "http://")],
    *[("LOG_PROMPTS", text) for text in ("2", "maybe", "t", "y", "wahr")],
    *[(name, text) for name in COUNTS for text in (*NO_NUMBER, "0", "1.5", "1" * 16)],
    *[(name, text) for name in COUNTS_FROM_ZERO for text in (*NO_NUMBER, "1.5", "1" * 16)],
    *[(name, text) for name in TIMES for text in (*NO_NUMBER, "0", "0.0", "1" * 400, ".")],
    *[(name, text) for name in TIMES_FROM_ZERO for text in (*NO_NUMBER, "1" * 400, ".")]]


def named(name):
    """The whole name of a variable."""
    return name if name == "WEB_CONCURRENCY" or name.startswith("OTEL_") else "LLAMA_API_" + name


def faults_of(environ):
    """The faults that reading ``environ`` finds."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environ)
    assert all(f"  {fault}" in str(caught.value).splitlines() for fault in caught.value.faults)
    return caught.value.faults


def test_an_empty_environment_gives_the_defaults():
    """Every setting has the default of the contract's table."""
    assert dataclasses.asdict(Settings.from_env({})) == DEFAULTS
    assert Settings() == Settings.from_env({})


def test_every_variable_has_good_and_bad_values_in_these_tables():
    """A new setting must be entered into the tables below."""
    assert {named(name) for name, *_ in GOOD} | {"LLAMA_API_API_KEYS_FILE"} == set(VARIABLES)
    assert {named(name) for name, _ in BAD} | {
        "LLAMA_API_API_KEYS_FILE", "LLAMA_API_LOG_FILE"} == set(VARIABLES)  # any text names a file


@pytest.mark.parametrize("name, text, value", GOOD)
def test_good_values_are_taken(name, text, value):
    """A value is parsed to its type, outer blanks aside, and touches no other setting."""
    found = dataclasses.asdict(Settings.from_env({named(name): text}))
    assert found == DEFAULTS | {VARIABLES[named(name)]: value}
    assert type(found[VARIABLES[named(name)]]) is type(value)


@pytest.mark.parametrize("name, text", BAD)
def test_bad_values_are_refused_by_name(name, text):
    """A fault names the variable and the value, and says what is allowed."""
    fault, = faults_of({named(name): text})
    shown = "***" if name == "API_KEYS" else text.strip()
    if "?" not in shown:
        assert fault.startswith(f"{named(name)}={shown!r} must be ")
    assert len(fault.partition(" must be ")[2]) > 5


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_an_empty_value_is_the_default(name, blank):
    """An empty value means the default; for LOG_FILE alone the empty one says that there is no file."""
    found = dataclasses.asdict(Settings.from_env({name: blank}))
    no_file = {"log_file": ""} if name == "LLAMA_API_LOG_FILE" and blank == "" else {}
    assert found == DEFAULTS | no_file


@pytest.mark.parametrize("missing", ["opentelemetry", "opentelemetry.sdk", "opentelemetry.exporter.otlp.proto"])
def test_an_export_that_nothing_installed_can_do_is_refused(monkeypatch, missing):
    """With the command that installs it, whether all of its packages are missing or one."""
    for name in [name for name in sys.modules if name.startswith(f"{missing}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not there
    fault, = faults_of({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
    assert fault.endswith("pip install '.[otel]'")


def test_all_faults_are_told_at_once():
    """One start shows every fault, one a line."""
    wrong = {"LLAMA_API_PARALLEL": "0", "LLAMA_API_TIMEOUT": "never", "LLAMA_API_MODEL": "a b",
             "LLAMA_API_LOG_LEVEL": "LOUD", "WEB_CONCURRENCY": "-2", "LLAMA_API_API_KEYS_FILE": "/nowhere/keys"}
    assert {fault.partition("=")[0] for fault in faults_of(wrong | {"LLAMA_API_QUEUE": "3"})} == set(wrong)


@pytest.mark.parametrize("name, text", [
    ("API_KEYS", "s3cret key"), ("OLLAMA_URL", "ftp://me:s3cret@h"), ("OLLAMA_URL", "http://me:a@s3cret@h?x"),
    ("OLLAMA_URL", "me:s3cret@h"), ("OLLAMA_URL", "http:/me:s3cret@h"), ("CACHE_URL", "redis://:s3cret@h/x"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://me:s3cret@h:x"),
    ("CACHE_URL", "redis://h/0?password=s3cret"), ("CACHE_URL", "redis:s3cret@h"),
    ("CACHE_URL", "redis://:s3cret\nx@h/0")])
def test_secrets_are_masked_in_faults(name, text):
    """Neither a key nor a password inside a URL is shown, however wrong the URL."""
    fault, = faults_of({named(name): text})
    assert "s3cret" not in fault and "***" in fault


@pytest.mark.parametrize("name, text, value", [row for row in GOOD if "API_KEYS" not in row[0] and "@" not in row[1]
                                               and not row[1].startswith("redis://:")])
def test_settings_are_shown_as_they_are_written(name, text, value):
    """A setting is shown as a value of its variable that means the same."""
    settings = Settings.from_env({named(name): text})
    assert settings.shown().keys() == VARIABLES.keys()
    assert Settings.from_env({named(name): str(settings.shown()[named(name)])}) == settings


def test_nothing_secret_is_shown(tmp_path):
    """Neither keys, from wherever they come, nor the passwords of any URL."""
    (tmp_path / "keys").write_text("secret-1\n")
    shown = Settings.from_env({
        "LLAMA_API_API_KEYS": "secret-2,secret-3", "LLAMA_API_API_KEYS_FILE": str(tmp_path / "keys"),
        "LLAMA_API_OLLAMA_URL": "http://me:secret-4@a*2,https://secret-5@b",
        "LLAMA_API_CACHE_URL": "redis://:secret@h/1"}).shown()
    assert "secret" not in str(shown)
    assert shown["LLAMA_API_OLLAMA_URL"] == "http://***@a*2,https://***@b"
    assert shown["LLAMA_API_CACHE_URL"] == "redis://***@h/1"
    assert shown["LLAMA_API_API_KEYS"] == shown["LLAMA_API_API_KEYS_FILE"] == "***"
    assert Settings().shown()["LLAMA_API_API_KEYS"] == ""


def test_keys_come_from_the_variable_and_from_the_file(tmp_path):
    """The keys of API_KEYS and those of the file, one a line, all count."""
    path = tmp_path / "keys"
    path.write_text("\n  one  \r\ntwo,with-comma\n\n")
    settings = Settings.from_env({"LLAMA_API_API_KEYS": "zero", "LLAMA_API_API_KEYS_FILE": str(path)})
    assert settings.keys == ("zero", "one", "two,with-comma")


@pytest.mark.parametrize("content", [None, b"", b"\n \n", b"two words\n", "schlüssel".encode(), b"\xff\xfe", b"a\x07"])
def test_a_keys_file_that_is_no_list_of_keys_is_a_fault(tmp_path, content):
    """A file that is missing, empty or not of keys is refused, its keys are not shown."""
    path = tmp_path / "keys"
    if content is not None:
        path.write_bytes(content)
    fault, = faults_of({"LLAMA_API_API_KEYS_FILE": str(path)})
    assert fault.startswith(f"LLAMA_API_API_KEYS_FILE={str(path)!r} must be a ")
    assert "words" not in fault


def test_a_directory_is_no_keys_file(tmp_path):
    """A directory in place of the file is a fault, not a crash."""
    assert len(faults_of({"LLAMA_API_API_KEYS_FILE": str(tmp_path)})) == 1


@pytest.mark.parametrize("environ, word", [
    ({"LLAMA_API_PARALEL": "2"}, "PARALEL"),
    ({"LLAMA_API_BIND": "0.0.0.0:8000"}, "API_KEYS"), ({"LLAMA_API_BIND": "[::]:8000"}, "API_KEYS"),
    ({"LLAMA_API_BIND": "api.example.com:8000"}, "API_KEYS"), ({"WEB_CONCURRENCY": "2"}, "CACHE_URL"),
    ({"LLAMA_API_CACHE_URL": "redis://:s3cret@h/0"}, "OLLAMA_URL=http://127.0.0.1:11434"),
    ({"LLAMA_API_CACHE_URL": "rediss://h", "LLAMA_API_OLLAMA_URL": "http://gpu:1,http://me:s3cret@[::1]:2*3"},
     "OLLAMA_URL=http://***@[::1]:2")])
def test_what_is_probably_not_meant_is_warned_of(environ, word):
    """A misspelled name, an open address without keys, workers without a shared cache, an Ollama that other machines
    take for theirs: one warning each.
    """
    warning, = Settings.from_env(environ).warnings()
    assert word in warning and "s3cret" not in warning


@pytest.mark.parametrize("environ", [
    {}, {"LLAMA_API_BIND": "localhost:8000"}, {"LLAMA_API_BIND": "[::1]:80"}, {"LLAMA_API_BIND": "127.8.9.1:80"},
    {"LLAMA_API_BIND": "unix:/run/x"}, {"LLAMA_API_BIND": "0.0.0.0:80", "LLAMA_API_API_KEYS": "k"},
    {"WEB_CONCURRENCY": "2", "LLAMA_API_CACHE_URL": "sqlite:///x.db"},
    {"LLAMA_API_CACHE_URL": "redis://localhost:6379/0"}, {"LLAMA_API_CACHE_URL": "redis://[::1]"},
    {"LLAMA_API_CACHE_URL": "redis://h", "LLAMA_API_OLLAMA_URL": "http://gpu:11434"},
    {"PATH": "x", "LLAMA_OTHER": "y"}])
def test_what_is_meant_is_not_warned_of(environ):
    """A sensible set-up starts without a word."""
    assert Settings.from_env(environ).warnings() == []


def test_settings_are_frozen():
    """Nothing changes a setting once it is read."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().model = "other"
