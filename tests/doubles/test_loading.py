"""The double's loading of models, their windows, and its prompt cache."""
import json
import time

import pytest

from tests.doubles.wire_client import PROMPT, chat, connected, embed, fetch, post, ps, send, talk, user
from tests.support.double import prompt_tokens, text_tokens


def test_load_and_unload(double):
    """An empty prompt loads, with keep_alive 0 it unloads; both are plain JSON and show in /api/ps."""
    assert not ps(double)
    [loaded] = talk(double, '', stream=True, keep_alive='1h30m').objects
    assert loaded | {'created_at': ''} == {'model': 'llama3', 'created_at': '', 'response': '', 'done': True,
                                           'done_reason': 'load'}
    assert [*ps(double)] == ['llama3:latest']
    assert talk(double, '', keep_alive=0).objects[0]['done_reason'] == 'unload' and not ps(double)
    assert talk(double, keep_alive=0).complete and not ps(double)


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


@pytest.mark.parametrize('path, body', [
    ('/api/generate', {'prompt': ''}), ('/api/generate', {'prompt': PROMPT}), ('/api/chat', {'messages': []}),
    ('/api/chat', {'messages': [user(PROMPT)]}), ('/api/embed', {'input': 'a'}), ('/api/embeddings', {'prompt': 'a'})])
def test_who_leaves_aborts_the_load(double, path, body):
    """Whatever was asked for; until a load has ended /api/ps does not list the model."""
    double.set(load=30)
    double.add_model('all', capabilities=['completion', 'embedding'])
    with connected(double) as sock:
        post(sock, path, {'model': 'all'} | body)
        double.wait(loading=1)
        assert not ps(double)
    double.wait(loading=0, aborted_loads=1, loads=0)
    double.set(load=0)
    with connected(double) as sock:
        post(sock, path, {'model': 'all'} | body)
        assert sock.recv(100)
    assert [*ps(double)] == ['all:latest'] and double.loads == 1


@pytest.mark.parametrize('ask', [talk, chat])
def test_a_load_may_fail(double, ask):
    """Faults strike loads as they strike generations: so often, then all is well."""
    double.fail('load_failed', times=2)
    empty = '' if ask is talk else []
    assert [ask(double, empty).status for _ in range(3)] == [500, 500, 200] and double.loads == 1
    double.fail('done_false')
    assert ask(double, empty).objects[0]['done'] is False


def test_a_load_is_shared_by_those_who_wait_for_it(double):
    """One load for five calls; a model that is set to be loaded needs none."""
    double.set(load=0.2)
    socks = [connected(double) for _ in range(5)]
    for sock in socks:
        send(sock, PROMPT)
    double.wait(loading=5)
    double.wait(finished=5, loads=1, aborted_loads=0)
    double.set_model('llama3:8b', loaded=True)
    assert talk(double, model='llama3:8b').complete and double.loads == 1
    for sock in socks:
        sock.close()


# --- what does not fit

LONG = 'a ' * 100
CUT, SHIFT, JSON_TEXT = 'cut', 'the prompt is longer', '{"error":{'
PLAIN = 'the input length exceeds the context length'


@pytest.mark.parametrize('version, read, untruncated, unshifted', [
    ('0.12.5', 64, CUT, CUT), ('0.12.6', 64, PLAIN, CUT), ('0.24.0', 64, PLAIN, CUT),
    ('0.30.0', 64, JSON_TEXT, SHIFT), ('0.33.0-rc2', 34, JSON_TEXT, SHIFT)])
def test_a_long_prompt_by_release(double, version, read, untruncated, unshifted):
    """By default the count betrays the cut; without `truncate` or `shift` it is cut in silence or refused."""
    double.set(version=version)
    for ask in (talk, chat):
        for switch, expected in (({}, CUT), ({'truncate': False}, untruncated), ({'shift': False}, unshifted)):
            said = ask(double, LONG, options={'num_ctx': 64}, **switch)
            if expected is CUT:
                assert said.objects[-1]['prompt_eval_count'] == read
            else:
                assert said.status == 400 and said.objects[0]['error'].startswith(expected)
    if untruncated is JSON_TEXT:
        inner = json.loads(talk(double, LONG, options={'num_ctx': 64}, truncate=False).objects[0]['error'])['error']
        assert (inner['type'], inner['n_prompt_tokens'], inner['n_ctx']) == ('exceed_context_size_error', 111, 64)
    assert talk(double, PROMPT, truncate=False, shift=False).objects[-1]['prompt_eval_count'] == prompt_tokens(PROMPT)


@pytest.mark.parametrize('version, text', [('0.11.4', 'input length exceeds maximum context length'),
                                           ('0.24.0', PLAIN), ('0.33.0', PLAIN)])
def test_a_long_text_to_embed_by_release(double, version, text):
    """Cut to the window by default, refused without `truncate`, each text for itself."""
    double.set(version=version)
    double.add_model('embedder', capabilities=['embedding'], context_length=64)
    [cut] = embed(double, LONG, 'b').objects
    assert cut['prompt_eval_count'] == 64 + text_tokens('b')
    assert cut['embeddings'] == embed(double, LONG + 'c', 'b').objects[0]['embeddings']
    said = embed(double, 'b', LONG, truncate=False)
    assert (said.status, said.objects) == (400, [{'error': text}])
    assert embed(double, 'a ' * 62, truncate=False).status == 200


# --- the prefix memory

def test_what_begins_as_an_earlier_prompt_costs_less(double):
    """The count of cached tokens is the beginning in common; what was answered is part of it."""
    double.set(prefix_memory=2, prefill=0.002)
    talk_of = [user('word ' * 100)]
    first = chat(double, talk_of).objects[-1]
    assert 'prompt_eval_cached_count' not in first and first['prompt_eval_duration'] >= 0.2e9
    answer = {'role': 'assistant', 'content': chat(double, talk_of, stream=False).content}
    again = chat(double, [*talk_of, answer, user('And?')]).objects[-1]
    assert 100 <= again['prompt_eval_cached_count'] < again['prompt_eval_count']
    assert double.calls()[-1].cached == again['prompt_eval_cached_count']
    other = talk(double, 'other ' * 100, stream=False).objects[0]
    assert other.get('prompt_eval_cached_count', 0) <= 1


def test_few_prompts_are_remembered_and_none_after_a_restart(double):
    """The oldest goes first, but one that goes on from another takes its place; nothing is kept by default."""
    def cached(prompt):
        return talk(double, prompt, raw=True).objects[-1].get('prompt_eval_cached_count', 0)
    assert [cached('a b c d'), cached('a b c d')] == [0, 0] and double.prompt_tokens == 0
    double.set(prefix_memory=2)
    assert [cached(prompt) for prompt in ('a b c d', 'e f g h', 'i j k l', 'a b c d', 'i j k x', 'i j x')] == [
        0, 0, 0, 0, 3, 2]
    assert double.cached_tokens == 5 and double.prompt_tokens == 5 * 15 + 14
    assert cached('i j x') == 3
    double.restart()
    assert cached('i j x') == 0


def test_a_prompt_is_read_before_its_first_token(double):
    """Without a memory `prefill` holds for all of it, each time."""
    double.set(prefill=0.005)
    for _ in range(2):
        started = time.monotonic()
        assert talk(double, 'a ' * 20).complete and time.monotonic() - started >= 31 * 0.005
    assert fetch(double, 'POST', '/_double/counters')[0] == 200 and double.cached_tokens == 0
