"""Where the beginning of a prompt was last seen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_api.model_call import CHAT, ModelCall
from llama_api.upstreams import affinity as module
from llama_api.upstreams.affinity import BLOCK, LEAST_BLOCKS, Affinity, chain_of
from tests.support.fakes import Clock, call

LEAST = BLOCK * LEAST_BLOCKS


def chain(prompt, **fields):
    return chain_of(call(prompt, **fields))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def affinity(clock):
    return Affinity(clock)


def test_a_beginning_is_known_from_1024_characters_on(affinity):
    """In blocks of 256; what is shorter, or differs before, is not known."""
    assert chain("x" * (LEAST - 1)) == [] and len(chain("x" * LEAST)) == LEAST_BLOCKS
    affinity.note(chain("x" * 3000), "a")
    assert affinity.find(chain("x" * LEAST)).host == "a"
    assert affinity.find(chain("x" * LEAST + "y" * 5000)).blocks == LEAST_BLOCKS
    assert affinity.find(chain("x" * (LEAST - 1) + "y" * 500)) is None and affinity.find([]) is None


def test_the_longest_beginning_wins(affinity):
    """And of equally long ones, the latest."""
    affinity.note(chain("x" * 2000), "a")
    affinity.note(chain("x" * 2000 + "y" * 2000), "b")
    affinity.note(chain("x" * 1500 + "z" * 500), "c")
    assert affinity.find(chain("x" * 2000 + "y" * 2000)).host == "b"
    assert affinity.find(chain("x" * 2000 + "z" * 2000)).host == "b"
    assert affinity.find(chain("x" * 1400 + "w" * 2000)).host == "c"


def test_models_are_apart(affinity):
    """A beginning read by one model does not count for another."""
    affinity.note(chain("x" * 2000), "a")
    assert affinity.find(chain("x" * 2000, model="other")) is None


def chat(*contents, **fields):
    roles = ("user", "assistant")
    return chain_of(ModelCall.of(CHAT, "llama3:8b", messages=[
        {"role": roles[number % 2], "content": content} for number, content in enumerate(contents)], **fields))


def test_a_conversation_goes_on_where_it_was(affinity):
    """Each turn begins with the ones before; another one does not, nor one with other tools."""
    affinity.note(chat("q" * 1200), "a")
    assert affinity.find(chat("q" * 1200, "answer", "and then?")).host == "a"
    assert affinity.find(chat("another " * 200, "answer")) is None
    assert affinity.find(chat("q" * 1200, tools=[{"type": "function", "function": {"name": "f"}}])) is None
    affinity.note(chain("p" * 100, system="s" * 1200), "b")
    assert affinity.find(chain("other", system="s" * 1200)).host == "b"


@given(st.lists(st.sampled_from(["text", None, [{"type": "text", "text": "x"}]]), max_size=4))
def test_any_messages_have_an_opening(contents):
    """Parts, nothing and calls as well as text."""
    messages = [{"role": "user", "content": content, "tool_calls": [{}]} for content in contents]
    assert isinstance(ModelCall.of(CHAT, "m", messages=messages).opening, str)


def test_what_a_host_has_lost_is_not_known(affinity, clock):
    """Up to then; what it reads later is."""
    affinity.note(chain("x" * 2000), "a")
    affinity.forget("a")
    assert affinity.find(chain("x" * 2000)) is None
    clock.tick(1)
    affinity.note(chain("x" * 2000), "a")
    assert affinity.find(chain("x" * 2000)).host == "a"


def test_what_ollama_says_corrects(affinity, clock):
    """A beginning that it turns out not to have kept, and those before it, are gone; later ones stay."""
    for name in "xyz":
        affinity.note(chain(name * 2000), "a")
        clock.tick(1)
    match = affinity.find(chain("y" * 2000))
    affinity.correct(match, chain("y" * 2000), 0.9)
    assert affinity.find(chain("x" * 2000))
    affinity.correct(match, chain("y" * 2000), 0.1)
    assert affinity.find(chain("x" * 2000)) is affinity.find(chain("y" * 2000)) is None
    assert affinity.find(chain("z" * 2000)).host == "a"


def test_the_least_recently_seen_is_forgotten(affinity, monkeypatch):
    """The memory is bounded."""
    monkeypatch.setattr(module, "MOST_KNOWN", 16)
    for name in "abc":
        affinity.note(chain(name * 2048), name)
    assert affinity.find(chain("a" * 2048)) is None
    assert [affinity.find(chain(name * 2048)).host for name in "bc"] == ["b", "c"] and "16" in repr(affinity)
