"""The queue before all Ollamas: order, bounds, hand-over, and what other processes hold."""

import random
import threading
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_api.errors import OllamaUnavailable, QueueFull, QueueTimeout
from llama_api.upstreams import Slots
from llama_api.upstreams.queue import Queue
from llama_api.upstreams.waiter import Waiter
from llama_api.waiting import Cancellation, Cancelled
from tests.support.fakes import in_threads, until

LONG = 30.0  # seconds that no test takes


class Ollama:
    """As much of an upstream as a queue sees."""

    def __init__(self, name="a", slots=1):
        self.name, self.slots = name, Slots(f"http://{name}", slots)

    def __repr__(self):
        return self.name


class Choice:
    """The usable Ollamas: all, or those given for a model."""

    def __init__(self, *ollamas):
        self.ollamas, self.usable, self.error = ollamas, {}, None

    def hosts(self, model):
        return self.usable.get(model, self.ollamas)

    def failure(self, model):
        return self.error


def waiter(model="m", tried=(), since=None):
    return Waiter(model, list, tried, since)


class Watched(Cancellation):
    """Counts how often its waiter, each time that it wakes, looks at it."""

    looks = 0

    def __getattribute__(self, name):
        if name == "requested":
            self.looks += 1
        return super().__getattribute__(name)


class Holder:
    """A thread that takes a slot of ``queue`` and holds it until released."""

    def __init__(self, queue, note=lambda slot: None, **wanted):
        self.cancellation, self.error, self.waiter, self.slot = Watched(), None, waiter(**wanted), None
        self._queue, self._note, self._go, self.holding = queue, note, threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self.slot = self._queue.take(self.waiter, self.cancellation)
        except (Cancelled, QueueFull, QueueTimeout, OllamaUnavailable) as error:
            self.error = error
            return
        self._note(self.slot)
        self.holding.set()
        self._go.wait(LONG)
        self._queue.give_back(self.slot)

    def end(self):
        """Wait for the slot, and give it back."""
        assert self.holding.wait(LONG)
        self.let_go()
        self.join()

    def let_go(self):
        """Have the slot given back as soon as it is there."""
        self._go.set()

    def join(self):
        self._thread.join(LONG)
        assert not self._thread.is_alive()


def queue_up(queue, count, **wanted):
    """``count`` holders that have queued one after the other."""
    holders = []
    for _ in range(count):
        waiting = queue.waiting
        holders.append(Holder(queue, **wanted))
        until(lambda: queue.waiting == waiting + 1)
    return holders


def holding(queue, **wanted):
    """A holder that has its slot."""
    holder = Holder(queue, **wanted)
    assert holder.holding.wait(LONG)
    return holder


def storm(queues, rounds, patience, stay, seed=0):
    """Come and go in twelve threads that give up within ``patience`` seconds and hold a slot for ``stay`` at most.

    Returns, by Ollama, how many had a slot at the same time, and how many were served in all.
    """
    inside, most, served, lock = Counter(), Counter(), Counter(), threading.Lock()

    def work(number):
        chance = random.Random(seed + number)
        for _ in range(rounds):
            queue, cancellation = chance.choice(queues), Cancellation()
            timer = threading.Timer(chance.uniform(0, patience), cancellation.request)
            timer.start()
            try:
                slot = queue.take(waiter(), cancellation)
            except (Cancelled, QueueFull, QueueTimeout):
                timer.join()
                continue
            where = slot.upstream.name
            with lock:
                inside[where] += 1
                most[where] = max(most[where], inside[where])
            time.sleep(chance.uniform(0, stay))
            with lock:
                inside[where] -= 1
                served[where] += 1
            queue.give_back(slot)
            timer.join()

    assert in_threads(12, work) == [None] * 12
    return most, served


def make(*ollamas, limit=64, seconds=LONG):
    """A queue before ``ollamas``, one with one slot by default."""
    return Queue(Choice(*(ollamas or [Ollama()])), limit, seconds)


# One process


def test_slots_go_in_order_of_arrival():
    """The first waiter is served first."""
    queue, order = make(), []
    first = holding(queue)
    holders = [queue_up(queue, 1, note=lambda slot, number=number: order.append(number))[0] for number in range(10)]
    for holder in [first, *holders]:
        holder.end()
    assert order == list(range(10)) and queue.running == queue.waiting == 0


def test_all_ollamas_have_one_queue():
    """Whichever frees a slot takes the one who has waited longest."""
    queue = make(Ollama("a"), Ollama("b"))
    first, second = holding(queue), holding(queue)
    assert {first.slot.upstream.name, second.slot.upstream.name} == {"a", "b"}
    third, fourth = queue_up(queue, 2)
    second.end()
    assert third.holding.wait(LONG) and third.slot.upstream is second.slot.upstream
    first.end()
    assert fourth.holding.wait(LONG) and fourth.slot.upstream is first.slot.upstream
    third.end(), fourth.end()


@pytest.mark.parametrize("slots", [1, 3])
def test_never_more_than_the_slots_run(slots):
    """Twenty threads of short visits to two Ollamas: never one more than there are slots, none left over."""
    queue, inside, seen, lock = make(Ollama("a", slots), Ollama("b", 1)), Counter(), [], threading.Lock()

    def work(number):
        for _ in range(10):
            slot = queue.take(waiter(), Cancellation())
            with lock:
                inside[slot.upstream.name] += 1
                seen.append(dict(inside))
            time.sleep(random.uniform(0, 0.001))
            with lock:
                inside[slot.upstream.name] -= 1
            queue.give_back(slot)

    assert in_threads(20, work) == [None] * 20
    assert max(counts["a"] for counts in seen if "a" in counts) == slots and len(seen) == 200
    assert max(counts.get("b", 0) for counts in seen) == 1 and queue.running == queue.waiting == 0


def test_a_full_queue_turns_away_at_once():
    """One more than may wait is refused without waiting, and says after how many seconds to come back."""
    queue = make(limit=2)
    holders = [holding(queue), *queue_up(queue, 2)]
    with pytest.raises(QueueFull, match="2 requests are already waiting") as caught:
        queue.take(waiter(), Cancellation())
    assert caught.value.retry_after >= 1
    again = Holder(queue, tried=[Ollama("b")])  # was admitted before, and failed elsewhere
    until(lambda: queue.waiting == 3)
    for holder in [*holders, again]:
        holder.end()
    assert queue.running == queue.waiting == 0


def test_without_a_queue_only_a_free_slot_helps():
    """A limit of 0 gives what is free and refuses all else."""
    queue = make(limit=0)
    slot = queue.take(waiter(), Cancellation())
    with pytest.raises(QueueFull):
        queue.take(waiter(), Cancellation())
    queue.give_back(slot)
    assert queue.take(waiter(), Cancellation())


def test_the_wait_is_bounded():
    """A caller that has waited as long as allowed is refused, and leaves no trace in the queue."""
    queue = make(seconds=0.05)
    slot = queue.take(waiter(), Cancellation())
    with pytest.raises(QueueTimeout, match=r"within 0\.05 s"):
        queue.take(waiter(), Cancellation())
    with pytest.raises(QueueTimeout, match=r"within 0\.01 s"):
        queue.take(waiter(), Cancellation(), seconds=0.01)
    queue.give_back(slot)
    assert queue.running == queue.waiting == 0


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_cancelled_waiter_leaves_its_place_at_once(place):
    """A request on a waiter ends its wait, frees its place and does not disturb the order of the others."""
    queue, order = make(limit=3), []
    first = holding(queue)
    waiting = [queue_up(queue, 1, note=lambda slot, number=number: order.append(number))[0] for number in range(3)]
    waiting[place].cancellation.request()
    waiting[place].join()
    assert type(waiting[place].error) is Cancelled and queue.waiting == 2
    late, = queue_up(queue, 1, note=lambda slot: order.append(3))
    for holder in [first, *waiting[:place], *waiting[place + 1:], late]:
        holder.end()
    assert order == [number for number in range(4) if number != place] and queue.running == queue.waiting == 0


def test_who_is_cancelled_before_does_not_queue():
    """A wait does not begin after a request to stop."""
    queue, cancellation = make(), Cancellation()
    slot = queue.take(waiter(), Cancellation())
    cancellation.request()
    with pytest.raises(Cancelled):
        queue.take(waiter(), cancellation)
    queue.give_back(slot)
    assert queue.running == queue.waiting == 0


def test_many_who_wait_cost_nothing_when_no_other_process_can_help():
    """Three hundred waiters behind slots of their own process sleep; who holds the slot wakes the next one alone."""
    queue = make(limit=300)
    first, waiting = holding(queue), queue_up(queue, 300)
    until(lambda: all(holder.cancellation.looks >= 2 for holder in waiting))  # before its sleep, and as that begins
    before = sum(holder.cancellation.looks for holder in waiting)
    time.sleep(0.5)
    assert sum(holder.cancellation.looks for holder in waiting) == before
    for holder in [first, *waiting]:
        holder.end()
    assert max(holder.cancellation.looks for holder in waiting) <= 5


# Models and what is usable


def test_who_may_go_elsewhere_is_not_held_up():
    """A slot that the first ones cannot use goes to the first that can; waiters of one kind keep their order."""
    one, other = Ollama("a"), Ollama("b")
    queue, choice = make(one, other), Choice(one, other)
    queue = Queue(choice, 64, LONG)
    choice.usable = {"here": [one], "there": [other]}
    here, there = holding(queue, model="here"), holding(queue, model="there")
    assert (here.slot.upstream, there.slot.upstream) == (one, other)
    waits_here, waits_there = queue_up(queue, 1, model="here") + queue_up(queue, 1, model="there")
    there.end()
    assert waits_there.holding.wait(LONG) and not waits_here.holding.is_set()
    late, = queue_up(queue, 1, model="here")
    waits_there.end()
    newcomer = holding(queue, model="there")
    here.end(), waits_here.end(), late.end(), newcomer.end()


def test_who_failed_elsewhere_goes_first_and_not_there_again():
    """A generation that is tried again keeps its time of arrival, and never gets an Ollama that it has tried."""
    one, other = Ollama("a"), Ollama("b")
    queue = make(one, other)
    first, second = holding(queue), holding(queue)
    young, = queue_up(queue, 1)
    again, = queue_up(queue, 1, tried=[first.slot.upstream], since=1.0)
    first.end()
    assert young.holding.wait(LONG) and not again.holding.is_set()
    second.end()
    assert again.holding.wait(LONG) and again.slot.upstream is not first.slot.upstream
    young.end(), again.end()


def test_what_becomes_usable_serves_those_who_wait():
    """They are served as soon as the queue is asked to look."""
    queue = Queue(choice := Choice(Ollama()), 64, LONG)
    choice.usable = {"m": []}
    holder, = queue_up(queue, 1)
    choice.usable = {}
    queue.serve_waiters()
    holder.end()


def test_when_none_will_be_usable_they_are_told_why():
    """At once for those who come, and at the next look for those who wait."""
    queue = Queue(choice := Choice(Ollama()), 64, LONG)
    choice.usable = {"m": []}
    holders = queue_up(queue, 3)
    choice.error = OllamaUnavailable()
    queue.serve_waiters()
    for holder in holders:
        holder.join()
        assert holder.error is choice.error
    with pytest.raises(OllamaUnavailable):
        queue.take(waiter(), Cancellation())
    assert queue.waiting == 0


def test_of_free_slots_the_preferred_one_is_taken():
    """The order that the waiter gives decides, as far as slots are free."""
    one, other, third = (Ollama(name) for name in "abc")
    queue = make(one, other, third)
    held = [queue.take(Waiter("m", lambda free: sorted(free, key=lambda found: found.name, reverse=True)),
                       Cancellation()).upstream for _ in range(3)]
    assert held == [third, other, one]


# Reports


def test_a_place_only_falls():
    """Those in front leave one by one; a retry that returns to the front does not push others back, as they see it."""
    queue = make(slots := Ollama(slots=1), limit=9)
    first, waiting = holding(queue), queue_up(queue, 3)
    last = waiting[2].waiter
    assert queue.estimate(last) == (2, None)
    again, = queue_up(queue, 1, tried=[Ollama("b")], since=1.0)
    assert queue.estimate(last).before == 2
    first.end()
    assert queue.estimate(last).before == 2
    again.end()
    before, seconds = queue.estimate(last)
    assert before == 1 and seconds > 0 and slots.slots.running == 1
    for holder in waiting:
        holder.end()


def test_estimates_follow_the_recent_speed():
    """Long visits and a long queue make for long estimates, never under one second nor over an hour to come back."""
    queue = make(Ollama(slots=2))
    assert queue.retry_after("m") == 1
    for _ in range(3):
        slot = queue.take(waiter(), Cancellation())
        time.sleep(0.05)
        queue.give_back(slot)
    assert queue.retry_after("m") == 1
    holders = [holding(queue), holding(queue), *queue_up(queue, 2)]
    before, seconds = queue.estimate(holders[-1].waiter)
    assert before == 1 and 1 <= seconds < LONG
    for holder in holders:
        holder.end()


# Other processes


def other_process(ollamas, limit=64):
    """The queue of another process before the same Ollamas."""
    return make(*(Ollama(one.name, one.slots.number) for one in ollamas), limit=limit)


def test_queues_of_two_processes_share_the_slots():
    """Together they hold no more slots than there are, and each waiter is served."""
    one = [Ollama("a", 2)]
    queues, inside, most, lock = [make(*one), other_process(one)], [0], [], threading.Lock()

    def work(number):
        for _ in range(5):
            slot = queues[number % 2].take(waiter(), Cancellation())
            with lock:
                inside[0] += 1
                most.append(inside[0])
            time.sleep(0.001)
            with lock:
                inside[0] -= 1
            queues[number % 2].give_back(slot)

    assert in_threads(8, work) == [None] * 8
    assert max(most) == 2 and len(most) == 40 and [queue.running for queue in queues] == [0, 0]


def test_over_processes_the_oldest_waiter_goes_first():
    """Whichever process holds the slots, waiters are served in order of arrival."""
    one = [Ollama("a", 1)]
    queues, order = [make(*one), other_process(one), other_process(one)], []
    first, holders = holding(queues[0]), []
    for number in range(9):
        holders += queue_up(queues[number % 3], 1, note=lambda slot, number=number: order.append(number))
        time.sleep(0.01)
    for holder in [first, *holders]:
        holder.end()
    assert order == list(range(9))


def test_only_the_first_one_looks_for_what_another_process_gives_back():
    """Those behind it sleep meanwhile."""
    there, queue = Slots("http://a", 1), make()
    slot = there.take(0.0)
    waiting = queue_up(queue, 20)
    head, *others = [holder.cancellation for holder in waiting]
    until(lambda: head.looks > 20 and all(one.looks >= 2 for one in others))
    before = [one.looks for one in others]
    until(lambda: head.looks > 40)
    assert [one.looks for one in others] == before
    there.give_back(slot)
    for holder in waiting:
        holder.end()


def test_a_newcomer_leaves_the_slot_to_who_waits_elsewhere():
    """A process whose queue is empty does not take what another's has waited for."""
    one = [Ollama("a", 1)]
    here, there = make(*one), other_process(one)
    first = holding(here)
    waiting, = queue_up(there, 1)
    time.sleep(0.02)  # it looks every few milliseconds
    order = []
    first.end()
    newcomer = Holder(here, note=lambda slot: order.append("newcomer"))
    waiting.end()
    newcomer.end()
    assert order == ["newcomer"] and waiting.slot is not None


@settings(max_examples=25)
@given(seed=st.integers(0, 2 ** 32), processes=st.integers(1, 3), slots=st.integers(1, 3))
def test_a_storm_of_comers_and_leavers_leaves_nothing(seed, processes, slots):
    """Threads that queue, are cancelled at any moment, or run out of time: no slot and no place is lost."""
    name = f"storm{seed}-{processes}-{slots}"
    queues = [make(Ollama(name, slots), Ollama(f"{name}x", 1), limit=10, seconds=0.03) for _ in range(processes)]
    most, served = storm(queues, rounds=8, patience=0.01, stay=0.003, seed=seed)
    assert served and most[name] <= slots and most[f"{name}x"] <= 1
    assert all(queue.running == queue.waiting == 0 for queue in queues)
    again = queues[-1].take(waiter(), Cancellation())
    assert again.upstream.slots.share == 1 / again.upstream.slots.number
