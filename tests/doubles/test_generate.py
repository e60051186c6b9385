"""POST /api/generate of the double: a sane answer, and what Ollama refuses."""
import base64
import http.client
import json
import re
import time

import pytest

from tests.doubles.wire_client import PROMPT, connected, fetch, heard, talk
from tests.support.double import answer_for, pieces_for, prompt_tokens


def test_a_stream_is_chunked_lines_whose_pieces_are_the_text(double):
    """Without `stream` an answer streams: pieces with done:false, then an empty one with the metrics."""
    said = talk(double)
    *pieces, last = said.objects
    assert (said.status, said.headers['content-type'], said.complete) == (200, 'application/x-ndjson', True)
    assert said.text == answer_for(PROMPT) and 8 <= len(pieces) <= 20
    assert [piece['done'] for piece in pieces] == [False] * len(pieces)
    expected = {'model': 'llama3', 'response': '', 'done': True, 'done_reason': 'stop',
                'prompt_eval_count': prompt_tokens(PROMPT), 'eval_count': len(pieces) + 1}
    assert {key: last[key] for key in expected} == expected
    assert all(type(last[key]) is int and last[key] > 0 for key in last if key.endswith('_duration'))
    assert last['context'] and re.fullmatch(r'\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z', last['created_at'])


def test_a_plain_answer_is_the_last_object_with_all_the_text(double):
    """Small bodies have a Content-Length, large ones are chunked; no line end."""
    small, large = talk(double, stream=False), talk(double, stream=False, context=[1] * 2000)
    assert small.headers['content-length'] == str(len(small.body)) and not small.body.endswith(b'\n')
    assert small.headers['content-type'] == 'application/json; charset=utf-8'
    assert large.headers['transfer-encoding'] == 'chunked' and large.complete
    assert small.text == answer_for(PROMPT) and small.objects[0]['done'] is True
    assert large.text == answer_for(PROMPT, context=[1] * 2000)
    assert 'context' not in talk(double, stream=False, raw=True).objects[0]


def test_text_is_a_function_of_prompt_and_system():
    """Any test can compute it; other prompts have other texts; multi-byte characters are in all."""
    texts = {answer_for(f'prompt {number}', system) for number in range(200) for system in (None, 'Be brief.')}
    assert len(texts) == 400 and all(len(text.encode()) > len(text) for text in texts)
    assert answer_for('x [[tokens=3]]') == answer_for('x [[tokens=3]]', tokens=9)
    assert len(pieces_for('x', tokens=1000)[0]) == 1000


@pytest.mark.parametrize('options, reason', [({'num_predict': 3}, 'length'), ({'num_predict': 0}, 'stop'),
                                             ({'num_predict': -1}, 'stop'), ({'num_predict': 99}, 'stop')])
def test_num_predict_cuts(double, options, reason):
    """A budget cuts the text, for the reason `length`, and eval_count has no end token then."""
    [answer] = talk(double, stream=False, options=options).objects
    assert (answer['response'], answer['done_reason']) == (answer_for(PROMPT, n=options['num_predict']), reason)
    assert answer['eval_count'] == (3 if reason == 'length' else len(pieces_for(PROMPT)[0]) + 1)


def test_stop_cuts_before_the_text(double):
    """The stop text is not returned; pieces join to what is left, also when it begins inside one."""
    whole = answer_for(PROMPT)
    stop = whole[20:24]
    said = talk(double, options={'stop': ['never', stop]})
    assert said.text == whole[:whole.index(stop)] == answer_for(PROMPT, stop=[stop])
    assert said.objects[-1]['done_reason'] == 'stop'


IMAGE = base64.b64encode(b'a picture').decode()


@pytest.mark.parametrize('body', [
    {'suffix': 'end'}, {'raw': True}, {'template': '{{ .Prompt }}!'}, {'context': [1, 2]}, {'images': [IMAGE]},
    {'raw': True, 'suffix': 'end'}])
def test_every_field_matters(double, body):
    """Every field that a model supports changes its answer; the context comes back longer, unless raw."""
    double.add_model('able', capabilities=['completion', 'insert', 'vision'])
    said = talk(double, model='able', **body)
    last = said.objects[-1]
    assert said.text == answer_for(PROMPT, **body) != answer_for(PROMPT)
    if body.get('raw'):
        assert 'context' not in last
    else:
        given = body.get('context', [])
        assert last['context'][:len(given)] == given
        assert len(last['context']) == last['prompt_eval_count'] + last['eval_count'] + len(given)
        assert last['prompt_eval_count'] == prompt_tokens(PROMPT) + len(given)


def test_only_the_prompt_may_be_rendered(double):
    """`_debug_render_only` shows what the template makes, loads, and takes no slot."""
    [shown] = talk(double, system='Be brief.', _debug_render_only=True).objects
    assert shown['_debug_info'] == {'rendered_template': f'system: Be brief.\nuser: {PROMPT}\nassistant: '}
    assert shown['response'] == '' and not shown['done'] and double.loads == 1 and double.peak == 0
    [shown] = talk(double, raw=True, _debug_render_only=True).objects
    assert shown['_debug_info'] == {'rendered_template': PROMPT}


def test_images_of_a_blind_model(double):
    """An error of the engine since 0.30; ignored before."""
    assert talk(double, images=[IMAGE]).status == 400
    double.set(version='0.24.0')
    assert talk(double, images=[IMAGE]).text == answer_for(PROMPT)


def test_keys_of_any_case_and_nulls(double):
    """Go matches keys without regard to case, and null is no value."""
    body = {'Model': 'llama3', 'PROMPT': PROMPT, 'Stream': False, 'options': None}
    answer = json.loads(fetch(double, 'POST', '/api/generate', body)[2])
    assert answer['response'] == answer_for(PROMPT) and answer['model'] == 'llama3'


def test_go_escapes_and_replaces(double):
    """< > & are escaped, other characters are raw, a lone surrogate in a prompt is no trouble."""
    double.add_model('a')
    assert b'\\u003c' in fetch(double, 'POST', '/api/show', {'model': 'llama3'})[2]
    assert '漢'.encode() in talk(double, '漢 [[tokens=400]]').body
    assert talk(double, 'lone \ud800').text == answer_for('lone \ud800')


def test_a_request_may_come_in_pieces_and_many_on_a_connection(double):
    """Split heads, chunked bodies, Expect: 100-continue and two requests in one write are all served."""
    body = json.dumps({'model': 'llama3', 'prompt': PROMPT, 'stream': False}).encode()
    head = b'POST /api/generate HTTP/1.1\r\nHost: x\r\n'
    plain = head + b'Content-Length: %d\r\n\r\n' % len(body) + body
    chunked = head + b'Transfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n' % (
        body[:5], len(body) - 5, body[5:])
    with connected(double) as sock:
        for part in (plain[:9], plain[9:50], plain[50:] + chunked[:100], chunked[100:]):
            sock.sendall(part)
            time.sleep(0.01)
        sock.sendall(head + b'Expect: 100-continue\r\nConnection: close\r\nContent-Length: %d\r\n\r\n' % len(body))
        double.wait(finished=2)
        sock.sendall(body)
        raw = heard(sock).raw
    assert raw.count(b'HTTP/1.1 200 OK') == 3 and raw.count(b'HTTP/1.1 100 Continue') == 1
    assert raw.count(answer_for(PROMPT).encode()) == 3


# --- what Ollama refuses

@pytest.mark.parametrize('body, status, text', [
    (b'', 400, 'missing request body'),
    (b'{x', 400, 'invalid character'),
    (b'{"model": NaN}', 400, 'invalid character'),
    (b'[]', 400, 'cannot unmarshal array'),
    (b'{"model":"llama3","prompt":["a"]}', 400,
     'json: cannot unmarshal array into Go struct field GenerateRequest.prompt of type string'),
    (b'{"model":"llama3","prompt":"a","stream":1}', 400, 'cannot unmarshal number'),
    (b'{"prompt":"a"}', 404, "model '' not found"),
    (b'{"model":" ","prompt":"a"}', 404, "model ' ' not found"),
    (b'{"model":"no model","prompt":"a"}', 400, 'invalid model name'),
    (b'{"model":"Nope","prompt":"a"}', 404, "model 'Nope' not found"),
    (b'{"model":"llama3","prompt":"a","options":{"top_p":"1"}}', 500, 'option "top_p" must be of type float32'),
    (b'{"model":"llama3","prompt":"a","options":{"seed":true}}', 500, 'option "seed" must be of type integer'),
    (b'{"model":"llama3","prompt":"a","options":{"stop":"x"}}', 500, 'option "stop" must be of type array'),
    (b'{"model":"llama3","prompt":"a","options":{"stop":[1]}}', 500, 'must be of type an array of strings'),
    (b'{"model":"llama3","prompt":"a","keep_alive":"10"}', 400, 'time: missing unit in duration "10"'),
    (b'{"model":"llama3","prompt":"a","keep_alive":"ten"}', 400, 'time: invalid duration "ten"'),
    (b'{"model":"llama3","prompt":"a","raw":true,"system":"b"}', 400, 'raw mode does not support'),
    (b'{"model":"llama3","prompt":"a","suffix":"b"}', 400, 'does not support insert'),
    (b'{"model":"llama3","prompt":"a"', 400, 'unexpected EOF'),
    (b'{"model":"llama3","prompt":"a","images":["$"]}', 400, 'illegal base64 data at input byte 0'),
    (b'{"model":"llama3","prompt":"a","template":"{{"}', 500, 'unclosed action'),
    (b'{"model":"llama3","prompt":"a","keep_alive":[]}', 400, 'Unsupported type'),
    (b'{"model":"llama3","prompt":"a","think":true}', 400, 'does not support thinking'),
    (b'{"model":"llama3","prompt":"a","format":"xml"}', 500, 'invalid format'),
    (b'{"model":"llama3","prompt":"a","top_logprobs":21}', 400, 'top_logprobs must be between 0 and 20'),
    (b'{"model":"llama3","prompt":"a [[fault=nope]]"}', 500, 'no such fault'),
    (b'{"model":"llama3","prompt":"a [[ttft=soon]]"}', 500, 'could not convert'),
    (b'{"model":"llama3","prompt":"a [[version=1]]"}', 500, 'not for a prompt'),
])
def test_refusals(double, body, status, text):
    """Each has Ollama's status and text, as {"error"}."""
    connection = http.client.HTTPConnection('127.0.0.1', double.port, timeout=5)
    connection.request('POST', '/api/generate', body)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    assert response.status == status and text in answer['error'] and list(answer) == ['error']


@pytest.mark.parametrize('name', ['llama3', 'LLAMA3:latest', 'library/llama3', ' llama3:8b ', 'llama3:local'])
def test_model_names_are_normalised_and_echoed_as_sent(double, name):
    """All of these are models the double has; unknown keys and nulls, and what follows the object, are ignored."""
    body = {'model': name, 'prompt': 'a', 'stream': False, 'prmpt': 1, 'system': None, 'options': {'seed': None}}
    connection = http.client.HTTPConnection('127.0.0.1', double.port, timeout=5)
    connection.request('POST', '/api/generate', json.dumps(body) + 'rubbish')
    response = connection.getresponse()
    assert json.loads(response.read())['model'] == name
    connection.close()
