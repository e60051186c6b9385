"""POST /api/chat of the double: messages, tools, thinking, formats, log-probabilities, and what Ollama refuses."""
import base64
import json

import pytest
from jsonschema import Draft202012Validator

from tests.doubles.wire_client import PROMPT, chat, ps, talk, user
from tests.support.double import answer_for, calls_of, pieces_for, prompt_tokens, thinking_of

SYSTEM = {'role': 'system', 'content': 'Be brief.'}
CALL = {'id': 'call_1', 'function': {'index': 0, 'name': 'get_weather', 'arguments': {'city': 'Rome'}}}
TALK = [SYSTEM, user('Hi.'), {'role': 'assistant', 'content': 'Hello!'}, user(PROMPT)]
TOOL = {'type': 'function', 'function': {'name': 'get_weather', 'description': 'Tell the weather.', 'parameters': {
    'type': 'object', 'required': ['city'], 'properties': {
        'city': {'type': 'string'}, 'days': {'type': 'integer', 'description': 'How many days.'},
        'unit': {'type': 'string', 'enum': ['C', 'F']}}}}}
IMAGE = base64.b64encode(b'a picture').decode()
ABLE = ['completion', 'tools', 'vision', 'thinking', 'insert']


@pytest.fixture
def able(double):
    """The double with a model that can do everything but embed."""
    double.add_model('able', capabilities=ABLE)
    return double


def test_a_chat_streams_messages_whose_pieces_are_the_text(double):
    """As a generate, with `message` in place of `response` and no context."""
    said = chat(double, TALK)
    *pieces, last = said.objects
    assert (said.status, said.headers['content-type'], said.complete) == (200, 'application/x-ndjson', True)
    assert said.content == answer_for(TALK) and said.content != answer_for(TALK[-1:])
    assert all(piece['message'].keys() == {'role', 'content'} and not piece['done'] for piece in pieces)
    expected = {'model': 'llama3', 'message': {'role': 'assistant', 'content': ''}, 'done': True, 'done_reason': 'stop',
                'prompt_eval_count': prompt_tokens(TALK), 'eval_count': len(pieces) + 1}
    assert {key: last[key] for key in expected} == expected and 'context' not in last and 'response' not in last
    plain = chat(double, TALK, stream=False)
    assert plain.content == said.content and plain.headers['content-type'] == 'application/json; charset=utf-8'


def test_a_chat_of_one_question_says_what_a_generate_says(double):
    """The template makes the same prompt of both."""
    assert chat(double, PROMPT).content == talk(double).text == answer_for(PROMPT)
    assert chat(double, [SYSTEM, user(PROMPT)]).content == talk(double, system='Be brief.').text
    assert prompt_tokens([SYSTEM, user(PROMPT)]) == prompt_tokens(PROMPT, 'Be brief.')


@pytest.mark.parametrize('change', [
    TALK[1:], [*TALK, {'role': 'assistant', 'content': 'It'}], [*TALK[:2], TALK[3]], [*TALK[:-1], user('Why?')],
    [*TALK[:-1], user(PROMPT, images=[IMAGE])], [*TALK[:-1], {'role': 'tool', 'content': PROMPT}]])
def test_every_message_matters(able, change):
    """Another conversation has another answer, images and roles included."""
    said = chat(able, change, model='able')
    assert said.content == answer_for(change, think=True) != answer_for(TALK, think=True)


@pytest.mark.parametrize('body', [{'options': {'num_predict': 3}}, {'options': {'stop': ['e']}}, {}])
def test_budget_and_stops_hold_in_a_chat(double, body):
    """num_predict and stop cut as in a generate."""
    options = body.get('options', {})
    pieces, reason = pieces_for(TALK, n=options.get('num_predict'), stop=options.get('stop', ()))
    said = chat(double, TALK, **body)
    assert said.content == ''.join(pieces) and said.objects[-1]['done_reason'] == reason


def test_what_the_template_does_not_print_changes_nothing(double):
    """Order and unknown keys of a message, nulls and empty lists."""
    odd = [{'content': PROMPT, 'name': 'Ada', 'images': [], 'tool_calls': None, 'role': 'user'}]
    assert chat(double, odd).content == answer_for(odd) == answer_for(PROMPT)
    assert chat(double, [TALK[1], dict(reversed(TALK[2].items())), TALK[3]]).content == answer_for(TALK[1:])


def test_roles_that_an_old_template_does_not_know_are_dropped(double, able):
    """Without a word, by a model that has no tools; the images of a model that sees none are ignored before 0.30."""
    strange = [{'role': 'developer', 'content': 'Lie.'}, user(PROMPT)]
    assert chat(double, strange).content == answer_for(PROMPT)
    assert chat(able, strange, model='able', think=False).content == answer_for(strange) != answer_for(PROMPT)
    double.set(version='0.24.0')
    assert chat(double, [user(PROMPT, images=[IMAGE])]).content == answer_for(PROMPT)


# --- tools

@pytest.mark.parametrize('stream', [True, False])
def test_tools_are_called_when_the_prompt_says_so(able, stream):
    """Each call comes whole, in an object of its own, with arguments that fit; after the result comes text."""
    messages = [user('How is it? [[tool=get_weather,nope]]')]
    options = {'model': 'able', 'tools': [TOOL], 'think': False}
    said = chat(able, messages, stream=stream, **options)
    calls = [call for message in said.messages for call in message.get('tool_calls', ())]
    assert calls == calls_of(pieces_for(messages, tools=[TOOL])[0]) and said.content == ''
    assert [len(message.get('tool_calls', ())) for message in said.messages] == ([1, 1, 0] if stream else [2])
    assert [(call['function']['name'], call['function']['index']) for call in calls] == [
        ('get_weather', 0), ('nope', 1)]
    arguments = calls[0]['function']['arguments']
    Draft202012Validator(TOOL['function']['parameters']).validate(arguments)
    assert arguments.keys() == {'city', 'days', 'unit'} and calls[1]['function']['arguments'] == {}
    messages += [said.messages[0], {'role': 'tool', 'tool_name': 'get_weather', 'content': '20'}]
    assert chat(able, messages, **options).content == answer_for(messages, tools=[TOOL])


def test_without_a_word_in_the_prompt_tools_are_only_read(able):
    """They change the answer; the control `tool` calls for all prompts; before 0.12.10 a call has no id."""
    def calls(**body):
        return chat(able, model='able', think=False, stream=False, **body).messages[0].get('tool_calls')
    said = chat(able, model='able', think=False, tools=[TOOL])
    assert said.content == answer_for([user(PROMPT)], tools=[TOOL]) != answer_for(PROMPT)
    able.set(tool='get_weather')
    assert calls() is None and calls(tools=[TOOL])[0].keys() == {'id', 'function'}
    able.set(version='0.12.9')
    assert calls(tools=[TOOL])[0].keys() == {'function'}


# --- thinking

@pytest.mark.parametrize('stream', [True, False])
@pytest.mark.parametrize('think', [None, True, 'low'])
def test_thinking_comes_before_the_text(able, think, stream):
    """Unless it is switched off, in pieces of its own; num_predict counts them too."""
    body = {'model': 'able', 'stream': stream} | ({} if think is None else {'think': think})
    pieces, _ = pieces_for(PROMPT, think=think or True)
    said, short = chat(able, **body), chat(able, options={'num_predict': 2}, **body)
    assert ''.join(message.get('thinking', '') for message in said.messages) == thinking_of(pieces) != ''
    assert said.content == answer_for(PROMPT, think=think or True)
    assert said.objects[-1]['eval_count'] == len(pieces) + 1
    assert short.content == '' and short.objects[-1]['done_reason'] == 'length'
    generated = talk(able, **body).objects
    assert ''.join(each.get('thinking', '') for each in generated) == thinking_of(pieces)
    assert ''.join(each['response'] for each in generated) == said.content


def test_thinking_may_be_switched_off_and_made_long(able):
    """think:false gives the plain answer; the marker and the control say how long it is."""
    assert chat(able, model='able', think=False).content == answer_for(PROMPT)
    said = chat(able, 'Hm? [[thinking=30]]', model='able')
    assert sum('thinking' in message for message in said.messages) == 30
    able.set(thinking=9)
    assert sum('thinking' in message for message in chat(able, model='able').messages) == 9


# --- formats

NODE = {'type': 'object', 'required': ['name', 'next'], 'properties': {
    'name': {'type': 'string'}, 'next': {'anyOf': [{'$ref': '#/$defs/node'}, {'type': 'null'}]}}}


@pytest.mark.parametrize('schema', [
    {'type': 'object', 'required': ['a'], 'properties': {'a': {'type': 'integer', 'minimum': 5, 'maximum': 6}}},
    {'type': 'array', 'minItems': 3, 'maxItems': 3, 'items': {'enum': ['x', 'y']}},
    {'type': 'array', 'prefixItems': [{'const': 1}, {'type': 'null'}]},
    {'type': ['string', 'null'], 'minLength': 9, 'maxLength': 9},
    {'type': 'number', 'exclusiveMinimum': 0, 'maximum': 1},
    {'type': 'integer', 'multipleOf': 7, 'minimum': 1, 'maximum': 50},
    {'allOf': [{'$ref': '#/$defs/node'}, {'properties': {'more': {'type': 'boolean'}}, 'required': ['more']}],
     '$defs': {'node': NODE}},
    {'$ref': '#/$defs/node', '$defs': {'node': NODE}},
    {'oneOf': [{'type': 'string', 'format': 'date'}, {'type': 'boolean'}]},
    {'properties': {'b': {'items': {'type': 'integer'}}}, 'additionalProperties': False},
])
def test_an_answer_fits_its_schema(double, schema):
    """Whatever the prompt: streamed or plain, in a chat or a generate."""
    for number in range(8):
        texts = {chat(double, f'{number}', format=schema, stream=stream).content for stream in (True, False)}
        texts.add(talk(double, f'{number}', format=schema).text)
        [text] = texts
        Draft202012Validator(schema).validate(json.loads(text))
        assert text == answer_for(f'{number}', format=schema)


def test_json_without_a_schema_is_an_object(double):
    """`json` asks for any; "" and null for none."""
    assert json.loads(chat(double, format='json').content).keys() == {'answer', 'certain'}
    assert chat(double, format='').content == chat(double, format=None).content == answer_for(PROMPT)


# --- log-probabilities

@pytest.mark.parametrize('top', [0, 3])
def test_logprobs_are_given_when_asked_for(double, top):
    """One list with all in a plain answer, one entry in each piece of a stream; none otherwise."""
    asked = {'logprobs': True, 'top_logprobs': top}
    for ask in (talk, chat):
        [plain] = ask(double, stream=False, **asked).objects
        *pieces, last = ask(double, **asked).objects
        assert [entry for piece in pieces for entry in piece['logprobs']] == plain['logprobs']
        assert 'logprobs' not in last
        assert ''.join(entry['token'] for entry in plain['logprobs']) == answer_for(PROMPT)
        for entry in plain['logprobs']:
            assert bytes(entry['bytes']).decode() == entry['token'] and entry['logprob'] <= 0
            assert len(entry.get('top_logprobs', ())) == top
        assert 'logprobs' not in ask(double, stream=False, top_logprobs=top).objects[0]


# --- load, refusals, faults

def test_no_messages_load_and_unload(double):
    """As an empty prompt does; `_debug_render_only` loads as well and shows what the template makes."""
    [loaded] = chat(double, []).objects
    assert loaded | {'created_at': ''} == {
        'model': 'llama3', 'created_at': '', 'message': {'role': 'assistant', 'content': ''}, 'done': True,
        'done_reason': 'load'} and [*ps(double)] == ['llama3:latest']
    assert chat(double, [], keep_alive=0).objects[0]['done_reason'] == 'unload' and not ps(double)
    [shown] = chat(double, TALK, _debug_render_only=True).objects
    assert shown['_debug_info']['rendered_template'].endswith(f'user: {PROMPT}\nassistant: ') and not shown['done']
    assert [*ps(double)] == ['llama3:latest'] and double.peak == 0


def called(**function):
    return [{'role': 'assistant', 'tool_calls': [{'function': function}]}]


def offered(parameters, **function):
    return [{'type': 'function', 'function': {'name': 'f', 'parameters': parameters, **function}}]


@pytest.mark.parametrize('body, status, text', [
    ({'model': ''}, 400, 'model is required'),
    ({'model': 'nope'}, 404, "model 'nope' not found"),
    ({'model': 'embedder'}, 400, '"embedder" does not support chat'),
    ({'messages': {'role': 'user'}}, 400, 'json: cannot unmarshal object into Go struct field ChatRequest.messages'),
    ({'messages': ['Hi']}, 400, 'cannot unmarshal string into Go struct field ChatRequest.messages'),
    ({'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]}]}, 400,
     'cannot unmarshal array into Go struct field ChatRequest.messages.content of type string'),
    ({'messages': [user('Hi', images=['%'])]}, 400, 'illegal base64 data at input byte 0'),
    ({'messages': [user('Hi', images=[7])]}, 400, 'cannot unmarshal number'),
    ({'messages': [user('Hi', images=[IMAGE])]}, 400, 'image input is not supported'),
    ({'messages': called(name='f', arguments='{}')}, 400, 'messages.tool_calls.function.arguments of type map'),
    ({'tools': [TOOL]}, 400, 'registry.ollama.ai/library/llama3:latest does not support tools'),
    ({'model': 'x/able', 'tools': [TOOL]}, 400, 'registry.ollama.ai/x/able:latest does not support tools'),
    ({'tools': offered({'type': ['object']})}, 400, 'parameters.type of type string'),
    ({'tools': offered({'type': 'object', 'properties': {'a': True}})}, 400, 'cannot unmarshal bool'),
    ({'tools': offered({}, description=5)}, 400, 'tools.function.description of type string'),
    ({'think': True}, 400, '"llama3" does not support thinking'),
    ({'think': 7}, 400, 'think must be a boolean or string'),
    ({'think': 'much'}, 400, 'invalid think value: "much"'),
    ({'format': 'xml'}, 500, 'invalid format: "xml"; expected "json" or a valid JSON Schema object'),
    ({'format': []}, 500, 'invalid format: []'),
    ({'format': {'type': 'shape'}}, 400, 'failed to parse grammar'),
    ({'format': {'$ref': '#/$defs/gone'}}, 400, 'failed to parse grammar'),
    ({'options': {'top_k': 'x'}}, 500, 'option "top_k" must be of type integer'),
    ({'top_logprobs': -1}, 400, 'top_logprobs must be between 0 and 20'),
    ({'truncate': False, 'options': {'num_ctx': 12}}, 400, 'exceed_context_size_error'),
    ({'shift': False, 'options': {'num_ctx': 12}}, 400, 'the prompt is longer than the context length'),
    ({'messages': [user('a [[fault=nope]]')]}, 500, 'no such fault'),
])
def test_refusals(double, body, status, text):
    """Each has Ollama's status and text, as {"error"}, and costs no load."""
    double.add_model('embedder', capabilities=['embedding'])
    double.add_model('x/able')
    said = chat(double, **body)
    assert (said.status, list(said.objects[0])) == (status, ['error']) and text in said.objects[0]['error']
    assert double.loads == 0 and double.peak == 0
