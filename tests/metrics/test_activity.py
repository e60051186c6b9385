"""The state that workers share: flights with all their readers, the last requests, and flights to be ended."""

import logging
import threading
import time

import pytest

from llama_api.core import Flights
from llama_api.errors import GenerationCancelled
from llama_api.metrics import Activity, History, Reporter
from llama_api.waiting import Cancelled
from tests.support.fakes import until
from tests.support.gunicorn_server import together


class Worker:
    """The flights and the activity of one worker."""

    def __init__(self, directory):
        self.flights = Flights()
        self.activity = Activity(self.flights, lambda endpoint: endpoint == "/livez", directory)
        self.activity.join()

    def fly(self, key, leads=False):
        """A reader of a flight that lasts until it is cancelled."""
        began = threading.Event()

        def produce(flight):
            flight.shared, ended = leads, threading.Event()
            with flight.cancellation.interrupts(ended.set):
                began.set()
                ended.wait(30)
            raise Cancelled

        reader, started = self.flights.join_or_start(key, produce, lambda: False)
        assert not started or began.wait(10)
        return reader

    def end(self):
        """End all flights."""
        for flight in self.flights.under_way():
            self.flights.cancel(flight.id)


@pytest.fixture
def workers(tmp_path):
    """Two workers that share a directory."""
    workers = [Worker(tmp_path / "stats") for _ in range(2)]
    yield workers
    for worker in workers:
        worker.end()


def publish(workers):
    for worker in workers:
        worker.activity.publish()


def test_flights_that_follow_are_readers_of_the_one_that_leads(workers):
    """Each worker lists the same: one flight per generation, oldest first, with the readers of all."""
    first, second = workers
    first.fly("a", leads=True)
    first.fly("a")
    second.fly("a"), second.fly("a"), second.fly("b"), second.fly(None)
    publish(workers)
    for worker in workers:
        told = worker.activity.snapshot()["flights"]
        assert [flight["readers"] for flight in told] == [4, 1, 1] and told[0]["id"] == first.flights.under_way()[0].id
        assert all({"id", "age_s", "state", "readers", "tokens", "host"} == flight.keys() for flight in told)


def test_setting_the_clock_makes_no_flight_older(workers, monkeypatch):
    """Its age is the same to the worker that has it and to the others, though the clock has been put on by an hour."""
    first, second = workers
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 3600)
    first.fly("a"), second.fly("b")
    publish(workers)
    for worker in workers:
        assert all(flight["age_s"] < 600 for flight in worker.activity.snapshot()["flights"])


def test_a_flight_is_ended_by_whoever_is_asked(workers):
    """The worker that has it ends it at its next look; its readers get the reason, and it is no longer listed."""
    first, second = workers
    reader, ending = first.fly("a"), second.activity.ending()
    publish(workers)
    over = threading.Event()

    def look():
        while not over.wait(0.05):
            first.activity.obey()

    looking = threading.Thread(target=look)
    looking.start()
    try:
        assert second.activity.cancel(reader.flight.id)
    finally:
        over.set()
        looking.join()
    with pytest.raises(GenerationCancelled):
        reader.outcome()
    assert first.activity.snapshot()["flights"] == second.activity.snapshot()["flights"] == []
    assert second.activity.ending() != ending and not second.activity.cancel(reader.flight.id)


def test_a_worker_that_is_slow_to_look_ends_its_flight_later(workers):
    """Any worker takes the request at once; from then on none lists the flight, and it does end."""
    first, second = workers
    reader = first.fly("a")
    flight, = first.activity.snapshot()["flights"]
    assert second.activity.cancel(flight["id"])
    publish(workers)
    second.activity.tidy()
    assert first.activity.snapshot()["flights"] == second.activity.snapshot()["flights"] == []
    first.activity.obey()
    with pytest.raises(GenerationCancelled):
        reader.outcome()


def test_what_was_asked_to_end_is_forgotten(workers, tmp_path, monkeypatch):
    """Once the flight has ended and no worker can still show it."""
    first, second = workers
    reader = second.fly("a")
    publish(workers)
    assert second.activity.cancel(reader.flight.id) and first.activity.ending() == {reader.flight.id}
    first.activity.tidy()
    assert first.activity.ending() == {reader.flight.id}
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 60)
    first.activity.tidy()
    assert first.activity.ending() == {reader.flight.id}  # as the other worker's last report has it
    second.activity.publish()
    first.activity.tidy()
    assert first.activity.ending() == frozenset()


def test_alone_it_ends_flights_by_itself():
    """A process without a directory needs no other to look."""
    worker = Worker(None)
    reader = worker.fly("a")
    assert [flight["id"] for flight in worker.activity.snapshot()["flights"]] == [reader.flight.id]
    assert worker.activity.cancel(reader.flight.id) and not worker.activity.cancel("none")
    with pytest.raises(GenerationCancelled):
        reader.outcome()


def test_the_last_requests_of_all(workers):
    """The newest 50 of all workers, without the monitoring ones."""
    for number in range(80):
        workers[number % 2].activity.request_ended({"cache": "hit"}, "/generate", 200 + number, 0.0125)
        workers[number % 2].activity.request_ended({}, "/livez", 200, 0.001)
    publish(workers)
    for worker in workers:
        told = worker.activity.snapshot()["requests"]
        assert [request["status"] for request in told] == list(range(279, 229, -1))
        assert told[0].items() >= {"endpoint": "/generate", "cache": "hit", "duration_ms": 12.5}.items()
        assert told[0]["time"].endswith("Z")


def test_reports_at_the_same_time_do_not_disturb_each_other(workers):
    """A request for /stats reports as well as the regular reports."""
    first, second = workers

    def report(number):
        for _ in range(100):
            first.activity.request_ended({}, "/cache", 200, number)
            first.activity.publish()
            second.activity.snapshot()

    together(4, report)
    assert len(second.activity.snapshot()["requests"]) == 50


def test_a_worker_that_ends_reports_its_last_requests(workers):
    """Not only those up to its last regular report."""
    first, second = workers
    first.activity.request_ended({}, "/cache", 200, 0.1)
    Reporter(first.activity, History(lambda: []), lambda: None).close()
    assert [request["status"] for request in second.activity.snapshot()["requests"]] == [200]


def test_a_dead_worker_is_forgotten_when_its_requests_are(tmp_path):
    """Its flights are not listed; its requests are, until there are 50 newer ones."""
    survivor, files = Worker(tmp_path / "stats"), next((tmp_path / "stats").glob("workers-*"))
    (files / "dead.json").write_text('{"flights": [{"id": "x"}], "requests": [[5, "/generate", 503, "miss", 0.1]]}')
    survivor.activity.request_ended({}, "/cache", 200, 0.1)
    told = survivor.activity.snapshot()
    assert told["flights"] == [] and [request["status"] for request in told["requests"]] == [200, 503]
    survivor.activity.tidy()
    assert (files / "dead.json").exists()
    for _ in range(50):
        survivor.activity.request_ended({}, "/cache", 200, 0.1)
    survivor.activity.tidy()
    assert not (files / "dead.json").exists() and len(survivor.activity.snapshot()["requests"]) == 50


def test_without_room_for_files_the_service_goes_on(tmp_path, caplog):
    """A directory that cannot be used is complained of once, not four times a second."""
    (tmp_path / "stats").write_text("in the way")
    activity = Activity(Flights(), lambda endpoint: False, tmp_path / "stats")
    looks = []
    reporter = Reporter(activity, History(lambda: [], tmp_path / "stats"), lambda: looks.append(1))
    with caplog.at_level(logging.WARNING):
        reporter.start()
        until(lambda: len(looks) >= 2, 20)
    assert [record.message.partition(",")[0] for record in caplog.records] == ["the figures of /stats have gaps"]
    assert activity.snapshot() == {"flights": [], "requests": []}
