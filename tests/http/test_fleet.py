"""Several Ollamas from outside: slots, failover, builds, loads and the words of a wait."""

import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.double import answer_for
from tests.support.double_process import double_processes
from tests.support.gunicorn_server import JSON, new_prompt, together, until

KNOWN = 4.0  # seconds after which a change at an Ollama must be known
NO_STORE = {"Cache-Control": "no-store"}


@pytest.fixture(scope="module")
def processes():
    with double_processes(3) as doubles:
        yield doubles


@pytest.fixture
def doubles(processes):
    """Three doubles as if they had just been started, with two slots each."""
    for double in processes:
        double.revive()
        double.start()
        double.reset()
        double.set(slots=8)
        double.set_model("llama3:8b", loaded=True)
    return processes


@pytest.fixture(scope="module")
def server(processes, shared_serve):
    urls = ",".join(f"{double.url}*2" for double in processes)
    return shared_serve(ollama_url=urls, queue=200, timeout=20, heartbeat=0.3)


@pytest.fixture
def api(server, doubles):
    """The service, once it has found all three usable."""
    until(lambda: usable(server) == {double.host for double in doubles})
    return server


def hosts(api):
    """The hosts of /health by their names."""
    return {host["host"]: host for host in api.health()["hosts"]}


def usable(api):
    return {name for name, host in hosts(api).items() if host["usable"]}


def generations(doubles):
    """The number of generations of each double."""
    return [sum(double.generations.values()) for double in doubles]


# Slots


def test_a_free_slot_takes_the_next_one(api, doubles):
    """Six slots, twenty callers: each answer is right, no Ollama has more than its two, and all have had some."""
    for double in doubles:
        double.set(ttft=0.3)
    prompts = [new_prompt() for _ in range(20)]
    replies = together(20, lambda n: api.ask(prompts[n], stream=n % 2 == 0))
    assert [reply.text for reply in replies] == [answer_for(prompt) for prompt in prompts]
    assert [double.peak for double in doubles] == [2, 2, 2] and min(generations(doubles)) >= 3
    named = Counter(api.record_of(reply)["host"] for reply in replies)
    assert named == {double.host: count for double, count in zip(doubles, generations(doubles))}
    metrics = api.metrics()
    assert all(metrics["slots", double.host] == 2 and metrics["ollama_up", double.host] == 1 for double in doubles)
    assert api.health()["queue"] == {"running": 0, "waiting": 0, "slots": 6, "limit": 200}


@pytest.mark.parametrize("different", [False, True], ids=["equal numbers", "different numbers"])
def test_instances_and_workers_count_together(doubles, serve, tmp_path, different):
    """Two instances of two workers each: no double has more than its slots, and the oldest is not left behind."""
    for double in doubles[:2]:
        double.set(ttft=0.1)
    urls = [",".join(f"{url}*{slots}" for url, slots in zip((doubles[0].url, f"{doubles[1].url}/"), numbers))
            for numbers in ((2, 1), (1, 1) if different else (2, 1))]
    both = [serve(ollama_url=url, workers=2, queue=100, cache_url=f"sqlite:///{tmp_path}/{n}.db")
            for n, url in enumerate(urls)]
    replies = together(60, lambda n: both[n % 2].ask(new_prompt()))
    assert {reply.status for reply in replies} == {200}
    assert [double.peak for double in doubles[:2]] == [2, 1] and min(generations(doubles[:2])) >= 10
    for api in both:
        api.stop()


def test_a_killed_worker_frees_its_slots_at_once(doubles, serve):
    """The other instance continues with them."""
    one, other = (serve(ollama_url=doubles[0].url, timeout=30) for _ in range(2))
    with one.open_ask(new_prompt("[[ttft=30]]")):
        doubles[0].wait(running=1)
        one.kill()
        doubles[0].wait(running=0)
    assert other.ask(new_prompt()).status == 200
    other.stop()


@pytest.mark.parametrize("workers", [1, 2])
def test_with_redis_machines_count_together(doubles, serve, redis_server, tmp_path, workers):
    """Two machines: never more than the slots, both get their turns, and a dead one's slots are free within 5 s."""
    for double in doubles[:2]:
        double.set(ttft=0.1)
    urls = f"{doubles[0].url}*2,{doubles[1].url}"
    both = [serve(ollama_url=urls, workers=workers, queue=100, cache_url=redis_server.url, timeout=60, start=False)
            for _ in range(2)]
    for number, api in enumerate(both):
        api.machine = tmp_path / str(number)
        api.machine.mkdir()
        api.start()
    replies = together(60, lambda n: both[n % 2].ask(new_prompt()))
    assert {reply.status for reply in replies} == {200}
    assert [double.peak for double in doubles[:2]] == [2, 1] and min(generations(doubles[:2])) >= 10
    slowest = [max(reply.seconds for reply in replies[n::2]) for n in range(2)]
    assert max(slowest) < 3 * min(slowest)
    held = [both[0].open_ask(new_prompt("[[ttft=60]]")) for _ in range(3)]
    until(lambda: [double.running for double in doubles[:2]] == [2, 1])
    both[0].kill()
    reply = both[1].ask(new_prompt())
    assert reply.status == 200 and reply.seconds < 5
    for exchange in held:
        exchange.close()
    redis_server.kill()
    assert both[1].ask(new_prompt()).status == 200
    both[1].stop()


# Failover


@pytest.mark.parametrize("fault", ["busy", "reset", "close", "eof_at_once"])
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
def test_what_fails_before_a_piece_is_tried_elsewhere(api, doubles, fault, stream):
    """On a 503, a reset or an end before the first piece, the caller gets the whole answer of another one."""
    for double in doubles[:2]:
        double.fail(fault)
    before = api.total("failovers_total")
    replies = [api.ask(prompt, stream=stream) for prompt in (new_prompt() for _ in range(4))]
    assert {reply.status for reply in replies} == {200} and all(reply.text for reply in replies)
    assert {api.record_of(reply)["host"] for reply in replies} == {doubles[2].host}
    assert api.total("failovers_total") > before
    assert max(sum(double.generations[prompt] for double in doubles) for prompt in doubles[2].generations) <= 3


@pytest.mark.parametrize("fault", ["eof", "reset_midway", "close_midway", "error_line"])
def test_what_has_begun_is_never_begun_again(api, doubles, fault):
    """A break after the first piece is an error; no other Ollama sees the prompt."""
    for double in doubles:
        double.fail(fault)
    prompt = new_prompt()
    reply = api.ask(prompt, stream=True)
    assert reply.events[-1][0] == "error" and reply.events[-1][1]["type"] == "/problems/ollama-error"
    assert sum(double.generations[prompt] for double in doubles) == 1


@pytest.mark.parametrize("fault, status", [("oom", 502), ("not_found", 503), ("error_line", 502), ("html_502", 502)])
def test_an_answer_is_an_answer(api, doubles, fault, status):
    """Any other status and an error record are passed on, and not tried elsewhere."""
    for double in doubles:
        double.fail(fault)
    prompt = new_prompt()
    assert api.ask(prompt).status == status
    assert sum(double.generations[prompt] for double in doubles) == 1


def test_an_ollama_killed_under_load_fails_nobody_who_had_no_piece(api, doubles):
    """Sixty callers, one Ollama of three dies: only those whose answer had begun may fail; it comes back by itself."""
    for double in doubles:
        double.set(ttft=0.3, gap=0.02, tokens=20)

    def caller(number):
        if number == 0:
            until(lambda: doubles[0].running == 2)
            doubles[0].kill()
            return None
        with api.open_ask(new_prompt(), stream=True) as exchange:
            pieces, status = 0, exchange.head.status
            while (event := exchange.event()) is not None and status == 200:
                if event[0] == "error":
                    return "begun" if pieces else "FAILED"
                pieces += event[1]["done"] is False
            return "answered" if status == 200 else f"FAILED {status}"

    outcomes = Counter(together(61, caller))
    assert outcomes["answered"] + outcomes["begun"] == 60 and outcomes["begun"] <= 2, outcomes
    assert api.metrics()["ollama_up", doubles[0].host] == 0
    until(lambda: usable(api) == {double.host for double in doubles[1:]}, KNOWN)
    health = api.get("/health")
    assert health.status == 200 and health.json["status"] == "degraded" and doubles[0].host in health.json["reason"]
    assert api.get("/readyz").status == 200
    doubles[0].revive()
    until(lambda: len(usable(api)) == 3, KNOWN)
    assert api.health()["status"] == "healthy"


def test_a_frozen_ollama_is_left_out(api, doubles):
    """One that neither answers nor refuses: who waits for it goes elsewhere within seconds, and so do all who come."""
    for double in doubles:
        double.set(ttft=1.0)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(api.ask, new_prompt()) for _ in range(6)]
        until(lambda: all(double.running == 2 for double in doubles))
        with doubles[1].frozen():
            assert {one.result().status for one in waiting} == {200} and max(
                one.result().seconds for one in waiting) < 10
            _goes_on_without(api, doubles)
    until(lambda: len(usable(api)) == 3, KNOWN)


def _goes_on_without(api, doubles):
    """The second one is known to be gone, and nothing goes there."""
    until(lambda: doubles[1].host not in usable(api), KNOWN)
    prompts = [new_prompt() for _ in range(8)]
    replies = together(8, lambda n: api.ask(prompts[n]))
    assert {reply.status for reply in replies} == {200}
    assert doubles[1].host not in {api.record_of(reply)["host"] for reply in replies}
    assert not hosts(api)[doubles[1].host]["reachable"] and "does not answer" in api.health()["reason"]


def test_when_all_are_gone_the_service_says_so_and_serves_what_it_has(api, doubles):
    """503 with the cure for what is new, at once; a stored answer as ever; and well again when one is back."""
    known = new_prompt()
    api.ask(known)
    for double in doubles:
        double.kill()
    until(lambda: api.get("/health").status == 503, KNOWN)
    assert all(double.host in api.get("/health").json["reason"] for double in doubles)
    assert api.get("/readyz").status == 503 and api.ask(known).cache == "llama-api; hit"
    reply = until(lambda: reply if (reply := api.ask(new_prompt())).seconds < 1 else None)
    assert (reply.status, reply.slug) == (503, "ollama-unavailable") and "ollama serve" in reply.json["detail"]
    assert reply.headers["Retry-After"]
    doubles[2].revive()
    until(lambda: api.ask(new_prompt()).status == 200, KNOWN)


# Builds and models


def test_builds_never_mix(api, doubles):
    """The build of most answers; the other one is named with the reason; a change of most makes answers stale."""
    prompt = new_prompt()
    assert api.ask(prompt).json["cached"] is False
    doubles[0].set_digest("llama3:8b", "0" * 64)
    until(lambda: usable(api) == {double.host for double in doubles[1:]}, KNOWN)
    assert "another build" in hosts(api)[doubles[0].host]["reason"] and api.health()["status"] == "degraded"
    assert hosts(api)[doubles[0].host]["digest"] == "0" * 12
    assert api.ask(prompt).json["cached"] is True
    doubles[1].set_digest("llama3:8b", "0" * 64)
    until(lambda: usable(api) == {double.host for double in doubles[:2]}, KNOWN)
    assert api.ask(prompt).json["cached"] is False and api.ask(prompt).json["cached"] is True
    before = generations(doubles)[2]
    together(6, lambda n: api.ask(new_prompt()))
    assert generations(doubles)[2] == before


def test_an_answer_of_a_build_that_was_not_seen_yet_is_not_kept_as_the_others(api, doubles):
    """An answer of a new build that no probe has reported yet is dropped when one does."""
    odd = doubles[2]
    digest = odd.set_model("llama3:8b")

    def said_by_another():
        odd.set_model("llama3:8b", digest=digest, voice="")
        until(lambda: odd.host in usable(api))
        prompts = [new_prompt("[[ttft=0.1]]") for _ in range(6)]
        odd.set_model("llama3:8b", digest="1" * 64, voice="another")
        replies = together(6, lambda n: api.ask(prompts[n]))
        return [prompt for prompt, reply in zip(prompts, replies) if reply.text == answer_for(prompt, voice="another")]

    prompts = until(said_by_another)
    until(lambda: odd.host not in usable(api))
    assert [api.ask(prompt).text for prompt in prompts] == [answer_for(prompt) for prompt in prompts]


def test_one_without_the_model_is_left_out(api, doubles):
    """/health names it with the command to run; if no Ollama has the model, callers get model-not-found."""
    doubles[0].remove_model("llama3:8b")
    until(lambda: doubles[0].host not in usable(api), KNOWN)
    assert "ollama pull llama3:8b" in hosts(api)[doubles[0].host]["reason"]
    together(6, lambda n: api.ask(new_prompt()))
    assert generations(doubles)[0] == 0
    for double in doubles[1:]:
        double.remove_model("llama3:8b")
    until(lambda: api.get("/health").status == 503, KNOWN)
    until(lambda: api.ask(new_prompt()).slug == "model-not-found", KNOWN)


def test_half_on_the_processor_is_told_with_the_cure(api, doubles):
    """Loaded, how much of it on the GPU, and its window, as /api/ps has them."""
    doubles[0].set_model("llama3:8b", gpu_percent=40, loaded=True)
    host = until(lambda: hosts(api)[doubles[0].host] if hosts(api)[doubles[0].host]["gpu_percent"] == 40 else None)
    assert (host["loaded"], host["context_length"], host["usable"]) == (True, 8192, True)
    assert api.health()["status"] == "degraded" and "GPU" in api.health()["reason"]


# Loads


def test_who_leaves_does_not_end_a_load(serve, doubles):
    """The first caller gives up while its model is being loaded; the next one need not begin the load again."""
    double = doubles[0]
    double.set(load=1.5)
    double.set_model("llama3:8b", loaded=False)
    api = serve(ollama_url=double.url, timeout=30)
    until(lambda: hosts(api)[double.host]["loaded"] is False)
    with api.open_ask(new_prompt()):
        until(lambda: double.loading == 1)
    reply = api.ask(new_prompt())
    assert reply.status == 200 and (double.loads, double.aborted_loads) == (1, 0)
    with api.open_ask(new_prompt("[[ttft=30]]")):
        double.wait(running=1)
    double.wait(running=0, timeout=2)
    api.stop()


def test_the_model_is_loaded_before_the_service_is_ready(serve, doubles):
    """PRELOAD: at the start on each host, again after a restart of Ollama, and again after a failure."""
    for double in doubles[:2]:
        double.set(load=0.5)
        double.set_model("llama3:8b", loaded=False)
    doubles[0].fail("oom", times=1)
    api = serve(ollama_url=",".join(double.url for double in doubles[:2]), preload=True)
    until(lambda: api.get("/readyz").status == 200)
    until(lambda: [double.loads for double in doubles[:2]] == [1, 1])
    assert not any(generations(doubles))
    until(lambda: all(host["gpu_percent"] for host in api.health()["hosts"]))
    for double in doubles[:2]:
        double.set(load=3)
        double.restart()
    reply = until(lambda: reply if (reply := api.get("/readyz")).status == 503 else None)
    assert "llama3:8b" in reply.json["reason"]
    until(lambda: [double.loads for double in doubles[:2]] == [2, 2])
    until(lambda: api.get("/readyz").status == 200)
    api.stop()


# Reports of the wait


def comments(exchange):
    """The lines of a stream, comments and the data of events, up to the first piece."""
    lines = []
    while (line := exchange.head.readline()) and not line.startswith(b"data: {\"response\""):
        if line.strip():
            lines.append(line.decode().strip())
    return lines


def test_a_wait_is_told_with_the_place_in_the_queue(serve, doubles):
    """The first word begins the response; the place only falls; then the answer comes as ever."""
    double = doubles[0]
    double.set(ttft=0.5)
    api = serve(ollama_url=double.url, heartbeat=0.2, timeout=20)
    assert api.ask(new_prompt()).status == 200
    exchanges = []
    for number in range(4):
        exchanges.append(api.open_ask(new_prompt(), stream=True))
        until(lambda number=number: api.health()["queue"]["waiting"] == number)
    lines = comments(exchanges[3])
    assert exchanges[3].head.status == 200 and len(lines) >= 4 and all(line.startswith(": waiting") for line in lines)
    places = [int(line.split(", ")[1].split()[0]) for line in lines if "before you" in line]
    assert 2 >= places[0] > places[-1] == 0 and places == sorted(places, reverse=True)
    assert any("about" in line and line.endswith(" s") for line in lines)
    for exchange in exchanges:
        exchange.read()
        exchange.close()
    api.stop()


@pytest.mark.parametrize("path", ["/generate", "/v1/completions"])
def test_thinking_that_is_not_told_is_silence(serve, doubles, path):
    """A model that thinks for long writes nothing that these two send, so they say that they live."""
    doubles[0].set_model("llama3:8b", capabilities=["completion", "thinking"])
    api = serve(ollama_url=doubles[0].url, heartbeat=0.2, timeout=20)
    body = json.dumps({"prompt": new_prompt("[[thinking=30]] [[gap=0.05]] [[tokens=2]]"), "stream": True, **(
        {"model": "llama3:8b"} if path != "/generate" else {})})
    reply = api.request("POST", path, body, JSON)
    waiting, _, told = reply.body.partition(b"data: ")
    assert reply.status == 200 and waiting.count(b": waiting\n") >= 2 and told
    api.stop()


def test_a_failure_after_a_word_is_an_event(serve, doubles):
    """Within the first silence a failure has its real status, later it is an ``event: error``."""
    double = doubles[0]
    api = serve(ollama_url=double.url, heartbeat=0.3, timeout=1.0)
    late = api.ask(new_prompt("[[ttft=30]]"), stream=True, headers=NO_STORE)
    assert late.status == 200 and late.body.startswith(b": waiting") and b"event: error" in late.body
    assert json.loads(late.body.split(b"data: ")[1])["type"] == "/problems/ollama-timeout"
    double.fail("oom")
    assert api.ask(new_prompt(), stream=True).status == 502
    api.stop()


def test_no_word_without_a_heartbeat(serve, doubles):
    """HEARTBEAT=0 keeps the stream silent until the first piece."""
    api = serve(ollama_url=doubles[0].url, heartbeat=0, timeout=20)
    assert api.ask(new_prompt("[[ttft=0.6]]"), stream=True).body.startswith(b"data: ")
    api.stop()


def test_one_ollama_gets_no_more_calls_than_before(serve, double):
    """One call a generation; the rest are probes, about three a second."""
    started = time.monotonic()
    api = serve(ollama_url=double.url)
    for _ in range(10):
        api.ask(new_prompt())
    assert len(double.calls("/api/generate")) == 10
    rounds = time.monotonic() - started + 2
    assert all(len(double.calls(path)) <= rounds for path in ("/api/tags", "/api/ps", "/api/version"))
    api.stop()


# Where a beginning is known


def test_a_prompt_goes_where_its_beginning_was_read(api, doubles):
    """According to /metrics, to the log, and to the tokens that Ollama reports as cached."""
    for double in doubles:
        double.set(prefix_memory=8)
    before, beginning = api.metrics(), new_prompt() + " The same long beginning." * 60
    replies = [api.ask(f"{beginning} {number}") for number in range(5)]
    assert len({api.record_of(reply)["host"] for reply in replies}) == 1
    cached = [reply.json["metrics"].get("cached_input_tokens") or 0 for reply in replies]
    assert cached[0] == 0 and min(cached[1:]) > 100
    assert [api.record_of(reply).get("cached_input_tokens", 0) for reply in replies] == cached
    grown = {result: api.metrics()["prefix_matches_total", result] - before["prefix_matches_total", result]
             for result in ("hit", "miss", "none")}
    assert grown == {"hit": 4, "miss": 0, "none": 1}
    assert api.metrics()["cached_prompt_tokens_total",] - before["cached_prompt_tokens_total",] == sum(cached)
