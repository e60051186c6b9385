"""Flow: the cost of rude clients, a hanging model and restarts to other callers; deadlines, retries, losses."""

import json
import signal
import socket
import threading
import time
from contextlib import ExitStack, contextmanager

from tests.support.gunicorn_server import Server, until
from tests.support.nginx_server import PROGRAM, Load, Nginx

from .contenders import Stage
from .load import Client, fleet, percentile, waiting
from .report import Section

WAITING, HALF_HEADS, SLOW_BODIES = 300, 300, 100
MODEL_SECONDS, PROBES = 5.0, 300
PATHS = ("/livez", "/readyz", "/health", "/metrics", "a hit")
TARGET = 50.0  # ms, p99
DEAF, PIECES = 16, 60_000  # readers that never read, and the pieces of what they do not read: about 3 MB
DEADLINE, LATE = 2.0, 20
UNDER_WAY, RESTARTS = 50, 6
HEAD = "POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


def run():
    """Measure them one after the other."""
    section = Section("flow")
    _fast_paths(section)
    _deaf_readers(section)
    _deadlines(section)
    _retries(section)
    _restarts(section)
    return section


def _fast_paths(section):
    rows = []
    with Stage() as stage:
        stage.upstream(ttft=MODEL_SECONDS)
        service = stage.service(queue=2 * WAITING, queue_timeout=3600, timeout=3600)
        hit = "The same? [[ttft=0.001]]"
        with Client(service.port) as client:
            client.ask("/generate", service.body(hit))
        crowds = {"nobody": ExitStack,
                  f"{WAITING} wait for a model of {MODEL_SECONDS:g} s": lambda: waiting(service, WAITING),
                  f"{HALF_HEADS} half heads, {SLOW_BODIES} bodies of a byte a second": lambda: _rude(service)}
        for crowd, make in crowds.items():
            with make():
                times = _probed(service, hit)
            for path, found in times.items():
                rows.append([crowd, path, len(found), percentile(found, 50), percentile(found, 99), max(found)])
            worst = max(percentile(found, 99) for found in times.values())
            section.at_most(f"p99 of {', '.join(PATHS)} while {crowd}", worst, TARGET, " ms")
    section.table("Fast paths, each probe on a new connection",
                  ["crowd", "probe", "probes", "p50 ms", "p99 ms", "worst"], rows)


def _probed(service, hit):
    times = {path: [] for path in PATHS}
    for _ in range(PROBES):
        for path, found in times.items():
            asked = ("/generate", service.body(hit)) if path == "a hit" else (path, None, "GET")
            started = time.perf_counter()
            with Client(service.port) as client:
                _, status, _ = client.ask(*asked)
            found.append(1000 * (time.perf_counter() - started))
            if status != 200:
                raise RuntimeError(f"{path} answered {status}")
    return times


@contextmanager
def _rude(service):
    """Half heads, opened again when the service closes them, and bodies that make no progress."""
    over = threading.Event()

    def rude(number):
        while not over.is_set():
            with socket.create_connection(("127.0.0.1", service.port)) as client:
                head = HEAD[:-20] if number < HALF_HEADS else f"{HEAD}Content-Length: 1000\r\n\r\n"
                client.sendall(head.encode())
                client.settimeout(1.0)
                while not over.is_set():
                    try:
                        if number >= HALF_HEADS:
                            client.sendall(b" ")
                        if not client.recv(1000):
                            break
                    except TimeoutError:
                        pass
                    except OSError:
                        break

    threads = [threading.Thread(target=rude, args=[number]) for number in range(HALF_HEADS + SLOW_BODIES)]
    for thread in threads:
        thread.start()
    time.sleep(1.0)
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _deaf_readers(section):
    with Stage() as stage:
        stage.upstream()
        service = stage.service(parallel=1, queue=100, max_tokens_limit=PIECES)
        markers = f"[[tokens={PIECES}]] [[fault=glued]]"

        def body(name):
            return json.dumps({"prompt": f"{name}? {markers}", "max_tokens": PIECES, "stream": True}).encode()

        with Client(service.port) as client:
            client.stream("/generate", json.loads(body("One that reads")))
        with ExitStack() as stack:
            for number in range(DEAF):
                client = stack.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                client.connect(("127.0.0.1", service.port))
                sent = body(f"Deaf {number}")
                client.sendall(f"{HEAD}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
            until(lambda: stage.double.finished >= 1 and len(_slot_times(stage)) == DEAF + 1, 120)
        reading, *deaf = _slot_times(stage)
    section.table(f"Seconds that the model's slot is held by a stream of {PIECES:,} pieces",
                  ["readers", "count", "p50", "worst"],
                  [["one that reads", 1, reading, reading], ["never read", DEAF, percentile(deaf, 50), max(deaf)]])
    section.at_most_of("slot held by a reader that never reads; by one that reads", percentile(deaf, 50), reading, 1.5,
                       " s")


def _slot_times(stage):
    return [call.ended - call.granted for call in stage.double.calls("/api/generate") if call.ended]


def _deadlines(section):
    rows = []
    with Stage() as stage:
        stage.upstream(drip=0.1)
        service = stage.service(parallel=LATE, timeout=DEADLINE)
        for fault in ("trickle", "hang", "hang_midway", "endless_tokens", "endless_blanks"):
            prompts = [f"Late {number}? [[fault={fault}]]" for number in range(LATE)]

            def late(number, prompts=prompts):
                with Client(service.port) as client:
                    return client.ask("/generate", service.body(prompts[number]))

            found = fleet(LATE, late)[1]
            over = [1000 * (seconds - DEADLINE) for seconds, _, _ in found]
            rows.append([fault, LATE, "/".join(map(str, sorted({status for _, status, _ in found}))),
                         percentile(over, 50), max(over)])
            stage.double.wait(running=0)
            with Client(service.port) as client:  # an answer closes the breaker
                client.ask("/generate", service.body(f"Well after {fault}?"))
        section.at_most(f"answer past a deadline of {DEADLINE:g} s, worst", max(row[-1] for row in rows), 250.0, " ms")
    section.table(f"Past a deadline of {DEADLINE:g} s",
                  ["Ollama", "requests", "status", "p50 ms late", "worst ms"], rows)


def _retries(section):
    rows = []
    with Stage() as stage:
        stage.upstream()
        service = stage.service()
        for fault in ("busy", "crashed", "no_slots", "reset", "eof", "empty_200"):
            before = len(stage.double.calls("/api/generate"))
            with Client(service.port) as client:
                answers = [client.ask("/generate", service.body(f"Fails {number}? [[fault={fault}]]"))
                           for number in range(10)]
            calls = len(stage.double.calls("/api/generate")) - before
            rows.append([fault, 10, calls, "/".join(map(str, sorted({status for _, status, _ in answers}))),
                         percentile([seconds for seconds, _, _ in answers], 50)])
        section.at_most("calls for one request while Ollama is busy", rows[0][2] / 10, 3.0)
        section.at_most("calls for one request at any other failure", max(row[2] for row in rows[1:]) / 10, 1.0)
    section.table("Retries", ["Ollama", "requests", "calls", "status", "p50 s"], rows)


def _restarts(section):
    rows = []
    with Stage() as stage, ExitStack() as stack:
        stage.upstream(ttft=0.02)
        settings = {"ollama_url": stage.double.url, "parallel": UNDER_WAY, "queue": 200, "trusted_proxies": 1}
        pair = []
        for number in range(2):
            pair.append(Server(stage.home / f"service{number}", settings))
            stack.callback(lambda server=pair[-1]: server.process and server.kill())
            pair[-1].start()
        rows.append(_stopped(pair[0], stage.double))
        pair[0].start()
        with Load(pair[0]) as load:
            for _ in range(RESTARTS // 2):
                old = pair[0].workers
                pair[0].signal(signal.SIGHUP)
                until(lambda old=old: pair[0].workers and not set(old) & set(pair[0].workers))
                load.goes_on()
        rows.append([f"{RESTARTS // 2} reloads (HUP) under load", load.answers, len(load.failures), ""])
        if PROGRAM:
            rows.append(_rolled(pair, stage.home))
    for what, answers, lost, _ in rows:
        section.at_most(f"requests lost, {what}, of {answers:,}", lost, 0)
    section.table("Stops, reloads and rolling restarts", ["what", "requests", "lost", ""], rows)


def _stopped(server, double):
    """SIGTERM while requests are under way."""
    statuses = []

    def ask(number):
        statuses.append(server.ask(f"Under way {number}? [[ttft=2]]").status)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(UNDER_WAY)]
    for thread in threads:
        thread.start()
    double.wait(running=UNDER_WAY)
    started = time.monotonic()
    server.stop()  # fails unless it exits with 0 and leaves no process
    seconds = time.monotonic() - started
    for thread in threads:
        thread.join()
    lost = UNDER_WAY - statuses.count(200)
    return ["SIGTERM, answers due in 2 s", UNDER_WAY, lost, f"exit 0 after {seconds:.1f} s"]


def _rolled(pair, home):
    """Restart one server after the other behind nginx, under load."""
    with Nginx(home / "nginx", pair) as nginx, Load(nginx) as load:
        for number in range(RESTARTS):
            load.goes_on()
            pair[number % 2].stop()
            load.goes_on()
            pair[number % 2].start()
    return [f"{RESTARTS} rolling restarts behind nginx", load.answers, len(load.failures), f"{load.failures[:1] or ''}"]
