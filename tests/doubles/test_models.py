"""The double's models, and its small endpoints."""
import json
import re

import pytest

from tests.doubles.wire_client import PROMPT, fetch, ps, talk
from tests.support.double import answer_for


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


def told(double, path, body=None):
    """Return the answer of /api/PATH."""
    return json.loads(fetch(double, 'POST' if body else 'GET', f'/api/{path}', body)[2])


def test_models_have_attributes_of_their_own(double):
    """Capabilities, windows, share on the GPU, stops; a digest stays until another is set; unknown ones are errors."""
    digest = double.set_model('qwen3:4b', capabilities=['completion', 'thinking'], context_length=40960, gpu_percent=50,
                              family='qwen3', stops=['<x>'], loaded=True)
    assert double.set_model('Qwen3:4b', voice='b') == digest != double.add_model('qwen3:4b')
    shown = told(double, 'show', {'model': '', 'name': 'qwen3:4b', 'options': None})
    assert shown['capabilities'] == ['completion', 'thinking'] and '<x>' in shown['parameters']
    assert shown['model_info'] == {'general.architecture': 'qwen3', 'qwen3.context_length': 40960,
                                   'qwen3.embedding_length': 768}
    [loaded] = ps(double).values()
    assert loaded['size_vram'] * 2 == loaded['size'] and loaded['context_length'] == 8192
    assert loaded['digest'] == double.set_model('qwen3:4b')
    tag = {tag['name']: tag for tag in told(double, 'tags')['models']}['qwen3:4b']
    assert tag['capabilities'] == ['completion', 'thinking'] and tag['details']['context_length'] == 40960
    double.set_model('qwen3:4b', loaded=False)
    assert not ps(double)
    with pytest.raises(ValueError, match='no such attribute'):
        double.set_model('qwen3:4b', colour='red')
    assert talk(double, model='qwen3:4b', think=False).text == answer_for(PROMPT, voice='b') != answer_for(PROMPT)


@pytest.mark.parametrize('version, unknown, listed', [('0.24.0', 'Nope', False), ('0.33.0', 'nope:latest', True)])
def test_inventory_by_release(double, version, unknown, listed):
    """An unknown name in /api/show is echoed or normalised; capabilities are listed since 0.30."""
    double.set(version=version)
    assert told(double, 'show', {'model': 'Nope'}) == {'error': f"model '{unknown}' not found"}
    assert fetch(double, 'POST', '/api/show', {'model': ''})[0] == 400 and told(double, 'version')['version'] == version
    assert all(('capabilities' in tag) is listed for tag in told(double, 'tags')['models'])


def test_the_window_is_the_smallest_of_three(double):
    """The call's window or the server's default, up to that of the model's training; /api/ps shows it."""
    double.set(num_ctx=3000)
    for asked, window in ((None, 3000), (2000, 2000), (9000, 8192)):
        talk(double, options={'num_ctx': asked})
        assert ps(double)['llama3:latest']['context_length'] == window
