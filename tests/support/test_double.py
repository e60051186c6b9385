"""The double of Ollama keeps its word: each fault does on the wire what its sentence says, the rest is Ollama's."""
import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

import pytest

from tests.support.double import FAULTS, DoubleRemote, OllamaDouble, answer_for, pieces_for, prompt_tokens
from tests.support.double.faults import ABSENT, EDITS, INTRUDERS, REPLIES

PROMPT = 'Why is the sky blue?'


@pytest.fixture(scope='module')
def one_double():
    with OllamaDouble(slots=4) as double:
        yield double


@pytest.fixture
def double(one_double):
    one_double.start()
    one_double.reset()
    return one_double


@dataclass
class Said:
    """All that came over the wire, and how it ended: end, reset, silence (nothing for a while) or more (too much)."""

    how: str
    raw: bytes
    status: int = 0
    headers: dict = field(default_factory=dict)
    body: bytes = b''
    complete: bool = False

    def __post_init__(self):
        head, found, rest = self.raw.partition(b'\r\n\r\n')
        if not found or not head.startswith(b'HTTP/1.1 '):
            return
        first, *lines = head.decode().split('\r\n')
        self.status = int(first.split()[1])
        self.headers = dict(line.lower().split(': ', 1) for line in lines)
        if self.headers.get('transfer-encoding') == 'chunked':
            self.body, self.complete = unchunked(rest)
        else:
            self.body, self.complete = rest, len(rest) == int(self.headers['content-length'])

    @property
    def objects(self):
        return [json.loads(line) for line in self.body.split(b'\n') if line.strip()]

    @property
    def text(self):
        return ''.join(each['response'] for each in self.objects)


def unchunked(data):
    """Return (body, whether it ended properly)."""
    body = b''
    while data:
        size, _, data = data.partition(b'\r\n')
        size = int(size, 16)
        if not size:
            return body, data == b'\r\n'
        body, data = body + data[:size], data[size + 2:]
    return body, False


def connected(double):
    return socket.create_connection(('127.0.0.1', double.port), timeout=5)


def send(sock, prompt=PROMPT, **body):
    """Send a generate request."""
    data = json.dumps({'model': 'llama3', 'prompt': prompt} | body).encode()
    head = f'POST /api/generate HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n'
    sock.sendall(head.encode() + data)


def heard(sock, quiet=5.0, most=10**7):
    """Listen until the end, a reset, QUIET seconds of silence or MOST bytes."""
    sock.settimeout(quiet)
    data = b''
    while len(data) < most:
        try:
            part = sock.recv(2**16)
        except ConnectionResetError:
            return Said('reset', data)
        except TimeoutError:
            return Said('silence', data)
        if not part:
            return Said('end', data)
        data += part
    return Said('more', data)


def talk(double, prompt=PROMPT, quiet=5.0, most=10**7, **body):
    """Ask for PROMPT on a connection of its own."""
    with connected(double) as sock:
        send(sock, prompt, **body)
        return heard(sock, quiet, most)


def fetch(double, method, path, body=None, headers=None):
    """Return (status, headers, body) of a plain request."""
    connection = http.client.HTTPConnection('127.0.0.1', double.port, timeout=5)
    try:
        connection.request(method, path, body if body is None else json.dumps(body), headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


# --- a sane answer

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
    assert small.text == large.text == answer_for(PROMPT) and small.objects[0]['done'] is True
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


# --- what Ollama refuses, and its other endpoints

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


def test_a_long_prompt_is_cut_or_refused(double):
    """By default the count betrays the cut; with truncate or shift off it is a 400, one of them JSON in a string."""
    prompt = 'a ' * 100
    assert talk(double, prompt, options={'num_ctx': 64}).objects[-1]['prompt_eval_count'] == 34
    said = talk(double, prompt, options={'num_ctx': 64}, truncate=False)
    assert said.status == 400
    inner = json.loads(said.objects[0]['error'])['error']
    assert (inner['type'], inner['n_prompt_tokens'], inner['n_ctx']) == ('exceed_context_size_error', 111, 64)
    said = talk(double, prompt, options={'num_ctx': 64}, shift=False)
    assert said.objects[0]['error'].startswith('the prompt is longer')


# --- faults

@pytest.mark.parametrize('stream', [True, False])
@pytest.mark.parametrize('name', REPLIES)
def test_replies(double, name, stream):
    """An error before the first chunk has its own status, type and body, streamed or not, and needs no slot."""
    double.set(slots=0)
    said = talk(double, f'{PROMPT} [[fault={name}]]', stream=stream)
    assert (said.status, said.headers['content-type'], said.body) == REPLIES[name][:3]
    assert said.complete and said.how == 'end' and double.peak == 0
    assert said.headers.get('location') == ('/elsewhere' if said.status == 307 else None)


@pytest.mark.parametrize('name', INTRUDERS)
def test_intruders(double, name):
    """The odd line comes among the pieces and the answer goes on; in the plain form it is the body."""
    prompt = f'{PROMPT} [[fault={name}]] [[after=3]]'
    said = talk(double, prompt)
    lines = said.body.split(b'\n')
    assert lines.pop(3) == INTRUDERS[name][0] and said.complete
    assert ''.join(json.loads(line)['response'] for line in lines[:-1]) == answer_for(prompt)
    assert talk(double, prompt, stream=False).body == INTRUDERS[name][0]


@pytest.mark.parametrize('stream', [True, False])
@pytest.mark.parametrize('name', EDITS)
def test_edits(double, name, stream):
    """The last object says what the table says, and the rest is as ever."""
    prompt = f'{PROMPT} [[fault={name}]]'
    said = talk(double, prompt, stream=stream)
    last = said.objects[-1]
    for key, value in EDITS[name][0].items():
        assert key not in last if value is ABSENT else last[key] == value
    assert said.complete and (name == 'text_in_last' or said.text == answer_for(prompt))


def broken(said, how):
    """Tell whether two pieces and the beginning of a third came, then HOW."""
    return said.how == how and said.status == 200 and not said.complete and said.raw.count(b'"done":false}\n') == 2


PARTIAL = ''.join(pieces_for(PROMPT)[0][:2])
SILENT = {'hang', 'hang_after_headers', 'hang_midway', 'trickle'}       # these are heard until they fall silent
ENDLESS = {'endless_blanks', 'endless_garbage', 'endless_tokens'}       # and these until they have said enough
STREAMED = {  # what is heard of a stream, by fault
    'reset': lambda said: (said.how, said.raw) == ('reset', b''),
    'close': lambda said: (said.how, said.raw) == ('end', b''),
    'bad_http': lambda said: said.how == 'end' and said.raw.startswith(b'\0\1'),
    'hang': lambda said: (said.how, said.raw) == ('silence', b''),
    'hang_after_headers': lambda said: (said.how, said.status, said.body) == ('silence', 200, b''),
    'hang_midway': lambda said: (said.how, said.text) == ('silence', PARTIAL),
    'slow': lambda said: said.text == answer_for(PROMPT),
    'leak': lambda said: said.text == answer_for(PROMPT),
    'single_json': lambda said: len(said.objects) == 1 and said.text == answer_for(PROMPT) and said.objects[0]['done']
    and said.headers['content-type'].startswith('application/json'),
    'reset_midway': lambda said: broken(said, 'reset'),
    'close_midway': lambda said: broken(said, 'end'),
    'cut_line': lambda said: said.complete and not said.body.endswith(b'\n') and said.body.count(b'\n') == 2,
    'error_line': lambda said: said.complete and [*said.objects[2]] == ['error'] and len(said.objects) == 3,
    'context_error': lambda said: said.complete and [*said.objects[-1]] == ['error']
    and ''.join(each['response'] for each in said.objects[:-1]) == answer_for(PROMPT),
    'eof': lambda said: said.complete and said.text == PARTIAL,
    'eof_at_once': lambda said: said.complete and (said.status, said.body) == (200, b''),
    'glued': lambda said: said.text == answer_for(PROMPT) and said.raw.count(b'}\n{') == len(said.objects) - 1,
    'split': lambda said: said.text == answer_for(PROMPT) and cuts_characters(said.raw),
    'crlf': lambda said: said.text == answer_for(PROMPT) and said.body.endswith(b'}\r\n  \r\n'),
    'after_done': lambda said: [each['done'] for each in said.objects[-2:]] == [True, False],
    'long_line': lambda said: said.text == answer_for(PROMPT) and len(said.body) > 3_000_000,
    'trickle': lambda said: (said.how, said.body) == ('silence', b'{'),
    'endless_blanks': lambda said: said.how == 'more' and said.body.endswith(b' \n \n \n') and said.text == PARTIAL,
    'endless_garbage': lambda said: said.how == 'more' and said.body.endswith(b'x' * 999),
    'endless_tokens': lambda said: said.how == 'more' and len(pieces_in(said)) > 50 and b'"done":true' not in said.raw,
}
PLAIN = {  # and of a plain answer, where it is not the same
    'single_json': lambda said: said.text == answer_for(PROMPT),
    'hang_midway': lambda said: (said.how, said.status, said.body) == ('silence', 200, b''),
    'reset_midway': lambda said: said.how == 'reset' and said.status == 200 and not said.complete,
    'close_midway': lambda said: said.how == 'end' and said.status == 200 and not said.complete,
    'cut_line': lambda said: said.complete and len(said.body) == 20,
    'error_line': lambda said: said.status == 500 and [*said.objects[0]] == ['error'],
    'context_error': lambda said: said.status == 500 and [*said.objects[0]] == ['error'],
    'eof': lambda said: said.objects[0]['done'] is False and 'done_reason' not in said.objects[0],
    'eof_at_once': lambda said: said.objects[0] == {'model': '', 'created_at': '0001-01-01T00:00:00Z',
                                                    'response': '', 'done': False},
    'glued': lambda said: said.text == answer_for(PROMPT),
    'endless_blanks': lambda said: said.how == 'more' and said.body.strip() == b'',
}


def cuts_characters(raw):
    """Tell whether some chunk ends inside a character."""
    def cut(chunk):
        try:
            return not chunk.decode()
        except UnicodeDecodeError:
            return True
    return any(cut(chunk) for chunk in re.split(rb'\r\n[0-9a-f]+\r\n', raw))


def pieces_in(said):
    return re.findall(b'"response":"[^"]*","done":false}\n', said.body)


@pytest.mark.parametrize('stream', [True, False])
@pytest.mark.parametrize('name', STREAMED)
def test_behaviours(double, name, stream):
    """A fault that is a behaviour does what its sentence says, set for all calls by name."""
    double.set(slow=0.1)
    double.fail(name)
    said = talk(double, stream=stream, quiet=0.15 if name in SILENT else 5, most=6000 if name in ENDLESS else 10**7)
    check = STREAMED[name] if stream else PLAIN.get(name, STREAMED[name])
    assert check(said), (FAULTS[name].__doc__, said.how, said.raw[:300], said.raw[-300:])
    double.wait(running=0, faults={name: 1})


def test_every_fault_is_shown_and_has_a_sentence():
    """The registry holds what the tables of this file check, and nothing else."""
    assert set(FAULTS) == {*REPLIES, *INTRUDERS, *EDITS, *STREAMED}
    assert all(run.__doc__.endswith('.') for run in FAULTS.values())


@pytest.mark.parametrize('path', ['/api/tags', '/api/show', '/api/version'])
@pytest.mark.parametrize('name', ['slow', 'hang', 'crashed', 'html_200', 'empty_200', 'invalid_json', 'array_line',
                                  'reset', 'not_found'])
def test_small_endpoints_fail_by_knobs_of_their_own(double, path, name):
    """tags_fault, show_fault and version_fault take any fault, and /api/generate stays well."""
    double.set(slow=0.05, **{f'{path[5:]}_fault': name})
    method, body = ('POST', b'{"model":"llama3"}') if path == '/api/show' else ('GET', b'')
    with connected(double) as sock:
        sock.sendall(f'{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n'.encode()
                     + b'Content-Length: %d\r\n\r\n' % len(body) + body)
        said = heard(sock, quiet=0.15)
    if name in REPLIES:
        assert (said.status, said.body) == (REPLIES[name][0], REPLIES[name][2])
    elif name in INTRUDERS:
        assert said.body == INTRUDERS[name][0]
    else:
        assert said.how == {'slow': 'end', 'hang': 'silence', 'reset': 'reset'}[name]
        assert (said.status == 200) == (name == 'slow')
    assert talk(double).text == answer_for(PROMPT)


def test_a_fault_strikes_as_often_as_it_is_told(double):
    """`times` counts all calls, or those of a prompt that asks for the fault; `rate` is a share; names are drawn."""
    double.fail('busy', times=2)
    assert [talk(double).status for _ in range(4)] == [503, 503, 200, 200]
    double.fail()
    prompts = ['a [[fault=oom]] [[times=1]]', 'b [[fault=oom]] [[times=1]]'] * 2
    assert [talk(double, prompt).status for prompt in prompts] == [500, 500, 200, 200]
    double.fail('busy,oom', rate=0.5)
    assert {talk(double).status for _ in range(40)} == {200, 500, 503}
    assert double.faults['busy'] > 2


# --- time, slots, cancellation, records

def test_nothing_comes_before_the_first_token(double):
    """Not even headers; then gap by gap."""
    prompt = f'{PROMPT} [[ttft=0.1]] [[gap=0.01]] [[tokens=5]]'
    with connected(double) as sock:
        send(sock, prompt)
        assert heard(sock, quiet=0.05).raw == b''
        said = heard(sock)
    assert said.text == answer_for(prompt)
    assert said.objects[-1]['prompt_eval_duration'] >= 100e6 and said.objects[-1]['eval_duration'] >= 40e6
    started = time.monotonic()
    assert talk(double, f'{PROMPT} [[delay=0.1]] [[ttft=0.05]] [[tokens=5]] [[gap=0.01]]', stream=False).complete
    assert time.monotonic() - started >= 0.19


def test_slots_are_few_and_the_queue_is_first_come_first_served(double):
    """With one slot the others wait, are counted, and leave the queue when their client does."""
    double.set(slots=1)
    socks = [connected(double) for _ in range(5)]
    for number, sock in enumerate(socks):
        send(sock, f'{number} [[fault=hang]] [[times=1]]' if not number else str(number))
        double.wait(running=1, waiting=number)
    socks[2].close()
    double.wait(waiting=3, closed_early=1)
    socks[0].close()
    texts = [heard(socks[number]).text for number in (1, 3, 4)]
    assert texts == [answer_for(str(number)) for number in (1, 3, 4)]
    calls = double.calls('/api/generate')
    assert [call.closed_early for call in calls] == [True, False, True, False, False]
    assert calls[0].granted < calls[1].granted < calls[3].granted < calls[4].granted and calls[2].granted == 0
    assert double.peak == 1
    for sock in socks:
        sock.close()


def test_more_slots_let_the_waiting_in_at_once(double):
    """The number of slots may be changed while calls wait."""
    double.set(slots=1)
    socks = [connected(double) for _ in range(3)]
    for sock in socks:
        send(sock, 'x [[fault=hang]]')
    double.wait(running=1, waiting=2)
    double.set(slots=3)
    double.wait(running=3, waiting=0, peak=3)
    for sock in socks:
        sock.close()
    double.wait(running=0, closed_early=3, connections=0)


@pytest.mark.parametrize('stream', [True, False])
def test_a_client_that_leaves_stops_the_generation(double, stream):
    """The slot is free at once, and the record says that and how far it got."""
    with connected(double) as sock:
        send(sock, 'x [[tokens=1000]] [[gap=0.01]]', stream=stream)
        double.wait(running=1)
    double.wait(running=0, closed_early=1)
    [call] = double.calls()
    assert call.closed_early and call.sent < 500 and call.ended > call.granted >= call.started


def test_a_leaked_slot_stays_taken(double):
    """As Ollama does with a slow reader that leaves; a restart of the records frees it."""
    double.set(slots=1)
    with connected(double) as sock:
        send(sock, 'x [[fault=leak]] [[gap=0.01]] [[tokens=1000]]')
        double.wait(running=1)
    double.wait(closed_early=1)
    with connected(double) as sock:
        send(sock)
        double.wait(running=1, waiting=1)
    double.reset()
    assert double.running == 0


def test_a_slow_reader_holds_the_writer_back(double):
    """What is not read is not made: an endless answer does not fill the memory."""
    with connected(double) as sock:
        send(sock, 'x [[tokens=200000]]')
        sock.recv(100)
        stalled = -1
        while stalled != (now := double.calls()[0].sent):
            stalled = now
            time.sleep(0.05)
        assert now < 200_000


def test_records(double):
    """Method, path, headers, body, times, status and how often each prompt was asked for."""
    fetch(double, 'POST', '/api/generate', {'model': 'llama3', 'prompt': 'a', 'stream': False}, {'X-Mine': 'ä'})
    talk(double, 'a'), talk(double, 'b [[fault=oom]]'), fetch(double, 'GET', '/api/tags?x=1')
    calls = double.calls()
    assert [(call.method, call.path, call.status) for call in calls] == [
        ('POST', '/api/generate', 200), ('POST', '/api/generate', 200), ('POST', '/api/generate', 500),
        ('GET', '/api/tags?x=1', 200)]
    assert calls[0].headers['x-mine'] == 'ä' and calls[0].json['prompt'] == 'a' and calls[2].fault == 'oom'
    assert calls[0].started <= calls[0].granted <= calls[0].ended <= time.monotonic()
    assert double.generations == {'a': 2, 'b [[fault=oom]]': 1} and double.requests == double.finished == 4
    double.set(record=2)
    assert len(double.calls()) == 2
    double.reset()
    assert double.calls() == [] and double.requests == 0


def test_misuse_is_told(double):
    """Unknown knobs, faults, verbs and counters are errors, at once and over HTTP."""
    for wrong in ({'knob': 1}, {'fault': 'nope'}, {'tags_fault': 'nope'}, {'ttft': 'soon'}):
        with pytest.raises(ValueError):
            double.set(**wrong)
        assert fetch(double, 'POST', '/_double/set', wrong)[0] == 400
    assert fetch(double, 'POST', '/_double/nope')[0] == 400
    with pytest.raises(AttributeError):
        double.nope
    with pytest.raises(TimeoutError):
        double.wait(running=3, timeout=0)
    with pytest.raises(ValueError):
        OllamaDouble(fault='nope')


def test_stopped_it_refuses_and_started_it_is_where_it_was(double):
    """A stop breaks what is under way and unloads the models; the port stays the same, records and knobs stay."""
    with connected(double) as sock:
        send(sock, 'x [[fault=hang_midway]]')
        double.wait(running=1)
        double.stop()
        assert heard(sock).how in ('end', 'reset')
    with pytest.raises(ConnectionRefusedError):
        connected(double)
    assert not double.calls()[0].closed_early and double.running == 0
    double.start()
    assert talk(double).text == answer_for(PROMPT) and double.loads == 2
    double.restart()
    assert talk(double).complete


def test_a_restart_under_load_leaves_nobody_hanging(double):
    """Each client is answered, refused or cut off, also one accepted at the moment of the stop."""
    heard_of, done = set(), threading.Event()

    def knock():
        while not done.is_set():
            with suppress(ConnectionError):
                heard_of.add(talk(double, quiet=3).how)
    threads = [threading.Thread(target=knock) for _ in range(6)]
    for thread in threads:
        thread.start()
    for _ in range(30):
        double.restart(0.005)
    done.set()
    for thread in threads:
        thread.join()
    assert 'end' in heard_of and 'silence' not in heard_of


def test_a_process_of_its_own_is_steered_the_same_way():
    """It prints its URL, takes knobs as arguments, obeys DoubleRemote even while stopped, ends on SIGTERM."""
    process = subprocess.Popen([sys.executable, '-m', 'tests.support.double', '--slots', '3', '--fault', 'busy'],
                               stdout=subprocess.PIPE, text=True)
    with process:
        try:
            remote = DoubleRemote(process.stdout.readline().strip())
            assert talk(remote).status == 503
            remote.fail()
            assert talk(remote).text == answer_for(PROMPT)
            assert remote.set(ttft=0.01).slots == 3 and remote.generations == {PROMPT: 2}
            assert remote.calls()[1].json['prompt'] == PROMPT
            remote.stop()
            with pytest.raises(ConnectionRefusedError):
                connected(remote)
            remote.start()
            with pytest.raises(ValueError, match='no such fault'):
                remote.fail('nope')
            with connected(remote) as sock:
                send(sock, 'x [[fault=hang]]')
                remote.wait(running=1)
                process.send_signal(signal.SIGTERM)
                assert process.wait(5) == 0
        finally:
            process.kill()
