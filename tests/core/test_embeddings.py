"""Embeddings, a text at a time: what is stored, joined, new or double gives what Ollama gives without any cache."""

import struct
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llama_api.answer import Answer, Completion, Piece
from llama_api.cache import renewer, open_store
from llama_api.core import Directives, Embeddings, claims
from llama_api.errors import (ClientGone, GenerationCancelled, NotCached, OllamaRefused, OllamaUnavailable,
                              PromptTooLong)
from llama_api.model_call import EMBED, ModelCall
from tests.support.bench import BYPASS, HIT, LONG, MISS, REFRESH, SPARE, STALE, Bench, FakeFleet, Watched, label
from tests.support.double.vectors import text_tokens, vector_for
from tests.support.fakes import until

COLLAPSED = ("collapsed", "miss", False, False)
MODEL = "embedder:1b"


class Embedder(FakeFleet):
    """An Ollama that embeds, and refuses a call that has one of the ``bad`` texts."""

    def __init__(self):
        super().__init__()
        self.bad, self.held = set(), 0

    def generate(self, asked, run):
        texts = asked.texts
        self.pieces = [Piece(vectors=tuple(map(vector_of, texts)))]
        self.held += 1
        made = super().generate(asked, run)
        if self.bad & set(texts):
            raise OllamaRefused(400, "the input length exceeds the context length")
        return made._replace(completion=Completion("stop", sum(map(text_tokens, texts)), total_duration=900))

    @property
    def embedded(self):
        """All texts that it was sent, a list for each call."""
        return [call.texts for call in self.calls]


class EmbeddingBench(Bench):
    """Embeddings with a fake fleet below them."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.fleet = self.service._fleet = Embedder()
        self.embeddings = Embeddings(self.service, self.fleet, self.cache, self.flights)

    def begin(self, *texts, gone=lambda: False, **directives):
        return self.embeddings.ask(list(map(call_of, texts)), Directives(**directives), gone)

    def ask(self, *texts, **directives):
        """The finished reply, whose vectors are those that Ollama gives."""
        return self.end(self.begin(*texts, **directives), *texts)

    def end(self, reply, *texts):
        try:
            reply.whole = reply.answer()
        finally:
            reply.close()
        assert reply.vectors == list(map(vector_of, texts))
        return reply

    def held(self, *texts, **directives):
        """A reply whose call to Ollama waits for ``proceed``."""
        before = self.fleet.held
        self.fleet.proceed.clear()
        reply = self.begin(*texts, **directives)
        until(lambda: self.fleet.held > before)
        return reply


def call_of(text):
    return ModelCall.of(EMBED, MODEL, input=text)


def vector_of(text):
    return struct.pack("<8f", *vector_for(MODEL, text, length=8))


@pytest.fixture
def bench():
    return EmbeddingBench()


TEXTS = st.lists(st.sampled_from("abcdefgh"), max_size=6)


@settings(max_examples=60)
@given(stored=TEXTS, under_way=st.lists(TEXTS, max_size=3), asked=TEXTS.filter(bool))
def test_any_mix_gives_what_ollama_gives_uncached(stored, under_way, asked):
    """Of stored, joined, double and new texts: the vectors, in order, and no text is embedded twice."""
    bench = EmbeddingBench()
    if stored:
        bench.ask(*stored)
    bench.fleet.proceed.clear()
    replies = [(bench.begin(*texts), texts) for texts in [*under_way, asked] if texts]
    bench.fleet.proceed.set()
    for reply, texts in replies:
        bench.end(reply, *texts)
    sent = [text for texts in bench.fleet.embedded for text in texts]
    assert sorted(sent) == sorted({*stored, *asked, *(text for texts in under_way for text in texts)})
    assert len(bench.fleet.embedded) <= (stored != []) + sum(map(bool, under_way)) + 1
    assert label(bench.ask(*asked)) == HIT and bench.idle()


@settings(max_examples=100)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=6))
def test_a_count_of_tokens_is_exact_or_none(requests):
    """Ollama reports only the total of a call; counts that follow from such totals are reported, and no others."""
    bench = EmbeddingBench()
    for texts in requests:
        reply, tokens = bench.ask(*texts), sum(map(text_tokens, texts))
        told = reply.whole.completion.input_tokens
        assert told in (None, tokens) and 0 <= reply.known_tokens <= tokens and told in (None, reply.known_tokens)
    first = list(dict.fromkeys(requests[0]))
    assert bench.ask(*first).whole.completion.input_tokens == sum(map(text_tokens, first))
    assert bench.ask(*first, *first).whole.completion.input_tokens == 2 * sum(map(text_tokens, first))


def test_the_labels_of_stored_and_new_texts(bench):
    """A hit when every text was stored, else a miss; what is known of a call's time and tokens is Ollama's."""
    miss = bench.ask("a", "b", "a")
    assert label(miss) == MISS and miss.host == "fake:1" and miss.whole.completion.total_duration == 900
    assert bench.fleet.embedded == [["a", "b"]]
    hit = bench.ask("b", "a")
    assert label(hit) == HIT and hit.whole.completion.input_tokens == 2 * text_tokens("a")
    assert hit.whole.completion.total_duration is None and hit.entry.answer.digest == "build-1"
    assert label(bench.ask("a", "c")) == MISS and bench.fleet.embedded[1:] == [["c"]]


@pytest.mark.parametrize("directives, expected, sent", [
    ({"no_cache": True}, REFRESH, [["a"]]), ({"no_store": True}, BYPASS, [["a"]]), ({"max_age": 10}, HIT, []),
    ({"max_age": 0}, REFRESH, [["a"]]), ({"only_if_cached": True}, HIT, [])])
def test_each_directive_has_its_label(bench, directives, expected, sent):
    """The same holds for generated answers."""
    bench.ask("a")
    assert label(bench.ask("a", **directives)) == expected and bench.fleet.embedded[1:] == sent
    with pytest.raises(NotCached):
        bench.begin("a", "z", only_if_cached=True)


def test_without_a_cache_everything_is_a_bypass():
    """Each request embeds again."""
    bench = EmbeddingBench(max_entries=0)
    assert [label(bench.ask("a")) for _ in range(2)] == [BYPASS] * 2 and len(bench.fleet.calls) == 2


def test_texts_under_way_are_joined(bench):
    """A request for such texts only is collapsed; one with other texts embeds just those."""
    first = bench.held("a", "b")
    second, third = bench.begin("b"), bench.begin("b", "c")
    bypass = bench.begin("a", no_store=True)
    until(lambda: bench.fleet.held == 3)
    bench.fleet.proceed.set()
    assert label(bench.end(second, "b")) == COLLAPSED and second.whole.completion.total_duration == 900
    assert label(bench.end(third, "b", "c")) == MISS and label(bench.end(first, "a", "b")) == MISS
    assert label(bench.end(bypass, "a")) == BYPASS
    assert sorted(bench.fleet.embedded) == [["a"], ["a", "b"], ["c"]]


@pytest.mark.parametrize("bad, mine", [({"a"}, ("b",)), ({"a"}, ("b", "c"))])
def test_a_text_does_not_suffer_from_those_beside_it(bench, bad, mine):
    """A text whose call was refused, perhaps for its other texts, is requested once more alone."""
    bench.fleet.bad = bad
    first = bench.held("a", "b")
    second = bench.begin(*mine)
    bench.fleet.proceed.set()
    with pytest.raises(OllamaRefused):
        bench.end(first, "a", "b")
    assert label(bench.end(second, *mine)) == MISS
    assert sorted(bench.fleet.embedded)[-1] == (["c"] if "c" in mine else ["b"])


class CountedKey(str):
    """A key that counts how often one is compared with another."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other):
        CountedKey.compared += 1
        return str.__eq__(self, other)


def test_a_refusal_of_many_texts_is_gone_through_once(bench):
    """Each is looked up a few times, not compared with every other: thousands would stop the process for a minute."""
    texts = [f"text {number}" for number in range(200)]
    calls = [replace(call_of(text), key=CountedKey(call_of(text).key)) for text in texts]
    bench.fleet.bad = {texts[0]}
    bench.held(*texts)
    second = bench.embeddings.ask(calls, Directives(), lambda: False)
    bench.fleet.proceed.set()
    with pytest.raises(OllamaRefused):
        second.answer()
    second.close()
    assert CountedKey.compared < 20 * len(texts)


def test_what_is_refused_for_itself_is_refused(bench):
    """After its second call, made alone."""
    bench.fleet.bad = {"b"}
    first, second = bench.held("a", "b"), bench.begin("b")
    bench.fleet.proceed.set()
    for reply, texts in ((first, ("a", "b")), (second, ("b",))):
        with pytest.raises(OllamaRefused):
            bench.end(reply, *texts)
    assert bench.fleet.embedded == [["a", "b"], ["b"]] and len(bench.cache.front) == 0


@pytest.mark.parametrize("error", [OllamaUnavailable(), GenerationCancelled()])
def test_any_other_failure_is_shared(bench, error):
    """Nobody repeats a call that failed for all."""
    first, second = bench.held("a", "b"), bench.begin("b")
    if isinstance(error, GenerationCancelled):
        assert bench.flights.cancel(bench.flights.under_way()[0].id)
    else:
        bench.fleet.error = error
    bench.fleet.proceed.set()
    for reply, texts in ((first, ("a", "b")), (second, ("b",))):
        with pytest.raises(type(error)):
            bench.end(reply, *texts)
    assert len(bench.fleet.calls) == 1 and bench.idle()


def test_stale_vectors_are_renewed_or_served_in_need():
    """Renewed while Ollama answers; served, with the failure, while it does not, if all that is missing is there."""
    bench = EmbeddingBench(cache_ttl=60.0)
    bench.age(70, call_of("a"), vector=vector_of("a"))
    bench.fleet.error = OllamaUnavailable()
    served = bench.ask("a")
    assert label(served) == SPARE and served.failure is bench.fleet.error and 69 < bench.service.age(served.entry) < 99
    with pytest.raises(OllamaUnavailable):
        bench.ask("a", "b")
    bench.fleet.error = PromptTooLong()
    with pytest.raises(PromptTooLong):
        bench.ask("a")
    bench.fleet.error = None
    assert label(bench.ask("a")) == STALE and label(bench.ask("a")) == HIT


def test_a_purge_is_a_line_in_time(bench):
    """Vectors begun before it are neither joined nor stored after it."""
    first = bench.held("a")
    bench.service.purge()
    second = bench.begin("a")
    until(lambda: bench.fleet.held == 2)
    bench.fleet.proceed.set()
    assert (first.result, second.result) == ("miss", "miss")
    assert label(bench.end(second, "a")) == MISS
    assert not bench.end(first, "a").stored


def test_the_last_reader_to_leave_ends_the_call(bench):
    """One who needs but a part of it keeps it alive."""
    first, second = bench.held("a", "b"), bench.begin("b")
    first.close()
    assert not bench.flights.under_way()[0].cancellation.requested
    second.close()
    until(lambda: bench.fleet.outcomes == ["cancelled"])
    gone = bench.held("c", gone=lambda: True)
    with pytest.raises(ClientGone):
        bench.end(gone, "c")
    bench.idle()


@pytest.fixture
def hosts(tmp_path, monkeypatch):
    """Two hosts on one store."""
    monkeypatch.setattr(renewer, "RENEW_EVERY", 0.05)
    url = f"sqlite:///{tmp_path}/answers.db"
    both = [EmbeddingBench(store=Watched(open_store(url, 100, 1 << 20))) for _ in range(2)]
    yield both
    for host in both:
        host.fleet.proceed.set()
        until(lambda: host.flights.count == 0)
        host.cache.close()


def test_hosts_share_what_they_have_embedded(hosts):
    """A text stored by one is a hit on the other, with its count of tokens."""
    one, other = hosts
    one.ask("a", "b")
    assert label(other.ask("b", "a")) == HIT and label(other.ask("b", "c")) == MISS
    assert other.fleet.embedded == [["c"]]
    assert other.ask("a", "b").whole.completion.input_tokens == 2 * text_tokens("a")


def test_a_list_is_looked_for_at_once(hosts):
    """One lookup of all of its texts, and one more before the call, for texts stored in the meantime."""
    looks, texts = [], [f"text {number}" for number in range(50)]
    for host in hosts:
        get_many = host.cache.store.get_many
        host.cache.store.get_many = lambda keys, get_many=get_many: looks.append(len(keys)) or get_many(keys)
    one, other = hosts
    assert label(one.ask(*texts)) == MISS and looks == [50, 50]
    assert label(other.ask(*texts)) == HIT and looks == [50, 50, 50]


def test_hosts_share_a_call_for_the_same_texts(hosts):
    """The second follows the first, and its answer is the whole one."""
    follow(*hosts)


@pytest.mark.parametrize("directives", [{}, {"no_cache": True}])
def test_what_is_too_large_to_hand_over_is_found_in_the_store(hosts, monkeypatch, directives):
    """A follower finds it there, counts as collapsed, and gets new vectors if it wanted no stored ones."""
    monkeypatch.setattr(claims, "LARGEST", 50)
    one, other = hosts
    handed, settle = [], one.cache.store.settle
    one.cache.store.settle = lambda claim, outcome, *rest: handed.append(len(outcome)) or settle(claim, outcome, *rest)
    if directives:
        other.cache.get("another")  # so that it knows the store's epoch
        old = Answer(MODEL, vector=bytes(32), completion=Completion("stop"), digest="build-1", created=time.time())
        assert all(other.cache.set(call_of(text).key, old, other.cache.epoch) for text in "ab")
    follow(one, other, **directives)
    assert len(handed) == 1 and handed[0] < 50


def test_what_is_too_large_to_hand_over_and_is_not_stored_is_handed_over(hosts, monkeypatch):
    """After a purge, as here: there is nowhere else to find it."""
    monkeypatch.setattr(claims, "LARGEST", 50)
    follow(*hosts, midway=lambda: hosts[0].cache.clear())


def follow(one, other, midway=lambda: None, **directives):
    """Have ``other`` follow the call of ``one`` for the same texts; returns the reply of ``other``."""
    first = one.held("a", "b", **directives)
    second, done = other.begin("a", "b", **directives), []
    waiting = threading.Thread(target=lambda: done.append(other.end(second, "a", "b")))
    waiting.start()
    until(lambda: other.cache.store.looks)
    midway()
    one.fleet.proceed.set()
    one.end(first, "a", "b")
    waiting.join(LONG)
    assert done and label(second) == COLLAPSED and not other.fleet.calls
    return second
