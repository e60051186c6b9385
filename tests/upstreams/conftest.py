"""Fixtures of the fleet's tests: a directory for slots for each test."""

import pytest


@pytest.fixture(autouse=True)
def slots_base(tmp_path, monkeypatch):
    """The folder under which the slots of this test's Ollamas lie."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    return tmp_path
