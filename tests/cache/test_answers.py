"""The cache of answers: the in-process LRU in front of a store that processes share."""

import pytest

from llama_api.cache import TRUST_SECONDS, AnswerCache, LRUCache
from tests.support.fakes import answer


class Store:
    """A shared store in a dict, which can be away."""

    def __init__(self):
        self.values, self.available, self.touched = {}, True, []

    def get(self, key):
        return self.values.get(key) if self.available else None

    def set(self, key, value):
        self.values[key] = value
        return 1

    def delete(self, key):
        self.values.pop(key, None)

    def clear(self):
        self.values.clear()

    def size(self):
        return (len(self.values), 99) if self.available else None

    def touch(self, keys):
        self.touched += keys


class Two:
    """Two workers' caches on one store, with clocks that tick together."""

    def __init__(self, **kwargs):
        self.now, self.store = [1000.0], Store()
        self.caches = [AnswerCache(LRUCache(10, 1 << 20, clock=self.clock), self.store, clock=self.clock,
                                   wall_clock=lambda: self.now[0] + 1e9, **kwargs) for _ in range(2)]

    def clock(self):
        return self.now[0]

    def new(self, text):
        return answer(text, created=self.now[0] + 1e9)


def test_an_answer_of_one_worker_is_the_others_too():
    """It comes out of the store with its age."""
    two = Two()
    here, there = two.caches
    assert here.set("key", two.new("A."))
    two.now[0] += 30
    entry = there.get("key")
    assert entry.answer.text == "A." and entry.born == 1000.0 and there.get("other") is None
    assert here.size() == (1, 99) and here.evictions == 1


@pytest.mark.parametrize("act, text", [
    (lambda cache, two: cache.clear(), None), (lambda cache, two: cache.set("key", two.new("B.")), "B.")])
def test_a_purge_or_a_renewal_is_everywhere_after_a_second(act, text):
    """The in-process copy is trusted for a second, then the store is asked again."""
    two = Two()
    here, there = two.caches
    here.set("key", two.new("A."))
    assert there.get("key").answer.text == "A."
    act(here, two)
    two.now[0] += TRUST_SECONDS - 0.01
    assert there.get("key").answer.text == "A."
    two.now[0] += 0.01
    found = there.get("key")
    assert (found and found.answer.text) == text


def test_without_the_store_the_copy_goes_on():
    """A store that is away costs no entry of this process."""
    two = Two()
    here, there = two.caches
    here.set("key", two.new("A."))
    two.store.available = False
    two.now[0] += 100
    assert here.get("key").answer.text == "A." and there.get("key") is None
    assert here.size() == (1, here.front.bytes)


@pytest.mark.parametrize("garbage", [b"", b"x", b"[]", b"5", b"null", b'{"text": "x"}', b'{"a": 1}', b"\x80\x04K\x05.",
                                     b'"\xff"'])
def test_garbage_in_the_store_is_a_miss_and_is_removed(garbage):
    """What is no answer is never served, and not asked for again."""
    two = Two()
    two.store.values["key"] = garbage
    assert two.caches[0].get("key") is None and two.store.values == {}


def test_an_answer_past_all_use_is_not_taken_from_the_store():
    """With a TTL, an answer older than TTL and stale time together is none; one younger keeps its age."""
    two = Two(ttl=60, stale_seconds=40)
    here, there = two.caches
    here.set("key", two.new("A."))
    two.now[0] += 99
    assert there.get("key").answer.text == "A."
    two.now[0] += 1
    assert there.get("key") is None


def test_what_the_copy_served_counts_as_use_in_the_store():
    """Keys served from the copy are reported once, so that both evict by the same use."""
    two = Two()
    here = two.caches[0]
    here.set("a", two.new("A."))
    here.set("b", two.new("B."))
    for _ in range(3):
        here.get("a")
    here.report_use()
    here.report_use()
    assert two.store.touched == ["a"]
