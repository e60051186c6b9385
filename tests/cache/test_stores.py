"""The contract of both shared stores, tested on real ones."""

import time
from collections import OrderedDict

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llama_api.cache import UNDER_WAY, Claim, StoreError, open_store
from llama_api.cache.store import OUTDATED, OVERHEAD
from tests.cache import KEYS, LONG, got, put, python
from tests.support.fakes import in_threads, until


def waited_for(store, claim):
    """Whether anybody waits for the claim."""
    return claim.token in store.renew([claim], [], LONG).wanted


# Entries


def test_what_is_set_is_got_byte_for_byte(store):
    """Any bytes come back as they were, the empty ones and large ones too."""
    values = {KEYS[0]: b"", KEYS[1]: bytes(range(256)), KEYS[2]: b"\r\n$-1\r\n\x00", KEYS[3]: bytes(300_000)}
    for key, value in values.items():
        assert put(store, key, value) == 0
    assert {key: got(store, key) for key in values} == values
    assert got(store, KEYS[4]) is None


def test_many_are_got_at_once(store):
    """Each in its place, whether it is there or not, all of one epoch."""
    put(store, KEYS[0], b"one")
    put(store, KEYS[2], bytes(range(256)))
    found = store.get_many([KEYS[2], KEYS[1], KEYS[0], KEYS[2]])
    assert [one.value for one in found] == [bytes(range(256)), None, b"one", bytes(range(256))]
    assert {one.epoch for one in found} == {store.get(KEYS[1]).epoch}


def test_every_view_sees_the_same(opened):
    """Whatever one process stores, touches, deletes or clears changes for all."""
    here, there = opened(), opened()
    put(here, KEYS[0], b"one")
    assert got(there, KEYS[0]) == b"one" and there.size() == (1, 3 + OVERHEAD)
    there.delete(KEYS[0])
    assert got(here, KEYS[0]) is None and here.size() == (0, 0)
    put(here, KEYS[1], b"two")
    there.clear()
    assert got(here, KEYS[1]) is None and here.size() == (0, 0)
    put(here, KEYS[1], b"three")
    assert got(there, KEYS[1]) == b"three"


def test_entries_survive_the_last_view(opened):
    """A store that everybody has left is found again as it was."""
    first = opened()
    put(first, KEYS[0], b"kept")
    first.close()
    assert got(opened(), KEYS[0]) == b"kept"
    assert got(first, KEYS[0]) == b"kept"  # it connects again by itself


def test_an_overwrite_counts_once_and_evicts_nobody(opened):
    """A new value takes the place of the old one."""
    store = opened(max_entries=2)
    put(store, KEYS[0], b"a")
    put(store, KEYS[1], b"b")
    assert put(store, KEYS[0], b"longer") == 0
    assert store.size() == (2, 7 + 2 * OVERHEAD)
    assert got(store, KEYS[0]) == b"longer" and got(store, KEYS[1]) == b"b"


def test_the_least_recently_touched_goes_first(opened):
    """Getting does not change the order, setting and touching do, the last of a batch most."""
    store = opened(max_entries=3)
    for key in KEYS[:3]:
        put(store, key, b"x")
    got(store, KEYS[0])
    store.touch([KEYS[1], KEYS[0], KEYS[39]])
    assert [put(store, key, b"x") for key in KEYS[3:5]] == [1, 1]
    assert [got(store, key) is not None for key in KEYS[:5]] == [True, False, False, True, True]


def test_bytes_evict_as_many_as_it_takes(opened):
    """A large value pushes out several small ones."""
    store = opened(max_bytes=4 * (OVERHEAD + 100))
    for key in KEYS[:4]:
        assert put(store, key, bytes(100)) == 0
    assert put(store, KEYS[4], bytes(100 + OVERHEAD)) == 2
    assert [got(store, key) is not None for key in KEYS[:5]] == [False, False, True, True, True]


def test_what_could_never_fit_is_not_stored_and_evicts_nobody(opened):
    """The entry that it should have replaced is gone all the same."""
    store = opened(max_bytes=1000)
    put(store, KEYS[0], b"small")
    put(store, KEYS[1], b"small")
    assert put(store, KEYS[1], bytes(1000)) == 0
    assert got(store, KEYS[1]) is None and got(store, KEYS[0]) == b"small"
    assert store.size() == (1, 5 + OVERHEAD)


STEPS = st.lists(st.one_of(
    st.tuples(st.just("put"), st.integers(0, 7), st.integers(0, 900)),
    st.tuples(st.just("touch"), st.lists(st.integers(0, 7), max_size=4)),
    st.tuples(st.just("got"), st.integers(0, 7)),
    st.tuples(st.just("delete"), st.integers(0, 7)),
    st.tuples(st.just("clear"))), max_size=30)


class Model:
    """An exact LRU in ten lines, to hold the stores against."""

    def __init__(self, max_entries, max_bytes):
        self.max_entries, self.max_bytes, self.items = max_entries, max_bytes, OrderedDict()

    def put(self, key, value):
        self.items.pop(key, None)
        if len(value) + OVERHEAD > self.max_bytes:
            return 0
        self.items[key] = value
        before = len(self.items)
        while len(self.items) > self.max_entries or self.size()[1] > self.max_bytes:
            self.items.popitem(last=False)
        return before - len(self.items)

    def touch(self, keys):
        for key in keys:
            if key in self.items:
                self.items.move_to_end(key)

    def got(self, key):
        return self.items.get(key)

    def delete(self, key):
        self.items.pop(key, None)

    def clear(self):
        self.items.clear()

    def size(self):
        return len(self.items), sum(len(value) + OVERHEAD for value in self.items.values())


def do(store, operation, *args):
    """One step, done to a store as to the model."""
    if operation in ("put", "got"):
        return {"put": put, "got": got}[operation](store, *args)
    done = getattr(store, operation)(*args)
    return None if operation == "clear" else done


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_it_is_an_exact_lru(opened, steps):
    """Any sequence of operations, spread over two views, ends as it does in the model."""
    views = opened(4, 2000), opened(4, 2000)
    views[0].clear()
    model = Model(4, 2000)
    for count, (operation, *args) in enumerate(steps):
        if operation == "touch":
            args = [[KEYS[n] for n in args[0]]]
        elif args:
            args = [KEYS[args[0]], *(bytes([count]) * size for size in args[1:])]
        assert do(views[count % 2], operation, *args) == getattr(model, operation)(*args)
        assert views[0].size() == model.size()
    assert {key: got(views[1], key) for key in KEYS[:8]} == {key: model.got(key) for key in KEYS[:8]}


def test_many_threads_keep_the_books_right(opened):
    """Under a crowd of writers no bound is passed, nothing is lost and the totals stay exact."""
    views = [opened(max_entries=20) for _ in range(3)]

    def work(number):
        mine = views[number % 3]
        for turn in range(30):
            key = KEYS[(number * 7 + turn) % 40]
            put(mine, key, key.encode())
            assert got(mine, key) in (None, key.encode())
            mine.touch(KEYS[number:number + 3])

    assert in_threads(8, work) == [None] * 8
    there = [key for key in KEYS[:40] if got(views[0], key)]
    assert len(there) == 20 and views[1].size() == (20, 20 * (64 + OVERHEAD))


# Purges


def test_what_was_begun_before_a_purge_does_not_enter(opened):
    """Each purge begins a new epoch, for every view; in an earlier one nothing can be set."""
    here, there = opened(), opened()
    before = here.get(KEYS[0]).epoch
    put(here, KEYS[0], b"old")
    now = there.clear()
    assert here.get(KEYS[0]) == (None, now) and now != before
    assert here.set(KEYS[0], b"late", before) == OUTDATED and here.set(KEYS[1], bytes(1 << 20), before) == OUTDATED
    assert here.size() == (0, 0)
    assert here.set(KEYS[0], b"new", now) == 0 and there.clear() not in (before, now)


def test_an_outdated_value_harms_no_entry(opened):
    """Neither the one of its key nor another is touched."""
    store = opened(max_entries=1)
    before = store.get(KEYS[0]).epoch
    store.clear()
    put(store, KEYS[0], b"new")
    assert store.set(KEYS[0], b"late", before) == store.set(KEYS[1], b"late", before) == OUTDATED
    assert got(store, KEYS[0]) == b"new"


def test_a_purge_hides_the_claims_of_before_and_ends_none(opened):
    """A newcomer makes its own claim in addition to the old one, which can still be renewed, settled and followed."""
    here, there = opened(), opened()
    old = here.claim(KEYS[0], "old", LONG)
    assert there.claim(KEYS[0], "follower", LONG) == old
    there.clear()
    new = there.claim(KEYS[0], "new", LONG)
    assert new.token == "new" and new.epoch != old.epoch and here.claim(KEYS[0], "other", LONG) == new
    assert there.peek(old, "follower") == UNDER_WAY
    assert here.renew([old, new], [], LONG) == (new.epoch, {"old", "new"})
    here.settle(old, b"what came of it", LONG)
    assert there.peek(old, "follower") == b"what came of it" and here.peek(new, "other") == UNDER_WAY


# Claims


def test_one_claims_and_the_others_learn_who(opened):
    """The living claim of another is found; each key has its own."""
    here, there = opened(), opened()
    mine = here.claim(KEYS[0], "mine", LONG)
    assert mine == Claim(KEYS[0], here.get(KEYS[0]).epoch, "mine")
    assert there.claim(KEYS[0], "yours", LONG) == mine
    assert there.claim(KEYS[1], "yours", LONG).token == "yours"
    assert here.claim(KEYS[0], "mine", LONG) == mine  # asking twice does no harm


def test_of_twenty_at_once_exactly_one_wins(opened):
    """A race over four views ends with one holder whom all know."""
    views = [opened() for _ in range(4)]
    for key in KEYS[:10]:
        results = in_threads(20, lambda number: views[number % 4].claim(key, f"t{number}", LONG))
        winner, = {found.token for found in results}
        assert results[int(winner[1:])].token == winner


def test_an_expired_claim_is_taken_over(opened):
    """When a holder is silent its followers see it gone and exactly one succeeds it."""
    here, there = opened(), opened()
    dead = here.claim(KEYS[0], "dead", 0.3)
    assert there.peek(dead, "follower") == UNDER_WAY
    until(lambda: there.peek(dead, "follower") is None)
    assert not waited_for(here, dead)
    heir = there.claim(KEYS[0], "heir", LONG)
    here.settle(dead, b"too late", LONG)
    here.release(dead)
    assert heir.token == "heir" and here.claim(KEYS[0], "dead", LONG) == heir


def test_claims_that_are_kept_up_live_on(opened):
    """All of them at once, each of several tokens on its key; one that is another's is not renewed."""
    here, there = opened(), opened()
    claims = [here.claim(key, f"t-{key}", 1.0) for key in KEYS[:30]]
    forged = claims[0]._replace(token="forged")
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        assert here.renew([*claims, forged], [], 1.0).wanted == frozenset()
        time.sleep(0.05)
    assert [there.claim(key, "yours", LONG) for key in KEYS[:30]] == claims
    assert there.peek(forged, "yours") is None
    until(lambda: there.claim(KEYS[0], "yours", LONG).token == "yours")


def test_an_outcome_is_for_those_who_wait_and_goes_with_the_last_of_them(opened):
    """Those that saw it under way can read it; later claims do not find it, nor does anyone once all have read it."""
    here, there = opened(), opened()
    claim = here.claim(KEYS[0], "mine", LONG)
    assert there.claim(KEYS[0], "first", LONG) == claim and there.peek(claim, "second") == UNDER_WAY
    here.settle(claim, b"\x00answer", LONG)
    assert there.peek(claim, "first") == b"\x00answer"
    assert there.claim(KEYS[0], "yours", LONG).token == "yours"
    here.release(claim)
    assert there.peek(claim, "second") == b"\x00answer"
    assert there.peek(claim, "third") is None


def test_an_outcome_that_nobody_waits_for_is_not_kept(opened):
    """It would be of no use to anybody, and a finished answer that a purge had to find."""
    here, there = opened(), opened()
    claim = here.claim(KEYS[0], "mine", LONG)
    here.settle(claim, b"answer", LONG)
    assert there.peek(claim, "late") is None


def test_an_outcome_lingers_no_longer_than_it_is_told(opened):
    """A follower that died leaves nothing behind."""
    here, there = opened(), opened()
    claim = here.claim(KEYS[0], "mine", LONG)
    there.peek(claim, "dead")
    there.peek(claim, "slow")
    here.settle(claim, b"answer", 0.2)
    until(lambda: there.peek(claim, "slow") is None)


def test_only_the_holder_settles_and_releases(opened):
    """Another token changes nothing."""
    here, there = opened(), opened()
    mine = here.claim(KEYS[0], "mine", LONG)
    there.settle(mine._replace(token="yours"), b"forged", LONG)
    there.release(mine._replace(token="yours"))
    assert there.peek(mine, "yours") == UNDER_WAY
    here.release(mine)
    assert there.peek(mine, "yours") is None
    assert there.claim(KEYS[0], "yours", LONG).token == "yours"


def test_a_holder_knows_whether_anybody_waits(fading, opened):
    """A follower's look counts for a while, and for the claim it looked at only; so does the finding of a claim."""
    here, there = opened(), opened()
    mine, other = here.claim(KEYS[0], "mine", LONG), here.claim(KEYS[1], "other", LONG)
    assert not waited_for(here, mine)
    there.peek(mine, "follower")
    assert here.renew([mine, other], [], LONG).wanted == {"mine"}
    until(lambda: not waited_for(here, mine))
    assert there.claim(KEYS[0], "yours", LONG) == mine and waited_for(here, mine)


def test_wrong_urls_are_refused_in_a_sentence(tmp_path):
    """The sentence says what would be right."""
    with pytest.raises(StoreError, match="directory .* does not exist"):
        open_store(f"sqlite:///{tmp_path}/missing/answers.db", 10, 1000)
    for url in ("memory://", "sqlite:///", "mysql://host/db", ""):
        with pytest.raises(StoreError, match="sqlite:///PATH"):
            open_store(url, 10, 1000)


def test_what_redis_needs_is_loaded_for_redis_alone(tmp_path):
    """It takes 8 MB of each worker and time at the start."""
    program = """
        import sys
        from llama_api.cache import open_store
        for url in sys.argv[1:]:
            open_store(url, 10, 10_000).close()
            print("redis" in sys.modules)
    """
    found = python(program, f"sqlite:///{tmp_path}/answers.db", "redis://127.0.0.1/0").communicate(timeout=60)[0]
    assert found == "False\nTrue\n"
