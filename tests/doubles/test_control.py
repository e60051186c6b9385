"""Time, slots, cancellation, records of the double, and how it is steered."""
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest

from tests.doubles.wire_client import PROMPT, connected, fetch, heard, send, talk
from tests.support.double import DoubleRemote, OllamaDouble, answer_for


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
    assert sorted(call.beside for call in double.calls('/api/generate')) == [1, 2, 3]
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
    """Data that is not read is not generated: an endless answer does not fill the memory."""
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
    """Unknown controls, faults, verbs and counters are errors, at once and over HTTP."""
    for wrong in ({'control': 1}, {'fault': 'nope'}, {'tags_fault': 'nope'}, {'ttft': 'soon'}):
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
    """A stop breaks what is under way and unloads the models; the port stays the same, records and controls stay."""
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
    """It prints its URL, takes controls as arguments, obeys DoubleRemote even while stopped, ends on SIGTERM."""
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
