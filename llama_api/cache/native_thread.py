"""A native thread for blocking work, which would stop all greenlets under gevent."""

import time
from collections.abc import Callable
from typing import Any

from .. import native

# In a busy process the native thread starves for the GIL. So its caller waits natively, which releases the GIL but
# stops all greenlets, for these seconds: AT_ONCE, which is enough for most tasks, then LOOK each time, and GRACE at the
# end.
AT_ONCE, LOOK, GRACE = 0.002, 0.0003, 0.005
POLL = 0.001  # seconds between two checks


class NativeThread:
    """Runs functions one after the other, from the first call until the process ends."""

    def __init__(self) -> None:
        self._starting = native.allocate_lock()
        self._tasks: Any = None

    def call(self, seconds: float, function: Callable[[], Any]) -> Any:
        """Return or raise the outcome of ``function``. Raises TimeoutError after ``seconds`` and then ignores it.

        A function that has not begun by then never does. Time in which this process is suspended does not count.
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
    """A function and its outcome."""

    def __init__(self, function: Callable[[], Any]):
        self.result: Any = None
        self.error: BaseException | None = None
        self._function, self._given_up = function, False
        self._ended = native.allocate_lock()
        self._ended.acquire()

    def run(self) -> None:
        """Run the function in the native thread, unless it is too late."""
        if self._given_up:
            return
        try:
            self.result = self._function()
        except BaseException as error:  # for its caller in the other thread
            self.error = error
        finally:
            self._ended.release()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; False when it is late."""
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
