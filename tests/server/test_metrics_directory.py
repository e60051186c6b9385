"""Where the workers share their figures: in memory, unless there is no room in it or it is not ours to keep."""

import os
import tempfile
from pathlib import Path

import pytest

from llama_api.server import metrics_directory
from tests.support.gunicorn_server import until

NOBODY_LOGS_IN = "/nonexistent"


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """A directory in place of /dev/shm, of a machine without logins; temporary files go elsewhere."""
    (tmp_path / "memory").mkdir()
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "disk"))
    monkeypatch.setattr(metrics_directory, "MEMORY", str(tmp_path / "memory"))
    monkeypatch.setattr(metrics_directory, "LOGIND", NOBODY_LOGS_IN)
    return tmp_path / "memory"


def test_they_are_in_memory(memory):
    """In memory no full disk affects them; other users cannot read them."""
    made = Path(metrics_directory.make_directory())
    assert made.parent == memory and made.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("name, value", [
    ("MEMORY", "/nonexistent"), ("MEMORY", "/proc"), ("ROOM", 2**63), ("LOGIND", "/")])
def test_else_they_are_temporary_files(memory, monkeypatch, name, value):
    """Without such a place, without room in it, or where it is emptied at the end of a person's session."""
    monkeypatch.setattr(metrics_directory, name, value)
    monkeypatch.setattr(os, "geteuid", lambda: metrics_directory.FIRST_PERSON)
    assert Path(metrics_directory.make_directory()).parent == memory.with_name("disk")


def test_a_session_takes_nothing_from_a_system_user(memory, monkeypatch):
    """Such as the one of the unit."""
    monkeypatch.setattr(metrics_directory, "LOGIND", "/")
    monkeypatch.setattr(os, "geteuid", lambda: metrics_directory.FIRST_PERSON - 1)
    assert Path(metrics_directory.make_directory()).parent == memory


def test_the_service_has_them_there_while_it_runs(serve, double):
    """One directory for all workers, which goes with the service."""
    probe = Path(metrics_directory.make_directory())
    probe.rmdir()
    api = serve(double, workers=2)
    shared, = until(lambda: len(api.workers) == 2 and api.figures)
    assert shared.parent == (probe.parent if str(probe.parent) == metrics_directory.MEMORY else api.directory)
    api.stop()
    assert not shared.exists()
