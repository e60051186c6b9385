"""The past in points: differences of counters, quantiles of histograms, gaps without a sampler, one sampler."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_api.metrics import STEP, History
from llama_api.metrics.history import POINTS
from llama_api.metrics.series import SERIES, quantile
from tests.support.fakes import Clock

START = 1_000_000
ERRORS, RUNNING, TOKENS = ("Requests", "failed"), ("Queue", "running"), ("Tokens", "generated")
WAIT = ("Wait and first token", "wait p50")
BOUNDS = (0.1, 0.25, 1.0, 5.0, math.inf)


class Figures:
    """Metrics that a test sets; counters have the names of their series."""

    def __init__(self):
        self.errors, self.tokens, self.running, self.waits = 0, 0, None, dict.fromkeys(BOUNDS, 0)

    def observe(self, seconds):
        for bound in BOUNDS:
            self.waits[bound] += seconds <= bound

    def samples(self):
        yield "llama_api_errors_total", {"slug": "overloaded"}, self.errors / 2
        yield "llama_api_errors_total", {"slug": "not-found"}, self.errors / 2
        yield "llama_api_generated_tokens_total", {}, self.tokens
        if self.running is not None:
            yield "llama_api_generations_running", {"host": "a"}, self.running
        for bound, count in self.waits.items():
            yield "llama_api_queue_wait_seconds_bucket", {"le": "+Inf" if bound == math.inf else str(bound)}, count


@pytest.fixture
def figures():
    return Figures()


@pytest.fixture
def clock():
    return Clock(START)


@pytest.fixture
def history(figures, clock, tmp_path):
    """A history that has begun."""
    history = History(figures.samples, tmp_path / "stats", clock)
    assert history.sample()
    return history


def points(history, series):
    """All points of a series, found by its plot and its name."""
    return next(one["points"] for one in json.loads(history.snapshot()[1])
                if (one.get("plot"), one["name"]) == series)


def test_counters_are_told_by_their_growth(history, figures, clock):
    """Counts from before the beginning are ignored; then each interval has its growth, over all labels."""
    assert points(history, ERRORS) == [] and history.snapshot()[0] == START
    for grown in (10, 0, 3):
        figures.errors += grown
        clock.tick(STEP)
        assert history.due and history.sample()
    assert points(history, ERRORS) == [2.0, 0.0, 0.6] and history.snapshot()[0] == START + 3 * STEP


def test_a_sample_is_taken_once_an_interval(history, figures, clock):
    """Between two ends of intervals nothing is due, and a late sample is that of its interval."""
    assert not history.due
    clock.tick(STEP - 0.1)
    assert not history.due
    clock.tick(0.5)
    figures.errors = 5
    assert history.due and history.sample() and not history.due and not history.sample()
    assert points(history, ERRORS) == [1.0] and history.snapshot()[0] == START + STEP


def test_missed_intervals_are_gaps(history, figures, clock):
    """Nobody knows how growth over several intervals was spread; what a gauge says now is known."""
    figures.errors, figures.running = 100, 3
    clock.tick(4 * STEP)
    history.sample()
    figures.errors, figures.running = 105, None
    clock.tick(STEP)
    history.sample()
    assert points(history, ERRORS) == [None, None, None, None, 1.0]
    assert points(history, RUNNING) == [None, None, None, 3, None]


def test_a_counter_that_goes_backwards_is_a_gap(history, figures, clock):
    """Negative growth is omitted, and so is the growth of the next interval."""
    for tokens in (50, 20, 30):
        figures.tokens = tokens
        clock.tick(STEP)
        history.sample()
    assert points(history, TOKENS) == [10.0, None, 2.0]


def test_the_ring_has_15_minutes(history, figures, clock):
    """Older points leave, after a long gap too; after a clock has been set back it begins again."""
    for number in range(POINTS + 20):
        figures.errors += 5 * number
        clock.tick(STEP)
        history.sample()
    assert points(history, ERRORS) == [float(number) for number in range(20, POINTS + 20)]
    clock.tick(1000 * STEP)
    history.sample()
    assert points(history, ERRORS) == [None] * POINTS
    clock.tick(-500 * STEP)
    assert history.due and history.sample() and points(history, ERRORS) == []


def test_it_outlives_its_sampler_and_has_but_one(history, figures, clock, tmp_path):
    """Another worker returns the same and does not sample; it continues where the first one ended."""
    figures.errors = 5
    clock.tick(STEP)
    other = History(figures.samples, tmp_path / "stats", clock)
    assert not other.sample() and history.sample()
    assert other.snapshot() == history.snapshot() and points(other, ERRORS) == [1.0]
    del history
    figures.errors = 15
    clock.tick(STEP)
    elsewhere = tmp_path / "another"
    elsewhere.mkdir()
    (elsewhere / "history.json").write_bytes((tmp_path / "stats" / "history.json").read_bytes())
    heir = History(figures.samples, elsewhere, clock)
    assert heir.sample() and points(heir, ERRORS) == [1.0, 2.0]


@pytest.mark.parametrize("rest", [b"", b"{", b"[]", b'{"end": 5}'])
def test_what_cannot_be_read_is_begun_anew(figures, clock, tmp_path, rest):
    """Half a file, or one of another version, costs the past and nothing else."""
    (tmp_path / "history.json").write_bytes(rest)
    history = History(figures.samples, tmp_path, clock)
    assert points(history, ERRORS) == [] and history.sample()
    figures.errors = 5
    clock.tick(STEP)
    assert history.sample() and points(history, ERRORS) == [1.0]


def test_without_a_directory_it_is_kept_in_memory(figures, clock):
    """One process alone needs no files."""
    history = History(figures.samples, clock=clock)
    assert history.sample()
    figures.observe(0.2)
    clock.tick(STEP)
    assert history.sample() and points(history, WAIT) == [pytest.approx(0.175)]


def test_quantiles_are_of_the_interval(history, figures, clock):
    """Earlier observations do not count, and without observations there is no figure."""
    for _ in range(50):
        figures.observe(4)
    clock.tick(STEP)
    history.sample()
    clock.tick(STEP)
    history.sample()
    for seconds in (0.05, 0.2, 0.2, 0.2):
        figures.observe(seconds)
    clock.tick(STEP)
    history.sample()
    assert points(history, WAIT) == [pytest.approx(3.0), None, pytest.approx(0.15)]


@pytest.mark.parametrize("share, observed, wanted", [
    (0.5, [], None), (0.5, [0.05] * 10, 0.05), (0.5, [0.2] * 10, 0.175), (0.95, [0.2] * 20, 0.2425),
    (0.5, [0.05, 4], 0.1), (0.95, [0.05] * 19 + [4], 0.1), (0.5, [99], 5.0), (0.5, [0.05, 99, 99], 5.0)])
def test_quantile_as_prometheus_tells_it(share, observed, wanted):
    """Linear inside a bucket, from 0 in the first; in the last one its lower bound."""
    now = {str(bound): sum(seconds <= bound for seconds in observed) for bound in BOUNDS}
    assert quantile(share, now, {}) == (None if wanted is None else pytest.approx(wanted))


@given(observed=st.lists(st.floats(0.001, 4.9), min_size=1, max_size=60), share=st.sampled_from([0.5, 0.95]))
def test_quantile_is_in_the_bucket_of_the_true_one(observed, share):
    """However it is spread inside, the bucket is the one in which the observation of that rank lies."""
    now = {str(bound): sum(seconds <= bound for seconds in observed) for bound in BOUNDS}
    true = sorted(observed)[max(0, math.ceil(share * len(observed)) - 1)]
    upper = next(bound for bound in BOUNDS if true <= bound)
    lower = max((bound for bound in (0.0, *BOUNDS) if bound < upper))
    assert lower <= quantile(share, now, {}) <= upper


def test_series_have_names_of_their_own():
    """No two of one plot are called the same, and each plot has one unit."""
    assert len({series.id for series in SERIES}) == len(SERIES)
    for plot in {series.plot for series in SERIES} - {None}:
        assert len({series.unit for series in SERIES if series.plot == plot}) == 1
