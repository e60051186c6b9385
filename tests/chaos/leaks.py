"""The state that must be restored after the chaos: nothing under way, no connection, slot, claim or memory left.

It is observed from outside: in the service's reports, its processes, and the files and keys that it shares.
"""

import fcntl
import os
import time

import psutil

from tests.chaos.scene import SLACK, TIMEOUT
from tests.support.double import answer_for
from tests.support.gunicorn_server import together, until

CALM = 30.0  # seconds within which all must have ended: longer than the takeover of a claim and its generation
FILES_MORE = 10  # slots, and the entries of processes that have come since, are opened when they are first needed
THREADS_MORE = 12  # gevent's pool of native threads grows to its size and stays
GROWTH_MB = 48


def size(service, scene):
    """The open files without connections, native threads and memory of each worker of ``service``, by its id."""
    found = {}
    for pid in service.workers:
        process = psutil.Process(pid)
        with process.oneshot():
            found[pid] = {"files": process.num_fds() - len(process.net_connections()),
                          "threads": process.num_threads(), "rss": process.memory_info().rss}
    return found


def idle(scene):
    """The size of each service's largest worker when warm: a few requests of all kinds have been answered."""
    sizes = []
    for service in scene.services:
        together(32, lambda at, service=service: service.ask(f"Warm up {at} of {service.port}", stream=at % 2 == 0))
        until(lambda service=service: not busy(service), CALM, "rest after the warm-up")
        found = size(service, scene).values()
        sizes.append({name: max(one[name] for one in found) for name in ("files", "threads", "rss")})
    return sizes


def busy(service):
    """The work that ``service`` still has under way: names and numbers, {} if there is none."""
    metrics, queue = service.metrics(), service.health()["queue"]
    left = {name: sum(value for key, value in metrics.items() if key[0] == name)
            for name in ("generations_running", "generations_waiting")}
    left |= {f"{name} in /health": queue[name] for name in ("running", "waiting")}
    left["flights"] = len(service.get("/stats").json["flights"])
    left["clients"] = sum(connection.laddr.port == service.port and connection.status == psutil.CONN_ESTABLISHED
                          for pid in service.workers for connection in psutil.Process(pid).net_connections("tcp"))
    left["slots"] = sum(map(is_held, service.machine.glob("llama-api-slots/*/slot-*")))
    return {name: value for name, value in left.items() if value}


def is_held(path):
    """Whether some process holds the slot of this file."""
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(file)


def calm(look):
    """Look until there is nothing more or the time is over; return what is left."""
    end = time.monotonic() + CALM
    while (left := look()) and time.monotonic() < end:
        time.sleep(0.1)
    return left


def check(scene, before):
    """Wait for calm, then blame the ledger for all that is left; returns rows for the table."""
    rows, blame = [], scene.ledger.blame
    for number, service in enumerate(scene.services):
        if left := calm(lambda service=service: busy(service)):
            blame(f"left over in service {number}: {left}")
        for pid, now in size(service, scene).items():
            was = before[number]
            growth = (now["rss"] - was["rss"]) / 1e6
            rows.append([f"service {number}, worker {pid}: files, threads, MB (at the start)",
                         f"{now['files']} ({was['files']}), {now['threads']} ({was['threads']}), "
                         f"{now['rss'] / 1e6:.1f} ({was['rss'] / 1e6:.1f})"])
            for name, more in (("files", FILES_MORE), ("threads", THREADS_MORE)):
                if now[name] > was[name] + more:
                    blame(f"service {number}: {name} grew from {was[name]} to {now[name]}")
            if growth > GROWTH_MB:
                blame(f"service {number}: the memory of a worker grew by {growth:.1f} MB")
    if left := calm(scene.store.under_way):
        blame(f"left over in the store: {left}")
    for double in scene.doubles:
        try:
            double.wait(10, running=0, waiting=0)
        except TimeoutError as error:
            blame(f"Ollama still works: {error}")
    return rows


def recovered(scene):
    """Blame the ledger unless each service uses all hosts again, serves, shares a call and keeps its deadline.

    Returns rows for the table.
    """
    rows, changes = [], scene.builds.newest.changes
    for number, service in enumerate(scene.services):
        if away := calm(lambda service=service: [
                host for host in service.health()["hosts"] if not host["usable"]]):
            scene.ledger.blame(f"after the storm service {number} does not use {away}")
        prompt = f"The chaos is over, service {number}?"
        reply = service.ask(prompt)
        if reply.status != 200 or reply.text != answer_for(prompt, n=100, **changes):
            scene.ledger.blame(f"after the storm service {number} answers {reply.status}: {reply.body[:300]!r}")
        prompt = f"The chaos is over for a crowd, service {number}? [[ttft=0.3]]"
        texts = {reply.text if reply.status == 200 else reply.status
                 for reply in together(40, lambda _, service=service, prompt=prompt: service.ask(prompt))}
        calls = sum(double.generations[prompt] for double in scene.doubles)
        if texts != {answer_for(prompt, n=100, **changes)} or calls > len(service.workers):
            scene.ledger.blame(f"after the storm 40 identical requests were {calls} calls and gave {len(texts)} texts")
        rows.append([f"service {number}: calls for 40 identical requests after the storm", calls])
        try:
            late = service.ask(f"A chaos for ever, service {number}? [[fault=endless_tokens]]", timeout=TIMEOUT + SLACK)
            if late.status != 504:
                scene.ledger.blame(f"an endless answer was {late.status}")
            rows.append([f"service {number}: seconds until an endless answer was 504", late.seconds])
        except TimeoutError:
            scene.ledger.blame(f"service {number} does not end an endless answer at the deadline")
    return rows
