"""The last 15 minutes of the service: a ring of points, which one of all workers samples every 5 seconds."""

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
    """What follows on ``past`` with readings of ``now``.

    Intervals at whose end nobody sampled are None, and so is the growth of a counter over more than one interval.
    Without a past, or after the clock was set back, the history begins here: what was counted before is not growth.
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
    """Samples and tells the past. With a ``directory`` it is that of all workers that use it, and outlives them.

    ``samples`` gives all samples of now; ``clock`` tells seconds since 1970.
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
        """Whether it is time for a sample."""
        return not self._due - STEP <= self._clock() < self._due

    def sample(self) -> bool:
        """Take a sample, unless another worker is the one to do so; tells whether it was taken. Raises OSError."""
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
        """Whether this worker is the one that samples; another takes over when it dies."""
        if self._directory is not None and self._lock is None:
            self._directory.mkdir(exist_ok=True)
            self._lock = lock_file(self._directory / "sampler.lock")
        return self._directory is None or self._lock is not None

    def _load(self) -> Past | None:
        """The newest past there is."""
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
