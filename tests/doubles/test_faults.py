"""Each fault does on the wire what its sentence says, and the rest is as it was."""
import json
import re

import pytest

from tests.doubles.wire_client import PROMPT, chat, connected, heard, talk, user
from tests.support.double import CHAT_FAULTS, FAULTS, answer_for, calls_of, pieces_for
from tests.support.double.answer import ABSENT
from tests.support.double.fault_tables import CHAT_LINES, EDITS, INTRUDERS, REPLIES


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
    """The odd line is among the pieces and the answer continues; in the plain form it is the body."""
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
    """Whether two pieces and the beginning of a third arrived, then HOW."""
    return said.how == how and said.status == 200 and not said.complete and said.raw.count(b'"done":false}\n') == 2


PARTIAL = ''.join(pieces_for(PROMPT)[0][:2])
SILENT = {'hang', 'hang_after_headers', 'hang_midway', 'trickle'}       # these are heard until they fall silent
ENDLESS = {'endless_blanks', 'endless_garbage', 'endless_tokens'}       # and these until they have said enough
STREAMED = {  # the end of a stream, by fault
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
    'repeats_prompt': lambda said: said.status == 500 and PROMPT in said.objects[0]['error'],
    'repeats_part': lambda said: said.complete and PROMPT[2:-2] in said.objects[2]['error'],
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
    'repeats_part': lambda said: said.status == 500 and PROMPT[2:-2] in said.objects[0]['error'],
    'eof': lambda said: said.objects[0]['done'] is False and 'done_reason' not in said.objects[0],
    'eof_at_once': lambda said: said.objects[0] == {'model': '', 'created_at': '0001-01-01T00:00:00Z',
                                                    'response': '', 'done': False},
    'glued': lambda said: said.text == answer_for(PROMPT),
    'endless_blanks': lambda said: said.how == 'more' and said.body.strip() == b'',
}


def cuts_characters(raw):
    """Whether some chunk ends inside a character."""
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


# --- a chat

@pytest.mark.parametrize('stream', [True, False])
@pytest.mark.parametrize('name', [*REPLIES, *INTRUDERS, *EDITS, *sorted(set(STREAMED) - SILENT - ENDLESS)])
def test_what_strikes_a_generate_strikes_a_chat(double, name, stream):
    """With the same status and end, in the words of a chat; the marker is read in the last message of the user."""
    double.set(slow=0.1)
    prompt = f'{PROMPT} [[fault={name}]]'
    said = chat(double, [user('Hi [[fault=x]]'), user(prompt)], stream=stream)
    other = talk(double, prompt, stream=stream)
    assert (said.how, said.status, said.complete) == (other.how, other.status, other.complete)
    assert b'"response":"' not in said.body and double.faults == {name: 2}
    assert b'"message":{' in said.body or b'"response":' not in other.body


@pytest.mark.parametrize('name', CHAT_LINES)
def test_odd_lines_of_a_chat(double, name):
    """The odd message is among the pieces and the chat continues; a generate is unaffected."""
    double.fail(name)
    odd = {'model': 'm', 'message': json.loads(CHAT_LINES[name][0]), 'done': False}
    [*pieces, last] = chat(double).objects
    assert pieces.pop(2) == odd and last['done']
    assert ''.join(each['message']['content'] for each in pieces) == answer_for(PROMPT)
    assert chat(double, stream=False).objects == [odd]
    assert talk(double).text == answer_for(PROMPT)


def test_tool_calls_may_come_with_the_last_object(double):
    """As some models do; a chat without calls is unaffected."""
    double.add_model('able', capabilities=['completion', 'tools'])
    tool = {'type': 'function', 'function': {'name': 'f'}}
    prompt = '[[tool=f]] [[fault=tool_calls_in_last]]'
    [last] = chat(double, prompt, model='able', tools=[tool]).objects
    assert last['done'] and last['message']['tool_calls'] == calls_of(pieces_for([user(prompt)], tools=[tool])[0])
    double.fail('tool_calls_in_last')
    assert chat(double).content == talk(double).text == answer_for(PROMPT)


def test_every_fault_is_shown_and_has_a_sentence():
    """The registry holds what the tables of this file check, and nothing else."""
    assert set(FAULTS) == {*REPLIES, *INTRUDERS, *EDITS, *STREAMED}
    assert set(CHAT_FAULTS) == {*CHAT_LINES, 'tool_calls_in_last'}
    assert all(run.__doc__.endswith('.') for run in (FAULTS | CHAT_FAULTS).values())


@pytest.mark.parametrize('path', ['/api/tags', '/api/ps', '/api/show', '/api/version'])
@pytest.mark.parametrize('name', ['slow', 'hang', 'crashed', 'html_200', 'empty_200', 'invalid_json', 'array_line',
                                  'reset', 'not_found'])
def test_small_endpoints_fail_by_knobs_of_their_own(double, path, name):
    """tags_fault, ps_fault, show_fault and version_fault take any fault, and /api/generate stays well."""
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
