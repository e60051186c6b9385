"""What must be as it was once the storm is over: nothing under way, no connection, no file, no memory kept."""

import time

from tests.chaos.clients import SLACK, TIMEOUT
from tests.support.double import answer_for
from tests.support.gunicorn_server import together, until

CALM = 15.0  # seconds within which all must have ended: longer than the takeover of a claim and its generation
FILES_MORE = 10  # slots, and the seats of processes that have come since, are opened when they are first needed
GREENLETS_MORE = 6
THREADS_MORE = 12  # gevent's pool of native threads grows to its size and stays
GROWTH_MB = 48


def insides(service):
    """What each worker of ``service`` tells of itself, by process id."""
    found, end = {}, time.monotonic() + 20
    while set(found) != set(workers := service.workers):
        assert time.monotonic() < end, f"no answer from each of {workers}, only from {list(found)}"
        inside = service.get("/_inside", timeout=5).json
        found = {pid: one for pid, one in found.items() if pid in workers} | {inside["pid"]: inside}
    return found


def idle(scene):
    """The size of each service's largest worker when warm: a few requests of all kinds have been answered."""
    sizes = []
    for service in scene.services:
        together(32, lambda at, service=service: service.ask(f"Warm up {at} of {service.port}", stream=at % 2 == 0))
        until(lambda service=service: not busy(service), CALM, "rest after the warm-up")
        found = [one["size"] | {"files": own_files(one, scene)} for one in insides(service).values()]
        sizes.append({name: max(one[name] for one in found) for name in found[0]})
    return sizes


def own_files(inside, scene):
    """Open files without the pooled connections to Ollama and Redis, which come and go."""
    ports = {scene.redis.port, *(double.port for double in scene.doubles)}
    return inside["size"]["files"] - sum(remote in ports for _, remote in inside["peers"])


def busy(service):
    """What the workers of ``service`` still have under way: names and numbers, {} when there is nothing."""
    left = {}
    metrics = service.metrics()
    for name in ("generations_running", "generations_waiting"):
        if count := sum(value for key, value in metrics.items() if key[0] == name):
            left[name] = count
    for pid, inside in insides(service).items():
        clients = sum(local == service.port for local, _ in inside["peers"]) - 1  # that of this very question
        left |= {f"{name} of {pid}": value for name, value in (inside["left"] | {"clients": clients}).items() if value}
    return left


def check(scene, before):
    """Wait for calm, then blame the ledger for all that is left; returns rows for the table."""
    rows, blame = [], scene.ledger.blame
    for number, service in enumerate(scene.services):
        end = time.monotonic() + CALM
        while (left := busy(service)) and time.monotonic() < end:
            time.sleep(0.1)
        if left:
            blame(f"left over in service {number}: {left}")
        rows.append([f"service {number}: seconds until nothing was under way", CALM - (end - time.monotonic())])
        for pid, inside in insides(service).items():
            now, was = inside["size"] | {"files": own_files(inside, scene)}, before[number]
            growth = (now["rss"] - was["rss"]) / 1e6
            rows.append([f"service {number}, worker {pid}: files, threads, greenlets, MB (at the start)",
                         f"{now['files']} ({was['files']}), {now['threads']} ({was['threads']}), {now['greenlets']} "
                         f"({was['greenlets']}), {now['rss'] / 1e6:.1f} ({was['rss'] / 1e6:.1f})"])
            for name, more in (("files", FILES_MORE), ("threads", THREADS_MORE), ("greenlets", GREENLETS_MORE)):
                if now[name] > was[name] + more:
                    blame(f"service {number}: {name} grew from {was[name]} to {now[name]}")
            if growth > GROWTH_MB:
                blame(f"service {number}: the memory of a worker grew by {growth:.1f} MB")
    for double in scene.doubles:
        try:
            double.wait(10, running=0, waiting=0)
        except TimeoutError as error:
            blame(f"Ollama still works: {error}")
    return rows


def recovered(scene):
    """Blame the ledger unless each service serves, shares a call and keeps its deadline; returns rows for the table."""
    rows = []
    for number, service in enumerate(scene.services):
        prompt = f"Chaos is over, service {number}?"
        reply = service.ask(prompt)
        if reply.status != 200 or reply.text != answer_for(prompt, n=100):
            scene.ledger.blame(f"after the storm service {number} answers {reply.status}: {reply.body[:300]!r}")
        prompt = f"Chaos is over for a crowd, service {number}? [[ttft=0.3]]"
        texts = {reply.text if reply.status == 200 else reply.status
                 for reply in together(40, lambda _, service=service, prompt=prompt: service.ask(prompt))}
        calls = sum(double.generations[prompt] for double in scene.doubles)
        if texts != {answer_for(prompt, n=100)} or calls > len(service.workers):
            scene.ledger.blame(f"after the storm 40 identical requests were {calls} calls and gave {len(texts)} texts")
        rows.append([f"service {number}: calls for 40 identical requests after the storm", calls])
        try:
            late = service.ask(f"Chaos for ever, service {number}? [[fault=endless_tokens]]", timeout=TIMEOUT + SLACK)
            if late.status != 504:
                scene.ledger.blame(f"an endless answer was {late.status}")
            rows.append([f"service {number}: seconds until an endless answer was 504", late.seconds])
        except TimeoutError:
            scene.ledger.blame(f"service {number} does not end an endless answer at the deadline")
    return rows
