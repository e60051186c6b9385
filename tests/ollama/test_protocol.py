"""The records of Ollama's protocol: what is read out of one, and that writing it again loses nothing."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_api.answer import Completion, Piece
from llama_api.errors import OllamaGarbled
from llama_api.model_call import CHAT, GENERATE
from llama_api.ollama import completion_of, ending_of, numbers_of, piece_of, record_of
from llama_api.ollama.protocol import vectors_of

CALL = {"id": "call_1", "function": {"index": 0, "name": "weather", "arguments": {"city": "Oslo"}}}
TOKEN = {"token": "Hi", "logprob": -0.5, "bytes": [72, 105], "top_logprobs": [{"token": "Hi", "logprob": -0.5}]}

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
values = st.recursive(st.none() | st.booleans() | st.integers(-2**53, 2**53) | texts,
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
                      max_leaves=5)
calls = st.fixed_dictionaries({"function": st.fixed_dictionaries(
    {"name": texts, "arguments": st.dictionaries(texts, values, max_size=3)})}, optional={"id": texts})
scored = {"token": texts, "logprob": st.floats(-100, 0)}
tokens = st.fixed_dictionaries({**scored, "top_logprobs": st.lists(st.fixed_dictionaries(scored), max_size=2)})
pieces = st.builds(Piece, texts, texts, st.lists(calls, max_size=2).map(tuple), st.lists(tokens, max_size=2).map(tuple),
                   st.just(()))


@pytest.mark.parametrize("record, piece", [
    ({"response": " sky", "done": False}, Piece(" sky")),
    ({"response": "", "thinking": "Hm", "done": False}, Piece("", "Hm")),
    ({"response": "Hi", "logprobs": [TOKEN]}, Piece("Hi", logprobs=(TOKEN,))),
    ({"done": True, "done_reason": "stop"}, Piece()),
    ({"message": {"role": "assistant", "content": "Hi"}}, Piece("Hi")),
    ({"message": {"role": "assistant", "content": "", "thinking": "Hm"}}, Piece("", "Hm")),
    ({"message": {"role": "assistant", "content": "", "tool_calls": [CALL]}, "done": True}, Piece(tool_calls=(CALL,))),
    ({"message": {"role": "assistant"}, "logprobs": [TOKEN]}, Piece(logprobs=(TOKEN,))),
    ({"message": {"content": "x", "thinking": None, "tool_calls": None}, "logprobs": None}, Piece("x"))])
def test_a_record_is_read(record, piece):
    """Text, thinking, tool calls and log-probabilities, of /api/generate and of /api/chat."""
    assert piece_of(record) == piece


@pytest.mark.parametrize("record", [
    {"response": 5}, {"response": None}, {"response": "x", "thinking": ["y"]}, {"message": "Hi"}, {"message": []},
    {"message": {"content": None}}, {"message": {"content": ["x"]}}, {"message": {"content": "", "thinking": 1}},
    {"message": {"content": "", "tool_calls": "x"}}, {"message": {"content": "", "tool_calls": [5]}},
    {"message": {"content": "", "tool_calls": [{}]}}, {"message": {"content": "", "tool_calls": [CALL | {"id": 1}]}},
    {"message": {"content": "", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}},
    {"message": {"content": "", "tool_calls": [{"function": {"arguments": {}}}]}},
    {"response": "", "logprobs": {"token": "x"}}, {"response": "", "logprobs": [{"token": 5}]},
    {"response": "", "logprobs": [{"token": "x", "logprob": "y"}]},
    {"response": "", "logprobs": [{"token": "x", "logprob": 0, "top_logprobs": 5}]},
    {"response": "", "logprobs": [{"token": "x", "logprob": 0, "top_logprobs": ["x"]}]},
    {"response": "", "logprobs": [{"token": "x", "logprob": 0, "bytes": "x"}]}])
def test_what_is_no_piece_is_garbled(record):
    """A record whose parts are of other types than Ollama's is refused, never guessed at."""
    with pytest.raises(OllamaGarbled):
        piece_of(record)


@given(pieces, st.sampled_from([GENERATE, CHAT]))
def test_writing_is_the_inverse_of_reading(piece, endpoint):
    """Record to piece to record: both ways nothing is lost."""
    record = record_of(piece, endpoint)
    assert piece_of(record) == piece
    assert record_of(piece_of(record), endpoint) == record


counts = st.none() | st.integers(1, 2 ** 53 - 1)
completions = st.builds(Completion, st.sampled_from(["stop", "length", None]), *[counts] * 7,
                        st.none() | st.lists(st.integers(0, 2 ** 31 - 1), min_size=1, max_size=4).map(
                            lambda tokens: array("i", tokens)),
                        st.none() | st.fixed_dictionaries({"rendered_template": texts}))


@given(completions)
def test_writing_an_ending_is_the_inverse_of_reading_it(completion):
    """Reason, counts, durations and context; what Ollama did not tell is left out."""
    ending = ending_of(completion)
    assert completion_of(ending) == completion
    assert ending_of(completion_of(ending)) == ending and None not in ending.values()


def test_zeros_are_left_out():
    """Ollama leaves them out too."""
    assert ending_of(Completion("stop", 0, 3, eval_duration=0)) == {"done_reason": "stop", "eval_count": 3}


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4), max_size=3))
def test_vectors_are_kept_bit_for_bit(vectors):
    """What Ollama prints is a float32, and is one again whoever reads it."""
    printed = {"embeddings": [[float(f"{number:.9g}") for number in vector] for vector in vectors]}
    assert [numbers_of(vector) for vector in vectors_of(printed, len(vectors))] == vectors


@pytest.mark.parametrize("record", [
    {}, {"embeddings": None}, {"embeddings": [[1.0]]}, {"embeddings": [[1.0], 5]}, {"embeddings": [[1.0], ["x"]]},
    {"embeddings": [[1.0], [None]]}, {"embeddings": [[1.0], [1e39]]}, {"embedding": [1.0]},
    {"embeddings": [[1.0], [10 ** 400]]}])
def test_what_is_no_vectors_is_garbled(record):
    """Of two texts: another number of them, or other values than numbers of float32."""
    with pytest.raises(OllamaGarbled):
        vectors_of(record, 2)
