"""POST /api/pull of the double."""
import json

import pytest

from tests.doubles.wire_client import connected, heard, post, talk


def pull(double, quiet=5.0, **body):
    with connected(double) as sock:
        post(sock, '/api/pull', body)
        return heard(sock, quiet)


def statuses(said):
    return [line.get('status', '').partition(' ')[0] or 'error' for line in said.objects]


def test_a_model_comes_layer_by_layer(double):
    """Progress only grows, up to the size of each layer; then the model is there, in the build it had before."""
    digest = double.set_model('llama3')
    double.remove_model('llama3')
    said = pull(double, model='llama3', stream=True)
    assert said.headers['content-type'] == 'application/x-ndjson' and said.complete
    assert said.objects[0] == {'status': 'pulling manifest'} and said.objects[-1] == {'status': 'success'}
    layers = {}
    for line in said.objects[1:-3]:
        layers.setdefault(line['digest'], []).append((line.get('completed', 0), line['total']))
        assert line['status'] == f'pulling {line["digest"].removeprefix("sha256:")[:12]}'
    assert len(layers) == 3
    for steps in layers.values():
        assert steps == sorted(steps) and steps[0] == (0, steps[0][1]) and steps[-1] == steps[-1][1:] * 2
    assert double.set_model('llama3') == digest and double.calls('/api/pull')[0].json['model'] == 'llama3'


def test_what_is_there_is_told_of_once(double):
    """Each layer in one line; the old key `name` is accepted; a plain answer has only the end."""
    said = pull(double, name='llama3:8b')
    assert statuses(said) == ['pulling'] * 4 + ['verifying', 'writing', 'success']
    assert all(line['completed'] == line['total'] for line in said.objects[1:4])
    assert json.loads(pull(double, model='llama3', stream=False).body) == {'status': 'success'}


def test_what_cannot_be_pulled(double):
    """An unknown name is an error line under 200, plain a 500; an illegal one 400; `registry` says what there is."""
    said = pull(double, model='nope')
    assert said.status == 200 and said.objects == [
        {'status': 'pulling manifest'}, {'error': 'pull model manifest: file does not exist'}]
    assert pull(double, model='nope', stream=False).status == 500
    assert pull(double, model='').status == pull(double, model='a b').status == 400
    double.set(registry='llama3,nope')
    assert statuses(pull(double, model='nope'))[-1] == 'success' and double.set_model('nope')


@pytest.mark.parametrize('name, last', [('eof', 'pulling'), ('error_line', 'error'), ('crashed', 'error')])
def test_a_pull_fails_by_a_knob_of_its_own(double, name, last):
    """pull_fault takes any fault; without its last line there is no model, and generations are well."""
    double.remove_model('llama3')
    double.set(pull_fault=name)
    assert statuses(pull(double, model='llama3'))[-1] == last
    assert talk(double, model='llama3').status == 404 and talk(double, model='llama3:8b').complete


def test_who_leaves_ends_the_pull(double):
    """Slow by `gap`; nothing is there afterwards."""
    double.set(gap=0.05)
    double.remove_model('llama3')
    with connected(double) as sock:
        post(sock, '/api/pull', {'model': 'llama3'})
        assert sock.recv(50)
    double.wait(closed_early=1)
    double.set(gap=0)
    assert len(pull(double, model='llama3').objects) > 20
