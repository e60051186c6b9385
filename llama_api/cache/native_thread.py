"""A native thread for work that may block: under gevent, whatever blocks natively stops everybody."""

import time
from collections.abc import Callable
from typing import Any

from .. import native

# In a busy process the native thread starves for the interpreter's lock. So its caller waits natively, which gives the
# lock up but stops all greenlets, for these seconds: AT_ONCE, which is enough for most tasks, then LOOK each time, and
# GRACE at the end.
AT_ONCE, LOOK, GRACE = 0.002, 0.0003, 0.005
POLL = 0.001  # seconds between two looks


class NativeThread:
    """Does what it is called for, one after the other. It begins with the first call and ends with the process."""

    def __init__(self) -> None:
        self._starting = native.allocate_lock()
        self._tasks: Any = None

    def call(self, seconds: float, function: Callable[[], Any]) -> Any:
        """What ``function`` returns or raises. Raises TimeoutError after ``seconds``: then it goes on, unheeded.

        A function that has not begun by then never does. Time in which this process itself is held up does not count.
        """
        task = _Task(function)
        self._queue().put(task)
        if not task.wait(seconds):
            raise TimeoutError(f"it took longer than {seconds * 1000:.0f} ms")
        if task.error is not None:
            raise task.error
        return task.result

    def _queue(self) -> Any:
        with self._starting:
            if self._tasks is None:
                tasks = native.SimpleQueue()
                native.start_thread(_work, (tasks,))
                self._tasks = tasks
        return self._tasks


class _Task:
    """A function, and what became of it."""

    def __init__(self, function: Callable[[], Any]):
        self.result: Any = None
        self.error: BaseException | None = None
        self._function, self._given_up = function, False
        self._ended = native.allocate_lock()
        self._ended.acquire()

    def run(self) -> None:
        """Run it in the native thread, unless it is too late for that."""
        if self._given_up:
            return
        try:
            self.result = self._function()
        except BaseException as error:  # its caller is in another thread
            self.error = error
        finally:
            self._ended.release()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False when it was not in time."""
        if self._ended.acquire(timeout=AT_ONCE):
            return True
        for _ in range(round(seconds / (POLL + LOOK))):
            time.sleep(POLL)
            if self._ended.acquire(timeout=LOOK):
                return True
        self._given_up = True
        return bool(self._ended.acquire(timeout=GRACE))


def _work(tasks: Any) -> None:
    while True:
        tasks.get().run()
