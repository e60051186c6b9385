"""Background threads: one for however many start it, and a start that failed is tried again."""

import threading

import pytest

from llama_api.background import BackgroundThread
from tests.support.fakes import in_threads

LONG = 30.0  # seconds that no test takes


def test_many_starts_begin_one_thread():
    """It runs once, whichever thread starts it."""
    runs, ran = [], threading.Event()

    def run():
        runs.append(threading.current_thread())
        ran.set()

    thread = BackgroundThread("worker", run)
    assert in_threads(20, lambda number: thread.start()) == [None] * 20
    assert ran.wait(LONG)
    assert [one.name for one in runs] == ["worker"] and runs[0].daemon


def test_a_start_that_fails_is_tried_again(monkeypatch):
    """As when the system has no thread to give."""
    ran = threading.Event()
    thread = BackgroundThread("worker", ran.set)

    def fail(self):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            thread.start()
    thread.start()
    assert ran.wait(LONG)
