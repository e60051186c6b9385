"""POST /api/embed and /api/embeddings of the double: vectors that tests can compute, and what Ollama refuses."""
import json
import math
import struct
import subprocess
import sys

import pytest

from tests.doubles.wire_client import chat, connected, embed, fetch, heard, post, talk
from tests.support.double import EMBED_FAULTS, FAULTS, text_tokens, vector_for
from tests.support.double.answer import ABSENT
from tests.support.double.fault_tables import REPLIES, VECTORS

TEXTS = ['The sky is blue.', '漢字 🦙', 'a <b> & c', 'The sky is blue.']


@pytest.fixture(autouse=True)
def embedder(double):
    """A model for embeddings alone, with short vectors."""
    double.add_model('embedder', capabilities=['embedding'], embedding_length=16)


def expected(*texts, dimensions=None, **model):
    return [vector_for('embedder', text, dimensions, **{'length': 16} | model) for text in texts]


def as_float32(vectors):
    return [struct.pack(f'<{len(vector)}f', *vector) for vector in vectors]


def test_each_text_has_its_vector(double):
    """In order, equal as float32 to what a test computes, of length one; counted and timed."""
    said = embed(double, *TEXTS)
    [body] = said.objects
    assert (said.status, said.headers['content-type']) == (200, 'application/json; charset=utf-8')
    assert body.keys() == {'model', 'embeddings', 'total_duration', 'load_duration', 'prompt_eval_count'}
    assert as_float32(body['embeddings']) == as_float32(expected(*TEXTS)) and body['model'] == 'embedder'
    assert expected(*TEXTS) == [list(struct.unpack('<16f', data)) for data in as_float32(expected(*TEXTS))]
    assert body['prompt_eval_count'] == sum(map(text_tokens, TEXTS)) and body['total_duration'] > 0
    assert len({*as_float32(expected(*TEXTS))}) == 3
    assert all(math.isclose(math.hypot(*vector), 1, rel_tol=1e-6) for vector in body['embeddings'])
    assert double.embedded == {'The sky is blue.': 2, '漢字 🦙': 1, 'a <b> & c': 1} and not double.generations


def test_the_old_form_gives_one_vector_and_no_figures(double):
    """The same as the new form's; a string does for a list there."""
    [old] = embed(double, path='/api/embeddings', prompt='a').objects
    [new] = embed(double, input='a').objects
    assert old == {'embedding': new['embeddings'][0]} and as_float32(new['embeddings']) == as_float32(expected('a'))


def test_vectors_depend_on_model_and_dimensions(double):
    """Another model has others, under any of its names the same; fewer dimensions are of length one again."""
    double.add_model('other', capabilities=['embedding'], embedding_length=16, voice='b')

    def of(**body):
        return as_float32(embed(double, 'a', **body).objects[0]['embeddings'])
    assert of() == of(model='Embedder:latest') != of(model='other') == as_float32(
        [vector_for('other', 'a', length=16, voice='b')])
    assert of(dimensions=4) == as_float32(expected('a', dimensions=4)) and len(of(dimensions=4)[0]) == 16
    assert of(dimensions=99) == of(dimensions=16) == of()
    assert math.isclose(math.hypot(*expected('a', dimensions=4)[0]), 1, rel_tol=1e-6)


def test_vectors_are_the_same_in_every_process():
    """They come from a digest, not from a hash that is salted."""
    code = 'from tests.support.double import vector_for; print(vector_for("embedder", "a", length=16))'
    printed = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout
    assert json.loads(printed) == expected('a')[0]


@pytest.mark.parametrize('path, body, empty', [
    ('/api/embed', {'input': []}, {'model': 'embedder', 'embeddings': []}),
    ('/api/embed', {'input': ''}, {'model': 'embedder', 'embeddings': []}),
    ('/api/embed', {'input': None}, {'model': 'embedder', 'embeddings': []}),
    ('/api/embeddings', {'prompt': ''}, {'embedding': []})])
def test_no_text_gives_no_vector(double, path, body, empty):
    """With 200, after the model was loaded."""
    said = embed(double, path=path, **body)
    assert (said.status, said.objects, double.loads) == (200, [empty], 1)


@pytest.mark.parametrize('version', ['0.24.0', '0.33.0'])
@pytest.mark.parametrize('body, status, text', [
    ({'model': ''}, 400, 'model is required'),
    ({'model': 'nope'}, 404, 'model "nope" not found, try pulling it first'),
    ({'model': 'no model'}, 400, 'invalid model name'),
    ({'input': {'a': 1}}, 400, 'invalid input type'), ({'input': 5}, 400, 'invalid input type'),
    ({'input': ['a', 5]}, 400, 'invalid input type'), ({'input': [[1, 2]]}, 400, 'invalid input type'),
    ({'input': ['a', '']}, {'0.24.0': 500, '0.33.0': 400}, {
        '0.24.0': 'Failed to create new sequence: no input provided', '0.33.0': 'cannot be empty'}),
    ({'model': 'llama3'}, {'0.24.0': 200, '0.33.0': 501}, {
        '0.24.0': '', '0.33.0': 'This server does not support embeddings. Start it with `--embeddings`'}),
    ({'dimensions': 'x'}, 400, 'EmbedRequest.dimensions of type int'),
    ({'options': {'num_ctx': 'x'}}, 500, 'option "num_ctx" must be of type integer'),
    ({'input': 'a [[fault=nope]]'}, 500, 'no such fault'),
])
def test_refusals(double, version, body, status, text):
    """Each has its release's status and text."""
    double.set(version=version)
    status, text = (each[version] if isinstance(each, dict) else each for each in (status, text))
    said = embed(double, **{'input': 'a'} | body)
    assert said.status == status and text in said.objects[0].get('error', '')


def test_a_model_for_embeddings_alone_neither_generates_nor_chats(double):
    """400, in words of its own for each."""
    assert talk(double, model='embedder').objects == [{'error': '"embedder" does not support generate'}]
    assert chat(double, model='embedder').objects == [{'error': '"embedder" does not support chat'}]


def test_embeddings_take_slots(double):
    """One call takes one, whatever the number of its texts, and counts in the peak with the others."""
    double.set(slots=2)
    with connected(double) as one, connected(double) as two, connected(double) as three:
        post(one, '/api/embed', {'model': 'embedder', 'input': ['a [[fault=hang]]', 'b']})
        post(two, '/api/chat', {'model': 'llama3', 'messages': [{'role': 'user', 'content': '[[fault=hang]]'}]})
        double.wait(running=2)
        post(three, '/api/embed', {'model': 'embedder', 'input': 'c'})
        double.wait(running=2, waiting=1)
        one.close()
        assert heard(three).status == 200 and double.peak == 2
    double.wait(running=0, closed_early=2)


@pytest.mark.parametrize('path', ['/api/embed', '/api/embeddings'])
@pytest.mark.parametrize('name', VECTORS)
def test_odd_vectors(double, path, name):
    """The faults of the table, in both forms; generate and chat are unaffected."""
    def ask():
        return embed(double, 'a', 'b', path=path, prompt='a').objects[0]
    field, sane = 'embeddings' if path == '/api/embed' else 'embedding', ask()
    double.fail(name)
    odd, change = ask(), VECTORS[name][0]
    changed = change(sane[field]) if field == 'embeddings' else change([sane[field]])
    if changed is ABSENT:
        assert field not in odd
    else:
        changed = changed[0] if field == 'embedding' and changed else changed
        assert json.dumps(odd[field]) == json.dumps(changed)
    assert talk(double).complete and chat(double).complete and double.faults == {name: 3}


@pytest.mark.parametrize('name', [*REPLIES, 'invalid_json', 'null_line', 'reset', 'close', 'hang', 'long_line', 'slow',
                                  'error_line', 'repeats_prompt', 'repeats_part', 'eof_at_once', 'missing_counts'])
def test_what_strikes_a_generate_strikes_an_embed(double, name):
    """With the same status and end; the marker may be in any of the texts."""
    double.set(slow=0.1, size=10_000)
    said = embed(double, 'some text', f'[[fault={name}]]', quiet=0.15 if name == 'hang' else 5)
    other = talk(double, f'[[fault={name}]]', stream=False, quiet=0.15 if name == 'hang' else 5)
    assert (said.how, said.status, said.complete) == (other.how, other.status, other.complete)
    assert double.faults == {name: 2}
    if name.startswith('repeats'):
        assert ' text\n[[fault=' in said.objects[0]['error']


def test_every_fault_of_vectors_has_a_sentence():
    """And none has the name of another fault."""
    assert EMBED_FAULTS.keys() == VECTORS.keys() and not EMBED_FAULTS.keys() & FAULTS.keys()
    assert all(run.__doc__.endswith('.') for run in EMBED_FAULTS.values())


def test_calls_are_recorded(double):
    """By path, with their bodies and the slot they had."""
    embed(double, 'a'), embed(double, path='/api/embeddings', prompt='b'), fetch(double, 'GET', '/api/tags')
    [call], [old] = double.calls('/api/embed'), double.calls('/api/embeddings')
    assert call.json == {'model': 'embedder', 'input': ['a']} and call.granted and call.sent == 1
    assert old.json['prompt'] == 'b' and double.embedded == {'a': 1, 'b': 1}
