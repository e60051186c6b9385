"""The last 15 minutes of the service: a ring of points, sampled by one of the workers every 5 seconds."""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import orjson

from ..file_locks import lock_file
from .series import SERIES, STEP, Reading, Sample, readings
from .shared_files import Watched, replace

POINTS = 180


@dataclass(frozen=True, slots=True)
class Past:
    """The points of each series, by its id, up to ``end`` (seconds since 1970), and the readings at that time."""

    end: int
    readings: dict[str, Reading]
    points: dict[str, list[float | None]] = field(default_factory=dict)


def advance(past: Past | None, now: float, latest: dict[str, Reading]) -> Past:
    """The successor of ``past`` with readings of ``now``.

    Intervals without a sample at their end are None, and so is the growth of a counter over more than one interval.
    Without a past, or after the clock was set back, the history begins here, and earlier counts are not growth.
    """
    end = math.floor(now / STEP) * STEP
    if past is None or end < past.end:
        return Past(end, latest)
    if end == past.end:
        return past
    missed = (end - past.end) // STEP - 1
    points = {}
    for series in SERIES:
        known = past.points.get(series.id, [])
        point = None if missed and series.figure != "level" else series.point(
            latest[series.id], past.readings.get(series.id))
        points[series.id] = [*known, *[None] * min(missed, POINTS), point][-POINTS:]
    return Past(end, latest, points)


class History:
    """Samples and returns the past. With a ``directory`` all workers that use it share one past, which outlives them.

    ``samples`` returns the current samples; ``clock`` returns seconds since 1970.
    """

    def __init__(self, samples: Callable[[], Iterable[Sample]], directory: Path | None = None,
                 clock: Callable[[], float] = time.time):
        self._samples, self._clock, self._directory = samples, clock, directory
        self._file = Watched(directory / "history.json") if directory is not None else None
        self._lock: int | None = None
        self._due = 0.0
        self._past: Past | None = None
        self._series = b"[]"
        self._series_of: Past | None = None

    @property
    def due(self) -> bool:
        """Whether a sample is due."""
        return not self._due - STEP <= self._clock() < self._due

    def sample(self) -> bool:
        """Take a sample unless another worker is the sampler; returns whether it was taken. Raises OSError."""
        now, taken = self._clock(), False
        if self._is_ours():
            past = self._load()
            new = advance(past, now, readings(self._samples()))
            taken, self._past = new is not past, new
            if taken and self._file is not None:
                replace(self._file.path, orjson.dumps(asdict(new)))
        self._due = (math.floor(now / STEP) + 1) * STEP
        return taken

    def snapshot(self) -> tuple[int, bytes]:
        """The time of the newest points, and all series as JSON, as GET /stats gives them."""
        past = self._load()
        if past is not self._series_of or past is None:
            points = past.points if past is not None else {}
            self._series = orjson.dumps([series.described(points.get(series.id, [])) for series in SERIES])
            self._series_of = past
        return past.end if past is not None else math.floor(self._clock() / STEP) * STEP, self._series

    @property
    def revision(self) -> int:
        """A number that changes whenever there are new points."""
        return self._file.revision if self._file is not None else self._past.end if self._past is not None else 0

    def _is_ours(self) -> bool:
        """Whether this worker is the sampler; another takes over when it dies."""
        if self._directory is not None and self._lock is None:
            self._directory.mkdir(exist_ok=True)
            self._lock = lock_file(self._directory / "sampler.lock")
        return self._directory is None or self._lock is not None

    def _load(self) -> Past | None:
        """The newest stored past."""
        if self._file is not None:
            try:
                data = self._file.read()
                if data is not None:
                    self._past = Past(**orjson.loads(data))
            except FileNotFoundError:
                pass
            except (ValueError, TypeError):  # of another version
                self._past = None
        return self._past
