"""Flights and their readers: who joins, what each sees, who is cancelled when."""

import random
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_api.answer import Piece
from llama_api.core import flights as flights_module
from llama_api.core.flights import Flight, Flights, Landing, Reader
from llama_api.errors import ClientGone, GenerationCancelled
from llama_api.waiting import Cancelled, Wait
from tests.support.fakes import answer, in_threads, until

LONG = 30.0  # seconds that no test takes


class Producer:
    """A producer controlled step by step, in the flight's own thread."""

    def __init__(self):
        self.runs, self.flights, self._end, self._outcome = 0, [], threading.Event(), None

    def __call__(self, flight):
        self.runs += 1
        self.flights.append(flight)
        with flight.cancellation.interrupts(self._end.set):
            self._end.wait(LONG)
            if flight.cancellation.requested:
                raise Cancelled
        if isinstance(self._outcome, BaseException):
            raise self._outcome
        return landing(self._outcome)

    def end(self, outcome):
        self._outcome = outcome
        self._end.set()


def landing(text):
    """The landing of a generated answer."""
    return Landing(answer(text), "generated", False, time.monotonic())


def publish(flight, *texts):
    """Publish pieces that came together."""
    flight.publish([Piece(text) for text in texts])


def texts(events):
    """The texts of a reader's events, one for each."""
    return ["".join(piece.text for piece in event) for event in events]


def text_of(reader):
    """The text of the whole answer."""
    return reader.outcome().answer.text


def here():
    """A client that stays."""
    return False


def test_who_asks_for_the_same_joins():
    """One producer serves all who join under one key, and each learns whether it began the flight."""
    flights, produce = Flights(), Producer()
    joined = [flights.join_or_start("key", produce, here) for _ in range(5)]
    assert [started for _, started in joined] == [True, False, False, False, False]
    produce.end("answer")
    assert [text_of(reader) for reader, _ in joined] == ["answer"] * 5
    assert produce.runs == 1 and flights.count == 0


def test_other_keys_and_no_key_are_never_shared():
    """Each key has its own flight, and with None as the key each caller has one."""
    flights, produce = Flights(), Producer()
    joined = [flights.join_or_start(key, produce, here) for key in ("a", "b", None, None)]
    assert all(started for _, started in joined) and flights.count == 4
    produce.end("1")
    assert [text_of(reader) for reader, _ in joined] == ["1"] * 4
    assert produce.runs == 4


def test_a_landed_flight_is_not_joined():
    """A request after the end begins a new flight."""
    flights, produce = Flights(), Producer()
    produce.end("1")
    reader, _ = flights.join_or_start("key", produce, here)
    reader.outcome()
    again, started = flights.join_or_start("key", produce, here)
    assert started and text_of(again) == "1"


def test_a_late_joiner_gets_the_pieces_so_far_then_each_as_it_comes():
    """Whenever it joins, a reader sees every piece once and in order."""
    flights, produce = Flights(), Producer()
    early, _ = flights.join_or_start("key", produce, here)
    until(lambda: produce.flights)
    flight = produce.flights[0]
    publish(flight, "a")
    publish(flight, "b")
    late, _ = flights.join_or_start("key", produce, here)
    late.start()
    events = late.events()
    assert texts([next(events)]) == ["ab"]
    publish(flight, "c")
    assert texts([next(events)]) == ["c"]
    produce.end("abc")
    assert list(events) == [] and texts(early.events()) == ["abc"]


def test_silence_is_told():
    """A stream reports the wait after each period of silence, before a piece and between two."""
    flights, produce = Flights(), Producer()
    reader, _ = flights.join_or_start("key", produce, here)
    until(lambda: produce.flights)
    flight, waits = produce.flights[0], iter([Wait(2, 9.0), Wait(1, 4.0)])
    flight.progress.wait = lambda: next(waits, Wait())
    reader.start(0.01)
    events = reader.events(0.01)
    assert [next(events), next(events), next(events)] == [(2, 9.0), (1, 4.0), (None, None)]
    publish(flight, "a")
    until(lambda: texts([event for event in [next(events)] if not isinstance(event, Wait)]) == ["a"])
    assert next(events) == Wait()
    produce.end("a")
    assert [event for event in events if not isinstance(event, Wait)] == []


@pytest.mark.parametrize("read", ["start", "events", "outcome"])
def test_a_failure_before_the_first_piece_reaches_all(read):
    """Every reader gets the one error, however it reads, and the producer ran once."""
    flights, produce = Flights(), Producer()
    readers = [flights.join_or_start("key", produce, here)[0] for _ in range(4)]
    error = ValueError("no")
    produce.end(error)

    def work(number):
        found = getattr(readers[number], read)()
        return list(found) if read == "events" else found

    assert in_threads(4, work) == [error] * 4 and produce.runs == 1 and flights.count == 0


def test_a_failure_midway_comes_after_the_pieces():
    """A stream gives what there was and then fails; its start did not."""
    flights, produce = Flights(), Producer()
    reader, _ = flights.join_or_start("key", produce, here)
    until(lambda: produce.flights)
    publish(produce.flights[0], "half")
    reader.start()
    produce.end(ValueError("broke off"))
    events = reader.events()
    assert texts([next(events)]) == ["half"]
    with pytest.raises(ValueError, match="broke off"):
        next(events)


def test_the_stack_of_a_shared_error_does_not_grow():
    """An error raised for a thousand readers does not collect a thousand stacks."""
    flights, produce = Flights(), Producer()
    reader, _ = flights.join_or_start("key", produce, here)
    produce.end(ValueError("no"))
    depths = []
    for _ in range(50):
        try:
            reader.outcome()
        except ValueError as error:
            frame, depth = error.__traceback__, 0
            while frame:
                frame, depth = frame.tb_next, depth + 1
            depths.append(depth)
    assert len(set(depths)) == 1


def test_a_producer_that_dies_of_anything_lands_its_flight():
    """Even after SystemExit in the producer's thread, all readers get an outcome."""
    flights = Flights()

    def produce(flight):
        raise SystemExit(3)

    reader, _ = flights.join_or_start("key", produce, here)
    with pytest.raises(SystemExit):
        reader.outcome()
    assert flights.count == 0


def test_only_the_last_leaver_cancels():
    """One reader less changes nothing for the others; with the last one the flight is cancelled and forgotten."""
    flights, produce = Flights(), Producer()
    first, second = (flights.join_or_start("key", produce, here)[0] for _ in range(2))
    until(lambda: produce.flights)
    first.close()
    first.close()
    assert not produce.flights[0].cancellation.requested
    second.close()
    until(lambda: flights.count == 0)
    assert produce.flights[0].cancellation.requested and type(produce.flights[0].error) is Cancelled
    again, started = flights.join_or_start("key", Producer(), here)
    assert started
    again.close()


@pytest.mark.parametrize("read", [Reader.start, Reader.outcome, lambda reader: next(reader.events())],
                         ids=["start", "outcome", "events"])
def test_a_flight_wakes_nobody_who_has_left(read, monkeypatch):
    """However a reader read, the flight forgets it when it closes, and wakes those who stay."""
    monkeypatch.setattr(flights_module, "READER_TICK", 0.01)
    flights, produce, watched = Flights(), Producer(), []
    leaver, stayer = (flights.join_or_start("key", produce, gone)[0] for gone in (lambda: True, here))
    watch = leaver.flight.watch
    monkeypatch.setattr(leaver.flight, "watch", lambda event, pieces: watched.append(event) or watch(event, pieces))
    with pytest.raises(ClientGone):
        read(leaver)
    leaver.close()
    event, = watched
    publish(leaver.flight, "a")
    produce.end("a")
    assert text_of(stayer) == "a" and not event.is_set()


def test_leaving_after_the_end_cancels_nothing():
    """A reader that has its answer closes without a request to stop."""
    flights, produce = Flights(), Producer()
    produce.end("1")
    reader, _ = flights.join_or_start("key", produce, here)
    reader.outcome()
    reader.close()
    assert not produce.flights[0].cancellation.requested


def test_a_claimed_flight_is_left_to_others():
    """While other processes may wait for a flight, the last leaver here does not cancel it; asked again, it is."""
    flights, produce = Flights(), Producer()
    reader, _ = flights.join_or_start("key", produce, here)
    until(lambda: produce.flights)
    flight = produce.flights[0]
    flight.shared = True
    reader.close()
    assert not flight.cancellation.requested
    late, started = flights.join_or_start("key", produce, here)
    assert not started and flights.cancel_if_unread(flight) is False
    late.close()
    assert flights.cancel_if_unread(flight) is True
    until(lambda: flights.count == 0)


def test_a_client_that_has_gone_stops_reading(monkeypatch):
    """A reader looks every moment whether its client is there, whatever it waits for."""
    monkeypatch.setattr(flights_module, "READER_TICK", 0.01)
    flights, produce, gone = Flights(), Producer(), threading.Event()
    reader, _ = flights.join_or_start("key", produce, gone.is_set)
    gone.set()
    for read in (reader.start, reader.outcome, lambda: next(reader.events())):
        with pytest.raises(ClientGone):
            read()
    reader.close()
    until(lambda: flights.count == 0)


def test_an_operator_ends_a_flight_by_its_id():
    """All its readers get the error; an unknown id is no flight, and the next request begins a new one."""
    flights, produce = Flights(), Producer()
    readers = [flights.join_or_start("key", produce, here)[0] for _ in range(3)]
    assert not flights.cancel("unknown") and [flight.id for flight in flights.under_way()] == [readers[0].flight.id]
    assert flights.cancel(readers[0].flight.id)
    for reader in readers:
        with pytest.raises(GenerationCancelled):
            reader.outcome()
    assert not flights.cancel(readers[0].flight.id) and flights.under_way() == []


def test_after_a_seal_nobody_joins():
    """A flight under way continues for its readers; the same request begins a new one."""
    flights, produce = Flights(), Producer()
    before, _ = flights.join_or_start("key", produce, here)
    flights.close_to_joiners()
    after, started = flights.join_or_start("key", produce, here)
    assert started and after.flight is not before.flight
    produce.end("answer")
    assert text_of(before) == text_of(after) == "answer"


def test_a_flight_notes_its_first_piece():
    """Once, whatever follows."""
    flight = Flight("key")
    assert flight.progress.first_piece_at is None
    publish(flight, "a")
    first = flight.progress.first_piece_at
    publish(flight, "b")
    assert flight.started_at <= first == flight.progress.first_piece_at


def test_a_storm_on_few_keys_leaves_no_flight():
    """Readers that join, stream, leave midway and fail: pieces are exact, runs equal starts, nothing stays."""
    flights, threads_before = Flights(), threading.active_count()
    runs, starts, lock = [0], [0], threading.Lock()
    text = [f"{n} " for n in range(20)]

    def produce(flight):
        with lock:
            runs[0] += 1
        for piece in text:
            publish(flight, piece)
            with flight.cancellation.interrupts(lambda: None):
                time.sleep(0.0002)
        if int(flight.key) == 3:
            raise ValueError("always")
        return landing("".join(texts([flight.pieces])))

    def work(number):
        chance, whole = random.Random(number), 0
        for _ in range(12):
            reader, started = flights.join_or_start(str(chance.randrange(4)), produce, here)
            with lock:
                starts[0] += started
            try:
                if chance.random() < 0.3:
                    got = []
                    for event in reader.events():
                        got += [piece.text for piece in event]
                        if chance.random() < 0.1:
                            break
                    assert got == text[:len(got)]
                elif chance.random() < 0.3:
                    reader.start()
                else:
                    assert text_of(reader) == "".join(text)
                    whole += 1
            except ValueError:
                assert reader.flight.key == "3"
            finally:
                reader.close()
        return whole

    wholes = in_threads(24, work)
    assert all(type(whole) is int for whole in wholes), wholes
    until(lambda: flights.count == 0)
    assert runs == starts and flights.under_way() == [] and sum(wholes) > 0
    until(lambda: threading.active_count() <= threads_before)


def test_identical_requests_at_once_are_one_run():
    """A hundred threads that ask together run the producer once and all have its answer."""
    flights, runs, gate = Flights(), [], threading.Event()

    def produce(flight):
        runs.append(flight)
        gate.wait(LONG)
        return landing("answer")

    def work(number):
        reader, _ = flights.join_or_start("key", produce, here)
        if reader.flight.readers == 100:
            gate.set()
        try:
            return text_of(reader)
        finally:
            reader.close()

    assert in_threads(100, work) == ["answer"] * 100
    assert len(runs) == 1 and runs[0].readers == 0 and flights.count == 0


@settings(max_examples=60)
@given(st.lists(st.sampled_from(["join", "leave", "publish", "land", "fail"]), max_size=30))
def test_any_order_of_events_keeps_the_books(events):
    """Readers are counted, the flight is cancelled when and only when the last one leaves it early."""
    flights, produce, open_readers, published = Flights(), Producer(), [], []
    first, _ = flights.join_or_start("key", produce, here)
    until(lambda: produce.flights)
    flight, open_readers = produce.flights[0], [first]
    for event in events:
        if event == "join" and not flight.landed and not flight.cancellation.requested:
            reader, started = flights.join_or_start("key", produce, here)
            assert not started
            open_readers.append(reader)
        elif event == "leave" and open_readers:
            open_readers.pop().close()
            if not open_readers and not flight.landed:
                assert flight.cancellation.requested
                until(lambda: flight.landed)
        elif event == "publish" and not flight.landed:
            published.append(str(len(published)))
            publish(flight, published[-1])
        elif event in ("land", "fail") and not flight.landed:
            produce.end("done" if event == "land" else ValueError("no"))
            until(lambda: flight.landed)
        assert flight.readers == len(open_readers)
        if open_readers:
            assert not flight.cancellation.requested
    for reader in open_readers:
        reader.close()
    until(lambda: flights.count == 0)
    assert [piece.text for piece in flight.pieces] == published
