"""/api/embed and /api/embeddings of the embedded Ollama."""

import math

import pytest
import requests

from tests.embedded.conftest import MODEL

CAT, KITTEN = "The cat sat on the mat.", "A kitten was sitting on the rug."
REVENUE = "Quarterly revenue grew by four percent."


@pytest.fixture
def embed(post):
    """``embed(input, **fields)`` posts to /api/embed."""
    def embed(texts, **fields):
        return post("/api/embed", {"model": MODEL, "input": texts} | fields)
    return embed


def cosine(one, other):
    return sum(a * b for a, b in zip(one, other)) / math.hypot(*one) / math.hypot(*other)


def test_vectors_tell_what_is_alike(embed):
    """In the order asked, of length 1, the nearer the more alike the texts are."""
    answer = embed([CAT, REVENUE, KITTEN]).json()
    cat, revenue, kitten = answer["embeddings"]
    assert [len(vector) for vector in (cat, revenue, kitten)] == [576] * 3
    assert math.hypot(*cat) == pytest.approx(1)
    assert cosine(cat, kitten) > 0.9 > 0.8 > cosine(cat, revenue)
    assert answer["model"] == MODEL
    assert all(type(answer[key]) is int for key in ("total_duration", "load_duration", "prompt_eval_count"))


def test_a_text_has_one_vector_whatever_else_is_asked(embed, ask):
    """Alone, in a list, twice, after a generation that begins with it: equal to the last digit."""
    alone, = embed(CAT).json()["embeddings"]
    assert embed([KITTEN, CAT, CAT]).json()["embeddings"][1:] == [alone, alone]
    ask(CAT, raw=True)
    assert embed(CAT).json()["embeddings"] == [alone]


def test_embedding_leaves_generation_as_it_is(ask, embed):
    """A greedy answer is the same before and after."""
    before = ask(CAT, raw=True).json()["response"]
    embed([CAT, KITTEN])
    assert ask(CAT, raw=True).json()["response"] == before


def test_the_old_form_has_the_same_vector(post, embed):
    """One text, one vector, nothing else."""
    assert post("/api/embeddings", {"model": MODEL, "prompt": CAT}).json() == {
        "embedding": embed(CAT).json()["embeddings"][0]}
    assert post("/api/embeddings", {"model": MODEL}).json() == {"embedding": []}


def test_fewer_dimensions_are_the_first_ones(embed):
    """They are brought to length 1 again; more than there are, or none, change nothing."""
    whole, = embed(CAT).json()["embeddings"]
    short, = embed(CAT, dimensions=8).json()["embeddings"]
    assert (len(short), math.hypot(*short)) == (8, pytest.approx(1))
    assert cosine(short, whole[:8]) == pytest.approx(1)
    assert embed(CAT, dimensions=577).json()["embeddings"] == embed(CAT, dimensions=0).json()["embeddings"] == [whole]


@pytest.mark.parametrize("body", [{}, {"input": None}, {"input": ""}, {"input": []}])
def test_no_input_is_no_vector(post, body):
    """It only loads the model."""
    answer = post("/api/embed", {"model": MODEL} | body)
    assert (answer.status_code, answer.json()["embeddings"]) == (200, [])


def test_a_long_text_is_cut_unless_it_must_not_be(embed):
    """The window is one batch of the engine."""
    long = "word " * 600
    assert embed(long).json()["prompt_eval_count"] == 512
    refused = embed([CAT, long], truncate=False)
    assert (refused.status_code, refused.json()) == (400, {"error": "the input length exceeds the context length"})


@pytest.mark.parametrize("body, status, error", [
    ({"model": "nope", "input": "x"}, 404, 'model "nope" not found, try pulling it first'),
    ({"model": "", "input": "x"}, 400, "model is required"),
    ({"model": MODEL, "input": 5}, 400, "invalid input type"),
    ({"model": MODEL, "input": ["x", 5]}, 400, "invalid input type"),
    ({"model": MODEL, "input": ["x", ""]}, 400, '"input" must not be empty'),
    ({"model": MODEL, "input": "x", "dimensions": "8"}, 400,
     "json: cannot unmarshal string into Go struct field EmbedRequest.dimensions of type int")])
def test_bad_inputs(post, body, status, error):
    """Each gets a sentence; the engine refuses an empty text."""
    refused = post("/api/embed", body)
    assert (refused.status_code, refused.json()) == (status, {"error": error})


def test_a_client_that_goes_stops_a_long_list(post, embed):
    """The rest of the list, minutes of work, does not hold the slot."""
    with pytest.raises(requests.ReadTimeout):
        post("/api/embed", {"model": MODEL, "input": [CAT] * 5000}, timeout=1)
    assert embed(CAT).ok
