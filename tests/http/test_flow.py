"""Many, slow and rude clients: slots, queue, deadlines, the breaker, stopping and reloading."""

import contextlib
import http.client
import json
import os
import signal
import socket
import threading
import time

import psutil
import pytest

from llama_api.http import connection as wire
from tests.support.double import answer_for
from tests.support.gunicorn_server import new_prompt, together, until

GONE = 2.0  # seconds in which an abandoned generation must stop
QUICK = 1.5  # seconds that no health endpoint may take longer than


@pytest.fixture(scope="module")
def server(shared_double, shared_serve):
    return shared_serve(shared_double, parallel=2, queue=4, queue_timeout=1.5, timeout=20)


@pytest.fixture(scope="module")
def wide_server(shared_double, shared_serve):
    return shared_serve(shared_double, parallel=1, queue=200)


@pytest.fixture(scope="module")
def two_workers(shared_double, shared_serve, tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "answers.db"
    return shared_serve(shared_double, workers=2, parallel=2, cache_url=f"sqlite:///{path}")


@pytest.fixture
def double(double):
    double.set(slots=100)
    return double


@pytest.fixture
def wide(wide_server, double):
    return wide_server


class Holders:
    """Clients whose requests are under way; all leave at the end."""

    def __init__(self, api):
        self._api, self._clients = api, []

    def add(self, count, markers="[[ttft=30]]", **fields):
        added = [self._api.open_ask(new_prompt(markers), **fields) for _ in range(count)]
        self._clients += added
        return added

    def __enter__(self):
        return self

    def __exit__(self, *details):
        for client in self._clients:
            client.close()
        until(lambda: self._api.health()["queue"]["running"] == 0)


def waiting(api, count):
    until(lambda: api.health()["queue"]["waiting"] == count, what=f"{count} waiting")


SLOW = [  # requests whose body does not come: one has a Content-Length, the other is chunked
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n64\r\n"]


@pytest.fixture(scope="module", autouse=True)
def slow_bodies(wide_server):
    """Clients that send a byte now and then: begun before the other tests of this module, whose time they wait out."""
    clients = [wide_server.send_raw(head, timeout=wire.BODY_SECONDS + 10) for head in SLOW]
    stop = threading.Event()
    drips = [threading.Thread(target=dripping, args=(client, stop)) for client in clients]
    for drip in drips:
        drip.start()
    yield clients
    stop.set()
    for drip, client in zip(drips, clients):
        drip.join()
        client.close()


def dripping(client, stop):
    """Send a byte now and then until stopped."""
    while not stop.wait(0.5):
        try:
            client.sendall(b"{")
        except OSError:
            return


# The gate

def test_ollama_never_gets_more_than_parallel_at_once(api, double):
    """Two slots, six clients at once, streamed and plain: Ollama, which would take a hundred, never sees more."""
    replies = together(6, lambda n: api.ask(new_prompt("[[ttft=0.1]]"), stream=n % 2 == 1))
    assert {reply.status for reply in replies} == {200} and double.peak == 2


def test_all_workers_together_have_parallel_slots(two_workers, double):
    """Two workers do not make four of two; and all answers come, from both."""
    replies = together(24, lambda n: two_workers.ask(new_prompt("[[ttft=0.05]]"), stream=n % 2 == 1))
    assert {reply.status for reply in replies} == {200} and double.peak == 2


def test_a_full_queue_refuses_at_once(api, double):
    """503 overloaded with Retry-After while others wait; it is degraded, not unhealthy; the queue then moves on."""
    with Holders(api) as holders:
        holders.add(2)
        double.wait(running=2)
        queued = holders.add(4, "[[tokens=5]]")
        waiting(api, 4)
        reply = api.ask(new_prompt())
        assert (reply.status, reply.slug) == (503, "overloaded") and int(reply.headers["Retry-After"]) >= 1
        assert reply.seconds < 1
        streamed = api.ask(new_prompt(), stream=True)
        assert (streamed.status, streamed.slug) == (503, "overloaded")
        health = api.get("/health")
        assert (health.status, health.json["status"]) == (200, "degraded") and "queue" in health.json["reason"]
        assert health.json["queue"] == {"running": 2, "waiting": 4, "slots": 2, "limit": 4}
        assert api.get("/readyz").status == 200
        queued[0].close()
        waiting(api, 3)
        late = holders.add(1, "[[tokens=5]]")[0]
        waiting(api, 4)
        assert late


def test_the_queue_is_served_in_order(wide, double):
    """First come, first served."""
    with Holders(wide) as holders:
        first = holders.add(1)[0]
        double.wait(running=1)
        prompts = [new_prompt() for _ in range(8)]
        clients = []
        for count, prompt in enumerate(prompts, 1):
            clients.append(wide.open_ask(prompt))
            waiting(wide, count)
        first.close()
        for client in clients:
            with client:
                assert client.head.status == 200
    arrived = [call.json["prompt"] for call in double.calls("/api/generate")]
    assert arrived[1:] == prompts


def test_nobody_waits_longer_than_the_queue_timeout(api, double):
    """503 overloaded with Retry-After; callers with a slot continue."""
    with Holders(api) as holders:
        holders.add(2)
        double.wait(running=2)
        reply = api.ask(new_prompt())
        assert (reply.status, reply.slug) == (503, "overloaded") and int(reply.headers["Retry-After"]) >= 1
        assert 1.5 <= reply.seconds < 1.5 + GONE and double.running == 2


def test_hits_and_joiners_take_no_slot_and_no_place(api, double):
    """With every slot and the whole queue taken, what is known is answered, and one more may join."""
    known = new_prompt()
    api.ask(known)
    with Holders(api) as holders:
        leader = new_prompt("[[ttft=1]]")
        with api.open_ask(leader) as first:
            double.wait(running=1)
            holders.add(1)
            holders.add(4)
            waiting(api, 4)
            assert api.ask(known).cache == "llama-api; hit"
            assert api.ask(known, stream=True).cache == "llama-api; hit"
            assert api.ask(leader).cache == "llama-api; fwd=miss; collapsed"
            assert first.head.status == 200


def test_a_hundred_that_wait_hold_up_nobody(wide, double):
    """Health, metrics and hits are quick meanwhile; none of the hundred is lost when they leave."""
    known = new_prompt()
    wide.ask(known)
    with Holders(wide) as holders:
        holders.add(101)
        waiting(wide, 100)
        for _ in range(5):
            for path in ("/livez", "/readyz", "/health", "/metrics"):
                reply = wide.get(path)
                assert reply.status == 200 and reply.seconds < QUICK, path
            assert wide.ask(known).seconds < QUICK
        assert wide.metrics()["generations_waiting",] == 100
    until(lambda: wide.total("generations_waiting") == 0 == wide.total("generations_running"))


# Rude clients

def test_half_heads_and_slow_bodies_hurt_nobody(wide):
    """A hundred connections that never finish what they began do not slow the others down."""
    heads = [wide.send_raw(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-") for _ in range(50)]
    bodies = [wide.send_raw(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                            b"Content-Length: 100\r\n\r\n{") for _ in range(50)]
    try:
        for _ in range(5):
            assert wide.get("/livez").seconds < QUICK
            prompt = new_prompt()
            reply = wide.ask(prompt)
            assert reply.text == answer_for(prompt) and reply.seconds < QUICK
    finally:
        for client in heads + bodies:
            client.close()


def test_a_reader_that_never_reads_does_not_hold_the_slot(wide, double):
    """The generation continues at its own pace and ends; the next one gets the slot."""
    prompt = new_prompt("[[tokens=8000]]")
    body = f'{{"prompt": "{prompt}", "stream": true, "max_tokens": 8192}}'.encode()
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect(("127.0.0.1", wide.port))
    with client:
        client.sendall(b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                       b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: double.generations[prompt] == 1)
        double.wait(running=0)
        other = new_prompt()
        assert wide.ask(other).text == answer_for(other)


def generate(prompt, stream=False):
    """The bytes of a request to /generate."""
    body = json.dumps({"prompt": prompt, "stream": stream}).encode()
    return (b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body))


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stray", [b"\n", b"x", b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_leaver_is_seen_behind_what_it_sent_last(wide, double, stray, stream):
    """Bytes after the request, a line break or the next request, do not hide that the client has left."""
    with wide.send_raw(generate(new_prompt("[[ttft=30]]"), stream)) as client:
        double.wait(running=1)
        client.sendall(stray)
    double.wait(GONE, running=0, closed_early=1)


def test_who_sends_the_next_request_early_has_not_left(wide, double):
    """Both are answered, one after the other."""
    prompts = [new_prompt("[[ttft=0.5]]") for _ in range(2)]
    with wide.send_raw(b"".join(map(generate, prompts))) as client:
        answers = b""
        while answers.count(b'"finish_reason"') < 2:
            answers += (piece := client.recv(65536))
            assert piece, answers
    assert 0 < answers.find(answer_for(prompts[0]).encode()) < answers.find(answer_for(prompts[1]).encode())


def test_who_closes_one_direction_has_left(wide, double):
    """A client that has stopped sending cannot be distinguished from one that has left."""
    with wide.send_raw(generate(new_prompt("[[ttft=30]]"))) as client:
        double.wait(running=1)
        client.shutdown(socket.SHUT_WR)
        double.wait(GONE, running=0, closed_early=1)


@pytest.mark.parametrize("data", [
    b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET / HTTP/9.9\r\n\r\n",
    b"GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nxy\r\n",
    b"GET /livez HTTP/1.1\r\nHost: x\r\n" + b"X-Long: " + b"x" * 100_000 + b"\r\n\r\n",
    b"GET /" + b"x" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n"], ids=lambda data: repr(data[:30]))
def test_what_is_not_http_is_refused_and_nothing_else_happens(wide, data):
    """A 4xx or the end of the connection, never a 5xx, never a stack trace."""
    with wide.send_raw(data) as client:
        with contextlib.suppress(OSError):  # it may be refused already
            client.shutdown(socket.SHUT_WR)
        answer = b""
        try:
            while chunk := client.recv(65536):
                answer += chunk
        except ConnectionResetError:
            pass
    assert not answer or answer.startswith(b"HTTP/1.1 4"), answer
    assert b"Traceback" not in answer and wide.get("/livez").status == 200


# A hanging Ollama

def test_an_ollama_that_hangs_is_given_up_and_found_again(serve, double):
    """After a few timeouts callers fail at once instead of waiting; health is degraded; it recovers by itself."""
    api = serve(double, timeout=0.4, parallel=4)
    double.fail("hang")
    assert {api.ask(new_prompt()).slug for _ in range(3)} == {"ollama-timeout"}
    health = api.get("/health")
    assert (health.status, health.json["status"]) == (200, "degraded") and "timed out" in health.json["reason"]
    calls = len(double.calls("/api/generate"))
    replies = together(10, lambda n: api.ask(new_prompt()))
    slugs = [reply.slug for reply in replies]
    assert set(slugs) <= {"ollama-timeout", "ollama-unavailable"} and slugs.count("ollama-unavailable") >= 5
    assert len(double.calls("/api/generate")) - calls <= 5
    assert all(int(reply.headers["Retry-After"]) >= 1 for reply in replies if reply.status == 503)
    double.fail()
    until(lambda: api.ask(new_prompt()).status == 200)
    assert {reply.status for reply in together(4, lambda n: api.ask(new_prompt()))} == {200}
    assert api.health()["status"] == "healthy"


# Stopping, reloading, dying

def test_a_stop_finishes_what_is_under_way(serve, double):
    """SIGTERM: streams and waiting requests get their answers, no new connection is taken, the status is 0."""
    api = serve(double, parallel=1)
    prompts = [new_prompt("[[ttft=0.5]]") for _ in range(2)]
    first, second = api.open_ask(prompts[0], stream=True), None
    double.wait(running=1)
    second = api.open_ask(prompts[1])
    waiting(api, 1)
    process = api.process
    api.signal(signal.SIGTERM)
    until(lambda: not accepts(api))
    assert process.poll() is None
    with first, second:
        assert answer_for(prompts[0]).endswith(last_text(first))
        assert second.head.status == 200 and answer_for(prompts[1]).encode() in second.read()
    api.wait()


def last_text(stream):
    """The last text of a stream that must end well."""
    text = None
    while event := stream.event():
        assert event[0] == "message", event
        text, done = event[1]["response"] or text, event[1]["done"]
    assert done
    return text


def accepts(api):
    try:
        api.send_raw(b"", timeout=1).close()
    except OSError:
        return False
    return True


def test_a_reload_drops_no_request_and_takes_the_new_keys(serve, double, tmp_path):
    """HUP under load: every request is answered, and the keys file as it is now decides who may call."""
    keys = tmp_path / "keys"
    keys.write_text("old\nkept\n")
    api = serve(double, api_keys_file=keys, parallel=4)
    ended, statuses = threading.Event(), []

    def call():
        while not ended.is_set():
            statuses.append(api.ask(new_prompt("[[ttft=0.05]]"), {"X-API-Key": "kept"}).status)
    callers = [threading.Thread(target=call) for _ in range(4)]
    before = api.workers
    with api.open_ask(new_prompt("[[ttft=0.7]]"), {"X-API-Key": "old"}) as under_way:
        for caller in callers:
            caller.start()
        until(lambda: len(statuses) > 20)
        keys.write_text("kept\nnew\n")
        api.signal(signal.SIGHUP)
        until(lambda: not set(before) & set(api.workers))
        ended.set()
        for caller in callers:
            caller.join()
        assert under_way.head.status == 200
    assert set(statuses) == {200}
    assert [api.ask(new_prompt(), {"X-API-Key": key}).status for key in ("old", "kept", "new")] == [401, 200, 200]


def test_a_worker_that_dies_is_replaced_and_frees_its_slots(two_workers, double):
    """kill -9 of both, one after the other, while they generate: the slots come back, and so do the workers."""
    before = two_workers.workers
    clients = [two_workers.open_ask(new_prompt("[[ttft=30]]")) for _ in range(8)]
    double.wait(running=2)
    for worker in before:
        os.kill(worker, signal.SIGKILL)
    for client in clients:
        client.close()
    double.wait(running=0)
    until(lambda: len(set(two_workers.workers) - set(before)) == 2)
    replies = until(lambda: statuses_of(two_workers))
    assert replies == {200}


def statuses_of(api):
    """The statuses of a few requests, nothing while no worker answers."""
    try:
        return {reply.status for reply in together(6, lambda n: api.ask(new_prompt("[[ttft=0.05]]")))}
    except (OSError, http.client.HTTPException):
        return None


def test_a_storm_leaves_nothing_behind(wide, double):
    """After answers, failures, hangs and leavers: no slot, no thread of it, no connection, no open file."""
    worker = psutil.Process(wide.workers[0])
    wide.ask(new_prompt())
    until(lambda: wide.health()["queue"] == {"running": 0, "waiting": 0, "slots": 1, "limit": 200})
    until(lambda: len(worker.net_connections()) < 10)
    files = worker.num_fds()

    def call(n):
        markers = ("", "[[fault=oom]]", "[[fault=eof]]", "[[fault=reset_midway]]")[n % 4]
        if n % 5:
            return wide.ask(new_prompt(markers), stream=n % 2 == 1).status
        with wide.open_ask(new_prompt("[[ttft=30]]"), stream=n % 2 == 1):
            time.sleep(0.2)
    assert set(together(60, call)) <= {200, 502, None}
    until(lambda: wide.health()["queue"]["running"] == wide.health()["queue"]["waiting"] == 0 == double.running)
    until(lambda: worker.num_fds() <= files + 3)


def test_a_body_that_does_not_come_is_408(slow_bodies):
    """The time for a body is bounded, though a byte comes now and then; the connection ends."""
    for client in slow_bodies:
        response = http.client.HTTPResponse(client)
        response.begin()
        body = response.read()
        response.close()
        assert response.status == 408 and b"/problems/request-timeout" in body
        assert response.headers["Content-Type"] == "application/problem+json" and response.headers["X-Request-ID"]
        assert ended(client)


def ended(client):
    """Whether the other side has closed the connection."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
