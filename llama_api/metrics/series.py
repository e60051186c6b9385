"""The series that the page plots: the metric of each, and the computation of its points from two samples."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

STEP = 5  # seconds between two points
QUANTILES = {"p50": 0.5, "p95": 0.95}

Sample = tuple[str, Mapping[str, str], float]  # name, labels and value
Reading = float | dict[str, float] | None  # of one series: a sum, or counts by their buckets' upper bounds


class Series(NamedTuple):
    """One line or area of a plot; plots.js says what ``unit``, ``plot``, ``kind`` and ``tone`` are.

    ``figure`` is how a point is made: rate (the growth of a counter a second), level (of a gauge), or p50 or p95 (of
    what a histogram has observed between two samples). With ``result`` only samples of that label count.
    """

    plot: str | None
    name: str
    unit: str
    kind: str
    metric: str
    figure: str = "rate"
    result: str | None = None
    tone: str | None = None

    @property
    def id(self) -> str:
        """Its name among all series."""
        return f"{self.plot}/{self.name}"

    def described(self, points: list[float | None]) -> dict[str, Any]:
        """Its description in GET /stats."""
        told = {"name": self.name, "unit": self.unit, "metric": self.metric, "plot": self.plot, "kind": self.kind,
                "tone": self.tone}
        return {**{key: value for key, value in told.items() if value is not None}, "points": points}

    def read(self, samples: Mapping[str, list[Sample]]) -> Reading:
        """The reading in ``samples``, which are by name."""
        if self.figure in QUANTILES:
            counts: dict[str, float] = defaultdict(float)
            for _, labels, value in samples.get(f"{self.metric}_bucket", ()):
                counts[labels["le"]] += value
            return dict(counts)
        found = [value for _, labels, value in samples.get(self.metric, ())
                 if self.result is None or labels["result"] == self.result]
        return sum(found) if found else None

    def point(self, now: Reading, before: Reading) -> float | None:
        """The point between two readings, None without data or if a counter went backwards."""
        if isinstance(now, dict) or isinstance(before, dict):
            return quantile(QUANTILES[self.figure], *(found if isinstance(found, dict) else {}
                                                      for found in (now, before)))
        if self.figure == "level" or now is None:
            return now
        grown = now - (before or 0.0)
        return round(grown / STEP, 6) if grown >= 0 else None


def quantile(share: float, now: Mapping[str, float], before: Mapping[str, float]) -> float | None:
    """The quantile of the observations between two readings of a histogram, as in Prometheus' histogram_quantile.

    Observations are assumed to be evenly spread in a bucket; beyond the last bound the result is that bound.
    """
    bounds = sorted((float(bound), count - before.get(bound, 0.0)) for bound, count in now.items())
    if not bounds or bounds[-1][1] <= 0:
        return None
    rank = share * bounds[-1][1]
    lower, below = 0.0, 0.0
    for upper, count in bounds:
        if count < below:
            return None  # a counter went backwards
        if count >= rank:
            inside = (rank - below) / (count - below) if count > below else 0.0
            return round(lower + (upper - lower) * inside, 6) if upper != float("inf") else lower
        lower, below = upper, count
    return None


def readings(samples: Iterable[Sample]) -> dict[str, Reading]:
    """The reading of each series, by its id."""
    by_name: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_name[sample[0]].append(sample)
    return {series.id: series.read(by_name) for series in SERIES}


_WAITS, _FIRST = "llama_api_queue_wait_seconds", "llama_api_time_to_first_token_seconds"
SERIES = (
    *(Series("Requests", result, "/s", "area", "llama_api_answers_total", result=result)
      for result in ("hit", "joined", "generated")),
    Series("Requests", "failed", "/s", "area", "llama_api_errors_total", tone="bad"),
    Series("Queue", "running", "", "area", "llama_api_generations_running", "level"),
    Series("Queue", "waiting", "", "area", "llama_api_generations_waiting", "level"),
    Series("Queue", "slots", "", "limit", "llama_api_slots", "level"),
    *(Series("Wait and first token", f"{name} {figure}", "s", "line", metric, figure)
      for name, metric in (("wait", _WAITS), ("first token", _FIRST)) for figure in QUANTILES),
    Series("Tokens", "generated", "/s", "area", "llama_api_generated_tokens_total"),
    Series("Tokens", "saved", "/s", "area", "llama_api_saved_tokens_total"),
    Series("Seconds saved and spent", "saved", "s/s", "line", "llama_api_saved_seconds_total"),
    Series("Seconds saved and spent", "spent", "s/s", "line", "llama_api_inference_duration_seconds_sum"),
    Series("Cache", "stored", "B", "area", "llama_api_cache_bytes", "level"),
    Series("Cache", "bound", "B", "limit", "llama_api_cache_bytes_limit", "level"),
    Series(None, "no Ollama answers", "", "outage", "llama_api_ollama_up", "level"))
