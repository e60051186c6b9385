"""The cache of answers: the in-process LRU in front of a store that processes share."""

import orjson
import pytest

from llama_api.answer import Answer
from llama_api.cache import TRUST_SECONDS, AnswerCache, Found, LRUCache, Renewal
from llama_api.cache.store import OUTDATED
from tests.support.fakes import Clock, answer


class Store:
    """A guarded store in a dict, which can be away or busy."""

    def __init__(self):
        self.values, self.available, self.busy, self.touched, self.epoch = {}, True, False, [], 1
        self.looks = []  # how many keys were looked for, for each look

    def known(self, value):
        return value if self.available and not self.busy else None

    def get(self, key):
        return self.known(Found(self.values.get(key), f"epoch-{self.epoch}"))

    def get_many(self, keys):
        self.looks.append(len(keys))
        return self.known([Found(self.values.get(key), f"epoch-{self.epoch}") for key in keys])

    def set(self, key, value, epoch):
        if self.known(True) and epoch == f"epoch-{self.epoch}":
            self.values[key] = value
            return 1
        return self.known(OUTDATED)

    def delete(self, key):
        self.values.pop(key, None)

    def clear(self):
        if self.available:
            self.values.clear()
            self.epoch += 1
        return self.known(f"epoch-{self.epoch}")

    def size(self):
        return self.known((len(self.values), 99))

    def touch(self, keys):
        self.touched += self.known(keys) or []
        return self.known(True)

    def renew(self, claims, leases, ttl):
        return self.known(Renewal(f"epoch-{self.epoch}", frozenset()))

    def close(self):
        self.available = False


class Two:
    """Two workers' caches on one store, with clocks that tick together."""

    def __init__(self, **kwargs):
        self.clock, self.store, self.purges = Clock(), Store(), []
        self.caches = [AnswerCache(LRUCache(10, 1 << 20, clock=self.clock), self.store, clock=self.clock,
                                   wall_clock=lambda: self.clock() + 1e9, **kwargs) for _ in range(2)]
        for cache in self.caches:
            cache.when_purged(lambda: self.purges.append(1))
            cache.get("nothing")  # so that it knows the store's epoch

    def put(self, cache, key="key", text="A."):
        return cache.set(key, answer(text, created=self.clock() + 1e9), cache.epoch)


@pytest.fixture
def open_two():
    """Make two caches, and end what they began."""
    made = []

    def two(**kwargs):
        made.append(Two(**kwargs))
        return made[-1]

    yield two
    for each in made:
        for cache in each.caches:
            cache.close()


@pytest.fixture
def two(open_two):
    return open_two()


def text_of(entry):
    return entry and entry.answer.text


def test_an_answer_of_one_worker_is_the_others_too(two):
    """It comes out of the store with its age."""
    here, there = two.caches
    assert two.put(here)
    two.clock.tick(30)
    entry = there.get("key")
    assert entry.answer.text == "A." and entry.born == 1000.0 and there.get("other") is None
    assert here.size() == (1, 99) and here.evictions == 1


@pytest.mark.parametrize("act, text", [(lambda two: two.caches[0].clear(), None),
                                       (lambda two: two.put(two.caches[0], text="B."), "B.")])
def test_a_purge_or_a_renewal_is_everywhere_after_a_second(two, act, text):
    """The in-process copy is trusted for a second, then the store is asked again."""
    here, there = two.caches
    two.put(here)
    assert text_of(there.get("key")) == "A."
    act(two)
    two.clock.tick(TRUST_SECONDS)
    assert text_of(there.get("key")) == text


@pytest.mark.parametrize("trouble", [{"available": False}, {"busy": True}])
def test_a_store_that_says_nothing_costs_no_entry_of_this_process(two, trouble):
    """Down or merely busy: the copy is served as long as it lasts, and new answers are kept here."""
    here, there = two.caches
    two.put(here)
    vars(two.store).update(trouble)
    two.clock.tick(100)
    assert text_of(here.get("key")) == text_of(here.get("key")) == "A." and there.get("key") is None
    assert two.put(here, "new") and text_of(here.get("new")) == "A."
    assert here.size() == (2, here.front.bytes)


def test_what_the_store_has_not_is_dropped(two):
    """A store that answers knows better than the copy: it was evicted, or purged."""
    here, _ = two.caches
    two.put(here)
    two.store.values.clear()
    two.clock.tick(TRUST_SECONDS)
    assert here.get("key") is None and len(here.front) == 0


@pytest.mark.parametrize("stored", [
    b"", b"x", b"[]", b"5", b"null", b'{"text": "x"}', b'{"a": 1}', b"\x80\x04K\x05.", b'"\xff"',
    orjson.dumps(answer().to_json() | {"completion": {"context": [2 ** 40]}}),
    orjson.dumps(answer().to_json() | {"vector": "YWI="}), orjson.dumps(answer().to_json() | {"completion": 5}),
    orjson.dumps(answer().to_json() | {"created": "now"}),
    answer("Later.").to_bytes().replace(b'"format":', b'"format":1'),
    answer("Newer.").to_bytes().replace(b'{', b'{"colour":"blue",', 1)])
def test_what_cannot_be_read_is_a_miss_and_is_left_alone(two, stored):
    """It is damaged or, during an upgrade, a newer version's, which still wants it."""
    here, _ = two.caches
    two.store.values["key"] = stored
    assert here.get("key") is None and two.store.values == {"key": stored}
    assert two.put(here) and text_of(here.get("key")) == "A."


def test_an_answer_past_all_use_is_not_taken_from_the_store(open_two):
    """With a TTL, an answer older than TTL and stale time together is none; one younger keeps its age."""
    two = open_two(ttl=60, stale_seconds=40)
    here, there = two.caches
    two.put(here)
    two.clock.tick(99)
    assert text_of(there.get("key")) == "A."
    two.clock.tick(1)
    assert there.get("key") is None


def test_many_are_got_as_one_by_one_with_few_looks(two):
    """From the copy or by the store, whose looks are for a hundred keys at most; a copy is renewed after a second."""
    here, there = two.caches
    names = [f"key {number}" for number in range(8)]
    for name in names:
        two.put(here, name, f"{name}.")
    there.get(names[0])
    two.store.looks.clear()
    found = there.get_many([*names, *(f"missing {number}" for number in range(142))])
    assert {name: text_of(entry) for name, entry in found.items()} == {name: f"{name}." for name in names}
    assert two.store.looks == [100, 49]
    assert there.get_many(names) == found and len(two.store.looks) == 2
    two.put(here, names[1], "new")
    two.store.values.pop(names[2])
    two.clock.tick(TRUST_SECONDS)
    renewed = there.get_many(names[:3])
    assert (text_of(renewed.get(names[1])), names[2] in renewed, two.store.looks) == ("new", False, [100, 49, 3])
    there.renewer.report_use()
    assert set(two.store.touched) == set(names) and two.store.touched[-2:] == names[:2]


@pytest.mark.parametrize("trouble", [{"available": False}, {"busy": True}])
def test_a_store_that_says_nothing_costs_none_of_many(two, trouble):
    """The copies remain."""
    here, _ = two.caches
    two.put(here, "a"), two.put(here, "b")
    vars(two.store).update(trouble)
    two.clock.tick(100)
    assert here.get_many(["a", "b", "c"]).keys() == {"a", "b"}


# Purges


def test_an_answer_begun_before_a_purge_does_not_enter(two):
    """Neither the copy nor the store, whether the purge was here, or elsewhere and not yet heard of."""
    here, there = two.caches
    for purging in (here, there):
        begun = here.epoch
        purging.clear()
        assert not here.set("key", answer("Late."), begun)
        assert here.get("key") is None and two.store.values == {} and len(here.front) == 0
        assert two.put(here) and two.store.values


def test_without_a_store_too_a_purge_is_a_line():
    """A value begun after it is stored."""
    purges = []
    cache = AnswerCache(LRUCache(10, 1 << 20))
    cache.when_purged(lambda: purges.append(len(cache.front)))
    begun = cache.epoch
    assert cache.set("key", answer(), begun)
    cache.clear()
    assert not cache.set("key", answer(), begun) and cache.get("key") is None and purges == [0]
    assert cache.set("key", answer(), cache.epoch) and cache.get("key")


def test_a_purge_elsewhere_empties_the_copies_as_soon_as_it_is_heard_of(two):
    """By any operation: each reads the epoch, and earlier entries and flights are dropped."""
    here, there = two.caches
    two.put(here, "a"), two.put(here, "b")
    two.purges.clear()
    there.clear()
    assert len(two.purges) == 1 and len(here.front) == 2
    assert here.get("other") is None
    assert len(two.purges) == 2 and len(here.front) == 0
    here.get("other"), there.get("other")
    assert len(two.purges) == 2


def test_a_look_that_a_purge_overtakes_finds_nothing(two):
    """A value that the store returned just before it is not put into the emptied copy."""
    here, there = two.caches
    two.put(there)
    get_many = two.store.get_many

    def overtaken(keys):
        found = get_many(keys)
        here.clear()
        return found

    two.store.get_many = overtaken
    assert here.get("key") is None and len(here.front) == 0
    two.store.get_many = get_many
    assert two.put(here), "the late reply must not be taken for another purge"


def test_a_purge_while_the_store_is_away_holds_when_it_is_back(two):
    """A value begun before it is not stored, although the store has not heard of the purge yet."""
    here, _ = two.caches
    begun = here.epoch
    two.store.available = False
    here.clear()
    two.store.available = True
    assert not here.set("key", answer("Late."), begun) and two.store.values == {}
    here.get("key")
    assert two.put(here)


def test_what_was_begun_before_the_store_was_known_does_not_enter_it(open_two):
    """There may have been a purge in the meantime."""
    two = open_two()
    late = AnswerCache(LRUCache(10, 1 << 20), two.store)
    begun = late.epoch
    late.get("other")
    assert not late.set("key", answer("Late."), begun) and two.store.values == {}
    late.close()


# Use


def test_what_was_served_counts_as_use_in_the_order_of_service(two):
    """From the copy or by the store, each once, the last one last; what was only looked for does not count."""
    here, there = two.caches
    for key in "abc":
        two.put(here, key)
    for key in ("a", "c", "a", "b", "c", "a", "nothing"):
        there.get(key)
    two.clock.tick(TRUST_SECONDS)
    there.get("c")
    there.renewer.report_use()
    there.renewer.report_use()
    assert two.store.touched == ["b", "a", "c"]


def test_use_that_a_busy_store_did_not_hear_of_is_told_again(two):
    """In its order, before what was served since."""
    here, _ = two.caches
    for key in "abc":
        two.put(here, key)
    here.get("b"), here.get("a")
    two.store.busy = True
    here.renewer.report_use()
    two.store.busy = False
    here.get("c"), here.get("b")
    here.renewer.report_use()
    assert two.store.touched == ["a", "c", "b"]


def test_a_new_answer_evicts_by_what_was_served_until_then(two):
    """Uses that are not reported yet are reported before it is set."""
    here, _ = two.caches
    two.put(here, "a")
    here.get("a")
    two.put(here, "b")
    assert two.store.touched == ["a"]


def test_a_too_large_answer_takes_the_one_before_it_along():
    """It is not kept, and what it should have replaced is outdated."""
    cache = AnswerCache(LRUCache(10, 8_000))
    assert cache.set("key", answer("small"), cache.epoch)
    assert not cache.set("key", Answer("llama3:8b", "x" * 2000), cache.epoch) and cache.get("key") is None
