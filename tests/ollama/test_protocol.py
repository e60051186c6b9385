"""The records of Ollama's protocol: what is read out of one, and that writing it again loses nothing."""

from array import array

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_api.answer import Completion, Piece
from llama_api.errors import OllamaGarbled
from llama_api.model_call import CHAT, GENERATE
from llama_api.ollama import completion_of, ending_of, numbers_of, piece_of, protocol, record_of
from llama_api.ollama.protocol import LineReader, stops_of, vectors_of

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
    """Reason, counts, durations and context; figures that Ollama did not report are omitted."""
    ending = ending_of(completion)
    assert completion_of(ending) == completion
    assert ending_of(completion_of(ending)) == ending and None not in ending.values()


def test_zeros_are_left_out():
    """Ollama leaves them out too."""
    assert ending_of(Completion("stop", 0, 3, eval_duration=0)) == {"done_reason": "stop", "eval_count": 3}


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=4), max_size=3))
def test_vectors_are_kept_bit_for_bit(vectors):
    """Ollama prints float32, and every reader parses the same float32."""
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


@pytest.mark.parametrize("parameters, own", [
    (None, []), ("", []), (5, []), ("num_ctx 4096", []), ("stop", []), ("stop   ", []),
    ('stop "a b"', ["a b"]), ("stop AI:", ["AI:"]), ('stop "\\n"\r\n  stop "x"', ["\n", "x"]),
    ('stop "unclosed', ['"unclosed']), ("stopper x", []), ('stop "a"\nstop "b"', ["a", "b"])])
def test_the_stops_of_a_models_parameters(parameters, own):
    """Each ``stop`` line counts, quoted or bare; whatever else is there does not."""
    assert stops_of(parameters) == own


KNOWN = {"prompt_eval_count": 17, "eval_count": 50, "eval_duration": 500_000_000}
FULL = Completion("stop", 17, 50, eval_duration=500_000_000)


@pytest.mark.parametrize("record, completion", [
    *(({"done_reason": reason}, FULL._replace(finish_reason=None)) for reason in ("load", "tired", None, 7, ["stop"])),
    ({"done_reason": "length"}, FULL._replace(finish_reason="length")),
    ({"eval_count": 0}, FULL._replace(output_tokens=0)), ({"eval_duration": -5}, FULL._replace(eval_duration=None)),
    ({"prompt_eval_count": None, "eval_count": None}, FULL._replace(input_tokens=None, output_tokens=None)),
    ({"prompt_eval_count": -1, "eval_count": "7"}, FULL._replace(input_tokens=None, output_tokens=None)),
    ({"prompt_eval_count": True, "eval_count": 2.5}, FULL._replace(input_tokens=None, output_tokens=None)),
    ({"prompt_eval_count": 2 ** 53}, FULL._replace(input_tokens=None)),
    ({"context": ["x"]}, FULL), ({"context": [2 ** 40]}, FULL), ({"context": 5}, FULL), ({"_debug_info": "x"}, FULL)])
def test_an_ending_that_makes_no_sense_is_none(record, completion):
    """Missing and nonsensical figures are None and not an error."""
    assert completion_of({"done_reason": "stop", **KNOWN, **record}) == completion


# Lines


def read(data, cuts):
    """The records that a LineReader reads from ``data`` cut at ``cuts``, and whether it raised."""
    reader, records, at = LineReader(), [], 0
    try:
        for cut in [*sorted(cuts), len(data)]:
            records += reader.feed(data[at:cut])
            at = cut
        records += reader.end()
    except OllamaGarbled:
        return records, True
    return records, False


members = st.dictionaries(st.text(max_size=3), st.text(max_size=5) | st.integers(-9, 9) | st.none(), max_size=2)
ndjson = st.lists(members.map(orjson.dumps) | st.sampled_from([b"", b" ", b"\r", b"\t \r"]), max_size=8).map(b"\n".join)
noise = st.binary(max_size=80) | st.lists(
    st.sampled_from([b"{", b"}", b'{"a":1}', b"\n", b'"', b"\\ud83d", b"\xff", b"[]", b"\r\n", b" ", b"1e999", b"\x00",
                     b'{"a":"\xc3', b"\xa9", b"NaN", b"null"]), max_size=14).map(b"".join)


@given(st.data(), ndjson, st.booleans())
def test_ndjson_split_anywhere_gives_the_same_records(data, body, ended):
    """Cuts inside characters, between CR and LF, with or without a last line break: the records are all there."""
    body += b"\n" if ended else b""
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=10))
    assert read(body, cuts) == ([orjson.loads(line) for line in body.split(b"\n") if line.strip()], False)


@given(st.data(), noise)
def test_any_bytes_are_records_or_garbled(data, body):
    """Whatever comes, however it is cut, the outcome is the same: records, then perhaps OllamaGarbled."""
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=10))
    records, _ = whole = read(body, [])
    assert read(body, cuts) == whole == read(body, range(len(body)))
    assert all(type(record) is dict for record in records)


def test_a_line_has_a_limit(monkeypatch):
    """A line without an end is refused once it is longer than any answer, and the memory stays bounded."""
    monkeypatch.setattr(protocol, "LINE_LIMIT", 1000)
    reader, fed = LineReader(), 0
    with pytest.raises(OllamaGarbled, match="longer"):
        for _ in range(100):
            list(reader.feed(b"x" * 90))
            fed += 90
    assert fed <= 1000
