"""Slots counted over machines by a real Redis: their number, their order, and what is left when one dies or leaves."""

import threading
import time
from collections import Counter

import pytest

from llama_api.cache import GuardedStore, Renewer, open_store
from llama_api.cache.epochs import Epochs
from llama_api.errors import QueueFull, QueueTimeout
from llama_api.upstreams.leases import Leases
from llama_api.upstreams.queue import Queue
from llama_api.waiting import Cancellation
from tests.support.fakes import until
from tests.upstreams.test_queue import LONG, Choice, Holder, Ollama, holding, queue_up, storm, waiter


@pytest.fixture
def machine(redis_server, tmp_path, monkeypatch):
    """A factory: the queue of a machine of its own, before Ollamas of these names with so many slots."""
    stores = []

    def make(limit=64, seconds=LONG, **slots):
        base = tmp_path / f"machine{len(list(tmp_path.iterdir()))}"
        base.mkdir()
        monkeypatch.setenv("RUNTIME_DIRECTORY", str(base))
        ollamas = [Ollama(name, number) for name, number in slots.items()]
        for ollama in ollamas:
            assert ollama.slots.share == 0.0  # opens the folder of this machine
        stores.append(GuardedStore(open_store(redis_server.url, 100, 1 << 20)))
        leases = Leases(Renewer(stores[-1], Epochs(lambda: None)), stores[-1])
        return Queue(Choice(*ollamas), limit, seconds, leases)

    yield make
    for store in stores:
        store.close()


def test_machines_share_the_slots(machine):
    """Storms on three machines: never more at an Ollama than its slots, none lost, no place left behind."""
    queues = [machine(a=2, b=1, limit=10, seconds=0.5) for _ in range(3)]
    most, served = storm(queues, rounds=6, patience=0.3, stay=0.02)
    assert served.total() > 10 and most["a"] <= 2 and most["b"] <= 1
    assert all(queue.running == queue.waiting == 0 for queue in queues)
    slots = [queues[1].take(waiter(), Cancellation(), seconds=5) for _ in range(3)]
    assert Counter(slot.upstream.name for slot in slots) == {"a": 2, "b": 1}


def test_over_machines_the_oldest_waiter_goes_first(machine):
    """Whichever machine holds the slots, within the precision of polling."""
    queues, order = [machine(a=1), machine(a=1)], []
    first, holders = holding(queues[0]), []
    for number in range(6):
        holders += queue_up(queues[number % 2], 1, note=lambda slot, number=number: order.append(number))
        time.sleep(0.1)
    for holder in [first, *holders]:
        holder.let_go()
    for holder in [first, *holders]:
        holder.join()
    assert sorted(order) == list(range(6)) and all(abs(place - number) <= 1 for place, number in enumerate(order))


def test_each_keeps_to_its_own_number(machine):
    """Counted together: one that may have two takes what the other, at its one, must leave."""
    small, large = machine(a=1), machine(a=2)
    first = holding(large)
    waiting, = queue_up(small, 1)
    second = holding(large)
    first.end()
    assert not waiting.holding.wait(0.2)
    second.end()
    waiting.end()


def test_who_is_served_elsewhere_holds_nobody_up(machine):
    """One who waited for two Ollamas and got one gives its place at the other up at once."""
    here, there = machine(a=1, b=1), machine(a=1, b=1)
    held = [holding(there), holding(there)]
    waiting, = queue_up(here, 1)
    time.sleep(0.1)
    held[0].end()
    assert waiting.holding.wait(LONG)
    held[1].end()
    began = time.monotonic()
    again = Holder(there)
    assert again.holding.wait(LONG)
    again.end(), waiting.end()
    assert time.monotonic() - began < 10


def test_without_a_queue_a_free_lease_helps(machine):
    """A limit of 0 gives what is free on all machines and refuses all else."""
    one, other = machine(a=1, limit=0), machine(a=1, limit=0)
    slot = one.take(waiter(), Cancellation())
    with pytest.raises(QueueFull):
        other.take(waiter(), Cancellation())
    one.give_back(slot)
    assert other.take(waiter(), Cancellation())


def test_while_the_store_is_away_each_machine_counts_by_itself(machine, redis_server):
    """After a moment no machine waits for it; once it is back, it counts again."""
    one, other = machine(a=1), machine(a=1)
    redis_server.kill()
    slots = [queue.take(waiter(), Cancellation(), seconds=10) for queue in (one, other)]
    one.give_back(slots[0]), other.give_back(slots[1])
    redis_server.start()

    def counted():
        first = one.take(waiter(), Cancellation())
        try:
            other.give_back(other.take(waiter(), Cancellation(), seconds=0.05))
        except QueueTimeout:
            return True
        finally:
            one.give_back(first)

    until(counted)


def test_a_moment_s_delay_lets_no_more_run(machine, redis_server):
    """A store that hangs for less than half a second is waited for."""
    one, other = machine(a=1), machine(a=1)
    slot = one.take(waiter(), Cancellation())
    redis_server.pause()
    threading.Timer(0.1, redis_server.resume).start()
    with pytest.raises(QueueTimeout):
        other.take(waiter(), Cancellation(), seconds=0.9)
    one.give_back(slot)
    other.give_back(other.take(waiter(), Cancellation()))
