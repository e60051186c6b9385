"""A reload takes the code and the settings as they are then; what became wrong leaves the old settings in force."""

import os
import shutil
import signal

import pytest

from llama_api.server import current_settings, reload_state, reloading
from llama_api.settings import PREFIX, Settings, SettingsError
from tests.support.double import answer_for
from tests.support.gunicorn_server import ROOT, new_prompt, until


@pytest.fixture
def process(monkeypatch):
    """The environment of a process in which nothing has been loaded yet."""
    monkeypatch.setattr(reload_state, "settings", {})
    for name in [*os.environ]:
        if name.startswith(PREFIX) or name == "WEB_CONCURRENCY":
            monkeypatch.delenv(name)
    return monkeypatch


def test_a_broken_first_load_raises(process):
    """With no settings in force there is nothing to go on with."""
    process.setenv("LLAMA_API_QUEUE", "many")
    with pytest.raises(SettingsError):
        reloading.load()
    with pytest.raises(SettingsError):
        current_settings()


def test_a_broken_reload_keeps_the_settings_in_force(process, capsys):
    """A reload with a fault says so and goes on as before; a good one takes effect."""
    process.setenv("LLAMA_API_QUEUE", "5")
    assert reloading.load() == current_settings() and current_settings().queue == 5
    process.setenv("LLAMA_API_QUEUE", "many")
    assert reloading.load().queue == current_settings().queue == 5
    assert "LLAMA_API_QUEUE='many' must be" in capsys.readouterr().err
    process.setenv("LLAMA_API_QUEUE", "6")
    assert reloading.load().queue == current_settings().queue == 6


def test_without_a_load_the_environment_is_in_force(process):
    """A command reads the environment as it is."""
    process.setenv("LLAMA_API_MODEL", "other")
    assert current_settings().model == "other"


def test_settings_of_other_code_are_put_in_force_as_far_as_they_are_known(process):
    """An upgrade may add a setting, which then has its default, and may drop one."""
    reloading.load()
    reload_state.settings["dropped"], _ = "value", reload_state.settings.pop("queue")
    assert current_settings() == Settings()


@pytest.mark.parametrize("addresses, bind", [
    (["127.0.0.1:80"], "127.0.0.1:80"), (["127.0.0.1:80", "0.0.0.0:80"], "0.0.0.0:80"),
    (["unix:/run/x", ":8000"], ":8000"), (["[::1]:80", "unix:/run/x"], "[::1]:80")])
def test_what_gunicorn_serves_on_is_in_force(process, addresses, bind):
    """The address that others can reach, should there be one: it is the one to warn of."""
    reloading.load()
    reloading.serve_on(addresses, 3)
    assert (current_settings().bind, current_settings().workers) == (bind, 3)


def edit(path, old, new):
    """Replace a piece of a source file by one of another length, so that no compiled copy is taken for it."""
    text = path.read_text()
    assert text.count(old) == 1 and len(old) != len(new)
    path.write_text(text.replace(old, new))


@pytest.mark.parametrize("module", [None, "python:llama_api.server.gunicorn_conf"])
def test_a_reload_takes_new_code_and_a_wrong_file_of_keys_keeps_the_old_ones(serve, double, tmp_path, module):
    """HUP: the new workers have the new code and settings; a fault is reported and nothing stops."""
    keys = tmp_path / "keys"
    keys.write_text("old\n")
    shutil.copytree(ROOT / "llama_api", tmp_path / "llama_api", ignore=shutil.ignore_patterns("__pycache__"))
    if module is None:
        shutil.copy(ROOT / "gunicorn.conf.py", tmp_path)
    api = serve(double, start=False, api_keys_file=keys)
    api.root, api.application = tmp_path, "llama_api.wsgi:app"
    api.arguments = ["-c", module] if module else []
    api.start()
    assert api.get("/livez").json == {"status": "alive"} and api.health()["queue"]["limit"] == 64

    edit(tmp_path / "llama_api" / "api" / "health.py", 'status="alive"', 'status="quite alive"')
    edit(tmp_path / "llama_api" / "settings.py", "queue: int = _var(64,", "queue: int = _var(65432,")
    keys.write_text("two words\n")
    before = api.workers
    api.signal(signal.SIGHUP)
    until(lambda: not set(before) & set(api.workers))
    until(lambda: api.get("/livez").json == {"status": "quite alive"})
    assert "reloading with the previous settings" in api.stderr and "LLAMA_API_API_KEYS_FILE" in api.stderr
    prompt = new_prompt()
    assert api.ask(prompt, {"X-API-Key": "old"}).text == answer_for(prompt)
    assert api.ask(prompt, {"X-API-Key": "two"}).status == 401

    keys.write_text("new\n")
    before = api.workers
    api.signal(signal.SIGHUP)
    until(lambda: not set(before) & set(api.workers))
    until(lambda: api.health()["queue"]["limit"] == 65432)
    assert [api.ask(new_prompt(), {"X-API-Key": key}).status for key in ("old", "new")] == [401, 200]


def test_an_upgrade_leaves_the_new_master_its_figures(serve, double, tmp_path):
    """USR2, and the old master ends: what its workers shared goes with it, what the new ones share stays."""
    api = serve(double, start=False)
    api.arguments = ["--pid", tmp_path / "pid"]
    api.start()
    old = api.process.pid
    api.signal(signal.SIGUSR2)
    until((tmp_path / "pid.2").exists)
    until(lambda: api.stderr.count("Booting worker") == 2)
    figures = until(lambda: len(api.figures) == 2 and api.figures)
    api.signal(signal.SIGTERM)
    new = until(lambda: (tmp_path / "pid").exists() and int((tmp_path / "pid").read_text()) not in (0, old)
                and int((tmp_path / "pid").read_text()))
    assert api.process.wait(20) == 0
    assert api.metrics()["cache_entries",] == 0
    os.kill(new, signal.SIGTERM)
    api.wait()
    assert not any(directory.exists() for directory in figures)
