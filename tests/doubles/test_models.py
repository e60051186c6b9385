"""The double's models, and its small endpoints."""
import json
import re
import time

import pytest

from tests.doubles.talk import connected, fetch, send, talk


@pytest.mark.parametrize('method, path, headers, status, kind, body', [
    ('GET', '/', {}, 200, 'text/plain', b'Ollama is running'),
    ('HEAD', '/', {}, 200, 'text/plain', b''),
    ('GET', '/api/generate', {}, 405, 'text/plain', b'405 method not allowed'),
    ('POST', '/api/tags', {}, 405, 'text/plain', b'405 method not allowed'),
    ('GET', '/api/nope', {}, 404, 'text/plain', b'404 page not found'),
    ('GET', '//api/tags', {}, 307, 'text/plain', b''),
    ('GET', '/api/tags/', {}, 307, 'text/plain', b''),
    ('GET', '/', {'Origin': 'http://x'}, 403, 'text/plain', b''),
    ('GET', '/api/tags', {'Origin': 'http://x'}, 403, 'text/plain', b''),
])
def test_paths_methods_and_origins(double, method, path, headers, status, kind, body):
    """Wrong paths, methods and origins get what Go's router gives, never JSON."""
    got = fetch(double, method, path, headers=headers)
    assert (got[0], got[1]['Content-Type'].split(';')[0], got[2]) == (status, kind, body)
    assert status != 307 or got[1]['Location'] == '/api/tags'


def test_inventory(double):
    """Models and digests can be changed and show in /api/tags, newest first; /api/show has Llama 3's stops."""
    tags = json.loads(fetch(double, 'GET', '/api/tags')[2])['models']
    assert {tag['name'] for tag in tags} == {'llama3:8b', 'llama3:latest'}
    assert len({tag['digest'] for tag in tags}) == 1 and re.fullmatch('[0-9a-f]{64}', tags[0]['digest'])
    digest = double.set_digest('llama3:latest')
    double.add_model('mistral', 'd' * 64)
    double.remove_model('llama3:8b')
    tags = json.loads(fetch(double, 'GET', '/api/tags')[2])['models']
    assert [(tag['name'], tag['digest']) for tag in tags] == [('mistral:latest', 'd' * 64), ('llama3:latest', digest)]
    shown = json.loads(fetch(double, 'POST', '/api/show', {'model': 'llama3'})[2])
    assert re.findall(r'^stop +"(.+)"$', shown['parameters'], re.M) == [
        '<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>']
    assert fetch(double, 'POST', '/api/show', {'model': 'nope'})[0] == 404
    assert json.loads(fetch(double, 'GET', '/api/version')[2]) == {'version': '0.33.0'}


def test_load_and_unload(double):
    """An empty prompt loads, with keep_alive 0 it unloads; both are plain JSON and show in /api/ps."""
    def names():
        return [model['name'] for model in json.loads(fetch(double, 'GET', '/api/ps')[2])['models']]
    assert names() == []
    [loaded] = talk(double, '', stream=True, keep_alive='1h30m').objects
    assert loaded | {'created_at': ''} == {'model': 'llama3', 'created_at': '', 'response': '', 'done': True,
                                           'done_reason': 'load'}
    assert names() == ['llama3:latest']
    assert talk(double, '', keep_alive=0).objects[0]['done_reason'] == 'unload' and names() == []
    assert talk(double, keep_alive=0).complete and names() == []


def test_other_load_time_options_reload(double):
    """The counter `loads` shows a client that makes Ollama load its model again and again."""
    for num_ctx in (4096, 4096, 2048, None):
        talk(double, options={'num_ctx': num_ctx})
    assert double.loads == 3


def test_a_cold_load_is_lost_when_its_client_leaves(double):
    """The next request starts from zero; one more than max_queue behind it is 503."""
    double.set(load=0.2, max_queue=1)
    with connected(double) as first, connected(double) as second:
        send(first)
        send(second)
        double.wait(requests=2)
        assert talk(double).status == 503
    double.wait(closed_early=2)
    started = time.monotonic()
    assert talk(double).status == 200 and time.monotonic() - started >= 0.2
    assert double.loads == 1
