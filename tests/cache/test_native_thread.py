"""The native thread: a blocking call in it blocks nothing else, under plain threads and under gevent."""

import subprocess
import sys
import textwrap
import threading
import time

import pytest

from llama_api.cache.native_thread import NativeThread
from tests.cache import LONG
from tests.support.fakes import in_threads


@pytest.fixture
def native():
    return NativeThread()


@pytest.fixture
def stuck(native):
    """A thread that is stuck in a task, and what frees it."""
    freed, began = threading.Event(), threading.Event()
    with pytest.raises(TimeoutError, match="longer than 10 ms"):
        native.call(0.01, lambda: began.set() or freed.wait(LONG))
    assert began.wait(LONG)
    yield freed
    freed.set()


def test_it_gives_what_the_function_gives(native):
    """Its value or its error, from another thread, which is always the same."""
    assert native.call(LONG, lambda: 6 * 7) == 42
    with pytest.raises(ZeroDivisionError):
        native.call(LONG, lambda: 1 / 0)
    threads = {native.call(LONG, threading.get_ident) for _ in range(5)}
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_many_callers_are_served_one_after_the_other(native):
    """No two tasks ever run at once, and each caller gets its own result."""
    inside = []

    def task(number):
        inside.append(number)
        time.sleep(0.001)
        assert inside == [number]
        return inside.pop()

    assert in_threads(20, lambda number: native.call(LONG, lambda: task(number))) == list(range(20))


def test_what_has_not_begun_in_time_never_does(native, stuck):
    """A stuck task only delays those behind it; afterwards the thread continues."""
    done = []
    for number in range(3):
        with pytest.raises(TimeoutError):
            native.call(0.02, lambda: done.append(number))
    stuck.set()
    assert native.call(LONG, lambda: "on") == "on" and done == []


def test_under_gevent_the_loop_turns_while_it_is_stuck():
    """The greenlets continue, and the caller gets its timeout, although the task blocks the whole thread."""
    program = textwrap.dedent("""
        from gevent import monkey; monkey.patch_all()
        import gevent
        from llama_api.cache.native_thread import NativeThread
        native, turns = NativeThread(), [0]
        freed = monkey.get_original("_thread", "allocate_lock")()
        freed.acquire()

        def turn():
            while True:
                gevent.sleep(0.001)
                turns[0] += 1

        gevent.spawn(turn)
        try:
            native.call(0.3, freed.acquire)
        except TimeoutError:
            print("late")
        freed.release()
        print(native.call(30, lambda: "on"), turns[0] > 10)
    """)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("late\non True\n", "")
