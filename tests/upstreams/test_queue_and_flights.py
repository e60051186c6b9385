"""Who waits for whom: the gate's slots, the flights and their readers, time limits and cancellation."""

import random
import signal
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_api import waiting as concurrency
from llama_api.core import flights as flights_module
from llama_api.waiting import Cancellation, Cancelled, Watchdog
from llama_api.core.flights import Flight, Flights, ReaderGone, Shared
from llama_api.upstreams.queue import Gate, GateClosed, SlotFiles
from tests.support.fakes import in_threads, until

LONG = 30.0  # seconds that no test takes


class Holder:
    """A thread that wants a slot of ``gate`` and holds it until told to let go."""

    def __init__(self, gate, note=lambda: None):
        self.cancellation, self.error = Cancellation(), None
        self._gate, self._note, self._go, self.holding = gate, note, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            with self._gate.slot(self.cancellation) as self.waited:
                self._note()
                self.holding.set()
                self._go.wait(LONG)
        except (Cancelled, GateClosed) as error:
            self.error = error

    def end(self):
        self._go.set()
        self._thread.join(LONG)
        assert not self._thread.is_alive()

    def ended(self):
        return not self._thread.is_alive()


def queue_up(gate, count, **kwargs):
    """``count`` holders that have queued one after the other."""
    holders = []
    for _ in range(count):
        waiting = gate.waiting
        holders.append(Holder(gate, **kwargs))
        until(lambda: gate.waiting == waiting + 1)
    return holders


@pytest.fixture(params=["own", "shared"])
def make_gate(request, tmp_path):
    """Make a gate whose slots are the process's own, or files that others could share."""
    def make(slots=1, limit=64, wait_seconds=LONG, **kwargs):
        directory = str(tmp_path) if request.param == "shared" else None
        return Gate(slots, limit, wait_seconds, directory=directory, **kwargs)
    return make


# Gate


@pytest.mark.parametrize("slots", [1, 3])
def test_never_more_than_the_slots_run(make_gate, slots):
    """Twenty threads of short visits: as many at once as there are slots, never one more, none left over."""
    gate, inside, seen, lock = make_gate(slots), set(), [], threading.Lock()

    def work(number):
        for _ in range(10):
            with gate.slot(Cancellation()) as waited:
                assert waited >= 0
                with lock:
                    inside.add(number)
                    seen.append(len(inside))
                time.sleep(random.uniform(0, 0.001))
                with lock:
                    inside.remove(number)

    assert in_threads(20, work) == [None] * 20
    assert max(seen) == slots and len(seen) == 200
    assert gate.running == gate.waiting == 0


def test_slots_go_in_order_of_arrival(make_gate):
    """Who came first is served first."""
    gate, order = make_gate(), []
    first = Holder(gate)
    assert first.holding.wait(LONG)
    holders = []
    for number in range(10):
        holders.append(Holder(gate, note=lambda number=number: order.append(number)))
        until(lambda: gate.waiting == number + 1)
    first.end()
    for holder in holders:
        assert holder.holding.wait(LONG)
        holder.end()
    assert order == list(range(10))


def test_nobody_overtakes_the_queue(tmp_path):
    """A newcomer goes behind those who wait, though a slot is free and they have yet to notice."""
    gate, order = Gate(1, 64, LONG, directory=str(tmp_path), peers=True), []
    first = Holder(gate)
    assert first.holding.wait(LONG)
    waiter, = queue_up(gate, 1, note=lambda: order.append("waiter"))
    first.end()
    newcomer = Holder(gate, note=lambda: order.append("newcomer"))
    for holder in (waiter, newcomer):
        assert holder.holding.wait(LONG)
        holder.end()
    assert order == ["waiter", "newcomer"]


def test_a_full_queue_turns_away_at_once(make_gate):
    """One more than may wait is refused without waiting, and says after how many seconds to come back."""
    gate = make_gate(slots=1, limit=2)
    holders = [Holder(gate)]
    assert holders[0].holding.wait(LONG)
    holders += queue_up(gate, 2)
    with pytest.raises(GateClosed) as caught, gate.slot(Cancellation()):
        pass
    assert caught.value.retry_after >= 1 and "2 others" in str(caught.value)
    for holder in holders:
        holder.end()
    assert gate.running == gate.waiting == 0


def test_without_a_queue_only_a_free_slot_helps(make_gate):
    """A limit of 0 gives what is free and refuses all else."""
    gate = make_gate(slots=1, limit=0)
    with gate.slot(Cancellation()):
        with pytest.raises(GateClosed), gate.slot(Cancellation()):
            pass
    with gate.slot(Cancellation()) as waited:
        assert waited < LONG


def test_the_wait_is_bounded(make_gate):
    """Who waited as long as is allowed is refused, and leaves no trace in the queue."""
    gate = make_gate(wait_seconds=0.05)
    with gate.slot(Cancellation()):
        with pytest.raises(GateClosed, match=r"within 0\.05 s"), gate.slot(Cancellation()):
            pass
        assert gate.waiting == 0
    assert gate.running == 0


def test_a_cancelled_waiter_leaves_its_place_at_once(make_gate):
    """A request on a waiter ends its wait, frees its place and does not disturb the order of the others."""
    gate = make_gate(slots=1, limit=3)
    first = Holder(gate)
    assert first.holding.wait(LONG)
    before, leaver, after = queue_up(gate, 3)
    leaver.cancellation.request()
    until(leaver.ended)
    assert type(leaver.error) is Cancelled and gate.waiting == 2
    late, = queue_up(gate, 1)
    for holder in (first, before, after, late):
        assert holder.holding.wait(LONG)
        holder.end()
    assert gate.running == gate.waiting == 0


def test_the_first_in_the_queue_can_be_cancelled_too(make_gate):
    """The second takes its place."""
    gate = make_gate()
    first = Holder(gate)
    assert first.holding.wait(LONG)
    leaver, second = queue_up(gate, 2)
    leaver.cancellation.request()
    until(leaver.ended)
    first.end()
    assert second.holding.wait(LONG)
    second.end()


def test_who_is_cancelled_before_does_not_queue(make_gate):
    """A wait does not begin after a request to stop."""
    gate, cancellation = make_gate(), Cancellation()
    cancellation.request()
    with gate.slot(Cancellation()):
        with pytest.raises(Cancelled), gate.slot(cancellation):
            pass
        assert gate.waiting == 0


def test_an_error_inside_gives_the_slot_back(make_gate):
    """Whatever ends the block, the slot is free again."""
    gate = make_gate()
    for error in (ValueError, Cancelled, KeyboardInterrupt):
        with pytest.raises(error), gate.slot(Cancellation()):
            raise error
    assert gate.running == 0
    with gate.slot(Cancellation()):
        pass


def test_retry_after_follows_the_recent_speed():
    """Long visits and a long queue make for a later return, never under one second nor over an hour."""
    gate = Gate(2, 64, LONG)
    assert gate.retry_after() == 1
    gate._mean_seconds = 10.0
    assert gate.retry_after() == 5
    gate._queue.update(dict.fromkeys(range(3)))
    assert gate.retry_after() == 20
    gate._mean_seconds = 1e9
    assert gate.retry_after() == 3600


def test_retry_after_learns_from_each_visit():
    """The mean moves towards what was seen last; before the first end it is how long that one has run."""
    gate = Gate(1, 0, LONG)
    with gate.slot(Cancellation()):
        gate._running.update({handle: taken - 7.5 for handle, taken in gate._running.items()})
        assert gate.retry_after() == 8
    gate._mean_seconds = 100.0
    for _ in range(30):
        with gate.slot(Cancellation()):
            pass
    assert gate.retry_after() == 1


def test_a_storm_of_comers_and_leavers_leaves_nothing(make_gate):
    """Threads that queue, are cancelled at any moment, or run out of time: no slot and no place is lost."""
    gate, inside, most = make_gate(slots=2, limit=10, wait_seconds=0.03), [0], []
    outcomes, lock = [], threading.Lock()

    def work(number):
        chance = random.Random(number)
        for _ in range(15):
            cancellation = Cancellation()
            timer = threading.Timer(chance.uniform(0, 0.01), cancellation.request)
            timer.start()
            try:
                with gate.slot(cancellation):
                    with lock:
                        inside[0] += 1
                        most.append(inside[0])
                    time.sleep(chance.uniform(0, 0.004))
                    with lock:
                        inside[0] -= 1
                outcomes.append("served")
            except (Cancelled, GateClosed) as error:
                outcomes.append(type(error).__name__)
            timer.join()

    assert in_threads(16, work) == [None] * 16
    assert len(outcomes) == 16 * 15 and max(most) <= 2 and outcomes.count("served") == len(most)
    assert gate.running == gate.waiting == 0
    with gate.slot(Cancellation()), gate.slot(Cancellation()):
        assert gate.running == 2


# Slots that processes share


def test_gates_of_one_directory_share_its_slots(tmp_path):
    """Two workers' gates together hold no more slots than there are."""
    gates = [Gate(2, 64, LONG, directory=str(tmp_path), peers=True) for _ in range(2)]
    inside, most, lock = [0], [], threading.Lock()

    def work(number):
        for _ in range(5):
            with gates[number % 2].slot(Cancellation()):
                with lock:
                    inside[0] += 1
                    most.append(inside[0])
                time.sleep(0.001)
                with lock:
                    inside[0] -= 1

    assert in_threads(8, work) == [None] * 8
    assert max(most) == 2 and len(most) == 40
    assert [gate.running for gate in gates] == [0, 0]


HOLD = """
import sys
from llama_api.waiting import Cancellation
from llama_api.upstreams.queue import Gate
with Gate(1, 0, 1.0, directory=sys.argv[1]).slot(Cancellation()):
    print("holding", flush=True)
    sys.stdin.read()
"""


def test_a_killed_process_gives_its_slot_back(tmp_path):
    """``kill -9`` of a holder frees its slot for the other process at once."""
    gate = Gate(1, 64, LONG, directory=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"holding\n"
        waiter, = queue_up(gate, 1)
        assert not waiter.holding.wait(0.1) and gate.running == 0
        other.send_signal(signal.SIGKILL)
        assert waiter.holding.wait(LONG)
        waiter.end()


def test_slot_files_are_taken_and_given_back(tmp_path):
    """Each slot is one file; all can be held at once, and by one holder each."""
    here, there = (SlotFiles(str(tmp_path), 3) for _ in range(2))
    mine = [here.take(), here.take()]
    theirs = there.take()
    assert None not in [*mine, theirs] and here.take() is None and there.take() is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["slot-0", "slot-1", "slot-2"]
    here.give_back(mine[0])
    assert there.take() is not None and here.take() is None


# Flights


class Producer:
    """A producer that does what it is told, step by step, in the flight's own thread."""

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
        return self._outcome

    def end(self, outcome):
        self._outcome = outcome
        self._end.set()


def here():
    """A client that stays."""
    return False


def test_who_asks_for_the_same_joins():
    """One producer serves all who board under one key, and each is told whether it began the flight."""
    flights, produce = Flights(), Producer()
    boarded = [flights.board("key", produce, here) for _ in range(5)]
    assert [started for _, started in boarded] == [True, False, False, False, False]
    produce.end("answer")
    assert [reader.outcome() for reader, _ in boarded] == ["answer"] * 5
    assert produce.runs == 1 and flights.count == 0


def test_other_keys_and_no_key_are_never_shared():
    """Each key has its own flight, and None as the key has one for each who asks."""
    flights, produce = Flights(), Producer()
    boarded = [flights.board(key, produce, here) for key in ("a", "b", None, None)]
    assert all(started for _, started in boarded) and flights.count == 4
    produce.end(1)
    assert [reader.outcome() for reader, _ in boarded] == [1] * 4
    assert produce.runs == 4


def test_a_landed_flight_is_not_joined():
    """Who asks after the end begins anew."""
    flights, produce = Flights(), Producer()
    produce.end(1)
    reader, _ = flights.board("key", produce, here)
    reader.outcome()
    again, started = flights.board("key", produce, here)
    assert started and again.outcome() == 1


def test_a_late_joiner_gets_the_pieces_so_far_then_each_as_it_comes():
    """Whenever it joins, a reader sees every piece once and in order."""
    flights, produce = Flights(), Producer()
    early, _ = flights.board("key", produce, here)
    until(lambda: produce.flights)
    flight = produce.flights[0]
    flight.publish("a")
    flight.publish("b")
    late, _ = flights.board("key", produce, here)
    late.start()
    pieces = late.pieces()
    assert [next(pieces), next(pieces)] == ["a", "b"]
    flight.publish("c")
    assert next(pieces) == "c"
    produce.end("abc")
    assert list(pieces) == [] and list(early.pieces()) == ["a", "b", "c"]


@pytest.mark.parametrize("read", ["start", "pieces", "outcome"])
def test_a_failure_before_the_first_piece_reaches_all(read):
    """Every reader gets the one error, however it reads, and the producer ran once."""
    flights, produce = Flights(), Producer()
    readers = [flights.board("key", produce, here)[0] for _ in range(4)]
    error = ValueError("no")
    produce.end(error)

    def work(number):
        found = getattr(readers[number], read)()
        return list(found) if read == "pieces" else found

    assert in_threads(4, work) == [error] * 4 and produce.runs == 1 and flights.count == 0


def test_a_failure_midway_comes_after_the_pieces():
    """A stream gives what there was and then fails; its start did not."""
    flights, produce = Flights(), Producer()
    reader, _ = flights.board("key", produce, here)
    until(lambda: produce.flights)
    produce.flights[0].publish("half")
    reader.start()
    produce.end(ValueError("broke off"))
    pieces = reader.pieces()
    assert next(pieces) == "half"
    with pytest.raises(ValueError, match="broke off"):
        next(pieces)


def test_the_stack_of_a_shared_error_does_not_grow():
    """An error raised for a thousand readers does not collect a thousand stacks."""
    flights, produce = Flights(), Producer()
    reader, _ = flights.board("key", produce, here)
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
    """Even SystemExit in the producer's thread leaves nobody waiting."""
    flights = Flights()

    def produce(flight):
        raise SystemExit(3)

    reader, _ = flights.board("key", produce, here)
    with pytest.raises(SystemExit):
        reader.outcome()
    assert flights.count == 0


def test_only_the_last_leaver_cancels():
    """One reader less changes nothing for the others; with the last one the flight is cancelled and forgotten."""
    flights, produce = Flights(), Producer()
    first, second = (flights.board("key", produce, here)[0] for _ in range(2))
    until(lambda: produce.flights)
    first.close()
    first.close()
    assert not produce.flights[0].cancellation.requested
    second.close()
    until(lambda: flights.count == 0)
    assert produce.flights[0].cancellation.requested and type(produce.flights[0].error) is Cancelled
    again, started = flights.board("key", Producer(), here)
    assert started
    again.close()


def test_leaving_after_the_end_cancels_nothing():
    """A reader that has its answer closes without a request to stop."""
    flights, produce = Flights(), Producer()
    produce.end(1)
    reader, _ = flights.board("key", produce, here)
    reader.outcome()
    reader.close()
    assert not produce.flights[0].cancellation.requested


def test_a_claimed_flight_is_left_to_others():
    """While other processes may wait for a flight, the last leaver here does not cancel it; asked again, it is."""
    flights, produce = Flights(), Producer()
    reader, _ = flights.board("key", produce, here)
    until(lambda: produce.flights)
    flight = produce.flights[0]
    flight.claimed = True
    reader.close()
    assert not flight.cancellation.requested
    late, started = flights.board("key", produce, here)
    assert not started and flights.cancel_if_unread(flight) is False
    late.close()
    assert flights.cancel_if_unread(flight) is True
    until(lambda: flights.count == 0)


def test_a_client_that_has_gone_stops_reading(monkeypatch):
    """A reader looks every moment whether its client is there, whatever it waits for."""
    monkeypatch.setattr(flights_module, "READER_TICK", 0.01)
    flights, produce, gone = Flights(), Producer(), threading.Event()
    reader, _ = flights.board("key", produce, gone.is_set)
    gone.set()
    for read in (reader.start, reader.outcome, lambda: next(reader.pieces())):
        with pytest.raises(ReaderGone):
            read()
    reader.close()
    until(lambda: flights.count == 0)


def test_a_flight_remembers_its_times():
    """The first piece and the landing are noted once, and not moved by what follows."""
    flight = Flight("key")
    assert flight.first_piece_at is flight.landed_at is None
    flight.publish("a")
    first = flight.first_piece_at
    flight.publish("b")
    flight.land("ab")
    assert flight.started_at <= first == flight.first_piece_at <= flight.landed_at
    assert flight.wait_piece(2, 0) and flight.wait_landed(0)


def test_a_wait_for_a_piece_ends_without_one():
    """Waits return False when their time has passed."""
    flight = Flight("key")
    assert not flight.wait_piece(0, 0.001) and not flight.wait_landed(0.001)


def test_a_storm_on_few_keys_leaves_no_flight():
    """Readers that join, stream, leave midway and fail: pieces are exact, runs equal starts, nothing stays."""
    flights, threads_before = Flights(), threading.active_count()
    runs, starts, lock = [0], [0], threading.Lock()
    text = [f"{n} " for n in range(20)]

    def produce(flight):
        with lock:
            runs[0] += 1
        for piece in text:
            flight.publish(piece)
            with flight.cancellation.interrupts(lambda: None):
                time.sleep(0.0002)
        if int(flight.key) == 3:
            raise ValueError("always")
        return "".join(flight.pieces)

    def work(number):
        chance, whole = random.Random(number), 0
        for _ in range(12):
            reader, started = flights.board(str(chance.randrange(4)), produce, here)
            with lock:
                starts[0] += started
            try:
                if chance.random() < 0.3:
                    got = []
                    for piece in reader.pieces():
                        got.append(piece)
                        if chance.random() < 0.1:
                            break
                    assert got == text[:len(got)]
                elif chance.random() < 0.3:
                    reader.start()
                else:
                    assert reader.outcome() == "".join(text)
                    whole += 1
            except ValueError:
                assert reader.flight.key == "3"
            finally:
                reader.close()
        return whole

    wholes = in_threads(24, work)
    assert all(type(whole) is int for whole in wholes), wholes
    until(lambda: flights.count == 0)
    assert runs == starts and flights._flights == {} and sum(wholes) > 0
    until(lambda: threading.active_count() <= threads_before)


def test_identical_requests_at_once_are_one_run():
    """A hundred threads that ask together run the producer once and all have its answer."""
    flights, runs, gate = Flights(), [], threading.Event()

    def produce(flight):
        runs.append(flight)
        gate.wait(LONG)
        return "answer"

    def work(number):
        reader, _ = flights.board("key", produce, here)
        if reader.flight.readers == 100:
            gate.set()
        try:
            return reader.outcome()
        finally:
            reader.close()

    assert in_threads(100, work) == ["answer"] * 100
    assert len(runs) == 1 and runs[0].readers == 0 and flights.count == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["join", "leave", "publish", "land", "fail"]), max_size=30))
def test_any_order_of_events_keeps_the_books(events):
    """Readers are counted, the flight is cancelled when and only when the last one leaves it early."""
    flights, produce, open_readers, published = Flights(), Producer(), [], []
    first, _ = flights.board("key", produce, here)
    until(lambda: produce.flights)
    flight, open_readers = produce.flights[0], [first]
    for event in events:
        if event == "join" and not flight.landed and not flight.cancellation.requested:
            reader, started = flights.board("key", produce, here)
            assert not started
            open_readers.append(reader)
        elif event == "leave" and open_readers:
            open_readers.pop().close()
            if not open_readers and not flight.landed:
                assert flight.cancellation.requested
                until(lambda: flight.landed)
        elif event == "publish" and not flight.landed:
            published.append(str(len(published)))
            flight.publish(published[-1])
        elif event in ("land", "fail") and not flight.landed:
            produce.end("done" if event == "land" else ValueError("no"))
            until(lambda: flight.landed)
        assert flight.readers == len(open_readers)
        if open_readers:
            assert not flight.cancellation.requested
    for reader in open_readers:
        reader.close()
    until(lambda: flights.count == 0 and flights._flights == {})
    assert flight.pieces == published


# Watchdog


def test_a_time_limit_strikes_once_it_has_passed():
    """The action of a block that takes too long runs once; that of one that ends in time never does."""
    watchdog, struck = Watchdog(), []
    with watchdog.limit(LONG, lambda: struck.append("long")):
        with watchdog.limit(0.01, lambda: struck.append("short")):
            until(lambda: struck)
        time.sleep(3 * concurrency.WATCH_TICK)
    assert struck == ["short"]


def test_an_action_that_fails_harms_no_other_limit(caplog):
    """A failing action is logged and the next limit strikes all the same."""
    watchdog, struck = Watchdog(), []

    def fail():
        raise ValueError("in the action")

    logger = concurrency.logger
    logger.addHandler(caplog.handler)
    try:
        with watchdog.limit(0.01, fail), watchdog.limit(0.01, lambda: struck.append(1)):
            until(lambda: struck)
    finally:
        logger.removeHandler(caplog.handler)
    with watchdog.limit(0.01, lambda: struck.append(2)):
        until(lambda: len(struck) == 2)
    assert any("action failed" in record.message for record in caplog.records)


def test_one_thread_watches_any_number_of_limits():
    """Hundreds of limits at once cost one thread; each strikes exactly once, and it sleeps when there are none."""
    watchdog, lock, struck = Watchdog(), threading.Lock(), []
    before = threading.active_count()

    def note(number):
        with lock:
            struck.append(number)

    def work(number):
        with watchdog.limit(0.01 if number % 2 else LONG, lambda: note(number)):
            if number % 2:
                until(lambda: number in struck)

    assert in_threads(100, work) == [None] * 100
    assert sorted(struck) == list(range(1, 100, 2))
    until(lambda: threading.active_count() <= before + 1)
    until(lambda: not watchdog._busy.is_set())
    assert not watchdog._limits


def test_a_limit_ends_with_its_block():
    """An error out of the block takes the limit away as well."""
    watchdog = Watchdog()
    with pytest.raises(ValueError), watchdog.limit(LONG, lambda: None):
        raise ValueError
    assert not watchdog._limits


# Cancellation


def test_a_request_interrupts_the_wait_under_way():
    """The interrupt of the block inside runs on a request, and no more once the block has ended."""
    cancellation, calls = Cancellation(), []
    with cancellation.interrupts(lambda: calls.append(1)):
        cancellation.request()
    cancellation.request()
    assert calls == [1] and cancellation.requested


def test_after_a_request_no_wait_begins():
    """The next block raises Cancelled before its first line."""
    cancellation = Cancellation()
    cancellation.request()
    with pytest.raises(Cancelled), cancellation.interrupts(lambda: None):
        pytest.fail("the wait began")


def test_a_request_at_any_moment_is_never_lost():
    """However a request falls on the begin of a wait, the wait is interrupted or does not begin."""
    for number in range(300):
        cancellation, woken = Cancellation(), threading.Event()

        def wait(_, cancellation=cancellation, woken=woken):
            with cancellation.interrupts(woken.set):
                return woken.wait(LONG)

        def act(which, wait=wait, cancellation=cancellation):
            return wait(which) if which == 0 else cancellation.request()

        outcome, _ = in_threads(2, act)
        assert outcome is True or type(outcome) is Cancelled


def test_callers_of_one_key_at_one_time_share_one_call():
    """Twenty threads, one call, one result; the next caller calls again."""
    shared, calls, go, results = Shared(), [], threading.Event(), []

    def slow():
        calls.append(1)
        return go.wait(LONG) and "the one result"

    threads = [threading.Thread(target=lambda: results.append(shared.call("key", slow))) for _ in range(20)]
    for thread in threads:
        thread.start()
    until(lambda: len(shared._under_way["key"][0]._cond._waiters) == 19)
    go.set()
    for thread in threads:
        thread.join(LONG)
    assert (len(calls), results) == (1, ["the one result"] * 20)
    assert shared.call("key", lambda: "anew") == "anew" and not shared._under_way
