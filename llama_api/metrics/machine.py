"""The use of the whole machine, sampled seldom enough to be accurate."""

import time

import psutil

SAMPLE_SECONDS = 1.0
FIRST_SAMPLE_SECONDS = 0.1


class Machine:
    """Use of the whole machine's processor and memory in percent, sampled at most once a second."""

    def __init__(self) -> None:
        self._times = self._cpu_times()
        self._sample = (0.0, 0.0)
        time.sleep(FIRST_SAMPLE_SECONDS)  # without an interval the first figure would be a false 0.0
        self._taken = time.monotonic() - SAMPLE_SECONDS

    def sample(self) -> tuple[float, float]:
        """``cpu_usage_percent`` and ``memory_usage_percent``."""
        now = time.monotonic()
        if now - self._taken >= SAMPLE_SECONDS:
            self._taken = now
            (busy, total), (busy_before, total_before) = times, _ = self._cpu_times(), self._times
            self._times = times
            cpu = 100 * (busy - busy_before) / (total - total_before) if total > total_before else self._sample[0]
            self._sample = (round(min(100.0, max(0.0, cpu)), 1), psutil.virtual_memory().percent)
        return self._sample

    @staticmethod
    def _cpu_times() -> tuple[float, float]:
        # psutil.cpu_percent() remembers its last call by thread, and under gevent each request is a new one.
        times = psutil.cpu_times()
        total = sum(times) - getattr(times, "guest", 0) - getattr(times, "guest_nice", 0)
        return total - times.idle - getattr(times, "iowait", 0), total
