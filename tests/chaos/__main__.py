"""Everything at once: all faults, storms and rude clients, in several set-ups, judged by callers, doubles and files.

``python -m tests.chaos --seed 1 --seconds 100`` prints a table of what happened in each set-up; its exit status is 1
when anything did that must not: a wrong answer, one of another build, a request without an end, an undue error or
disconnect, more calls at an Ollama than it has slots, one again after its first piece, something left over.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.chaos import leaks
from tests.chaos.builds import Builds
from tests.chaos.clients import BODY_LIMIT, Caller, Mob
from tests.chaos.rude_clients import RudeClient
from tests.chaos.fault_injection import FaultInjector
from tests.chaos.scene import OPENINGS, PARALLEL, QUEUE_TIMEOUT, SLACK, TIMEOUT, Scene
from tests.chaos.stores import Memory, Redis, Sqlite, Store
from tests.support.double_process import double_processes
from tests.support.gunicorn_server import Server

CALLERS, HOOLIGANS, MOBS = 24, 6, 2
KNOBS = {"slots": 32, "ttft": 0.02, "gap": 0.002, "slow": 1.0, "drip": 0.005, "size": 400_000, "record": 100_000}
SETTINGS = {"timeout": TIMEOUT, "queue_timeout": QUEUE_TIMEOUT, "connect_timeout": 0.5, "parallel": PARALLEL,
            "queue": 12, "cache_stale_if_error": 60, "cache_max_entries": 150, "max_body_bytes": BODY_LIMIT}
CLEAR_END = 3 * (TIMEOUT + QUEUE_TIMEOUT + SLACK)  # seconds for the last requests of all callers to end


@dataclass(frozen=True)
class Setup:
    """The set-up of the service: the workers of each instance, the Ollamas, the store.

    Instances that are ``apart`` run on separate machines and share only the store.
    """

    workers: tuple[int, ...]
    hosts: int
    store: type[Store]
    apart: bool = False
    cache_ttl: float = 3


SETUPS = {"memory": Setup((1, 2), 1, Memory), "sqlite": Setup((2, 1), 3, Sqlite, cache_ttl=30),
          "redis": Setup((2, 1), 3, Redis, cache_ttl=30), "redis-apart": Setup((2, 1), 3, Redis, apart=True)}


def run(setup, seed, seconds, directory):
    """Let chaos reign over ``setup`` for ``seconds``; returns the Scene and the rows of the table."""
    directory = Path(directory)
    with ExitStack() as stack:
        store = stack.enter_context(setup.store(directory))
        doubles = stack.enter_context(double_processes(setup.hosts, **KNOBS))
        services = [started(stack, setup, number, store, doubles, directory) for number in range(len(setup.workers))]
        scene = Scene(seed, setup, services, doubles, store, Builds(doubles))
        scene.began, scene.ends = time.monotonic(), time.monotonic() + 60
        before = leaks.idle(scene)
        scene.began, scene.ends = time.monotonic(), time.monotonic() + seconds
        injector, asked = storm(scene)
        rows = [["faults of Ollama that struck", sum(injector.faults.values())],
                ["different faults that struck", len(injector.faults)], ["crowds of 8 identical requests", asked],
                ["builds of the model", len(scene.builds.all)],
                *([f"done: {deed}", count] for deed, count in sorted(injector.done.items()))]
        rows += leaks.recovered(scene) + leaks.check(scene, before) + testimony(scene)
        rows += farewell(scene)
    return scene, rows


def started(stack, setup, number, store, doubles, directory):
    """Start the instance ``number`` of the service."""
    service = Server(directory / f"service{number}", SETTINGS | {
        "workers": setup.workers[number], "ollama_url": ",".join(double.url for double in doubles),
        "cache_url": store.url, "cache_ttl": setup.cache_ttl})
    service.machine = directory / (f"machine{number}" if setup.apart else "machine")
    service.machine.mkdir(exist_ok=True)
    stack.callback(lambda: service.process and service.kill())
    return service.start()


def storm(scene):
    """Let all actors act, until each has ended."""
    injector, mobs = FaultInjector(scene), [Mob(scene, number) for number in range(MOBS)]
    actors = [injector, *mobs, *(Caller(scene, number) for number in range(CALLERS)),
              *(RudeClient(scene, CALLERS + number) for number in range(HOOLIGANS))]
    threads = [threading.Thread(target=actor.run, daemon=True) for actor in actors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, scene.ends + CLEAR_END - time.monotonic()))
    if stuck := sum(thread.is_alive() for thread in threads):
        scene.ledger.blame(f"{stuck} callers never came to an end")
    return injector, sum(mob.asked for mob in mobs)


def testimony(scene):
    """Blame the ledger for what the doubles saw that must not be; returns rows for the table."""
    def allowed(at):
        """Calls at once at one host: machines that have lost their store count by themselves."""
        return PARALLEL * (len(scene.services) if scene.setup.apart and scene.store.upset(at) else 1)

    for sentence in scene.invariants.above(scene.doubles, allowed) + scene.invariants.replayed(scene.doubles):
        scene.ledger.blame(sentence)
    return [["upstream calls", len(scene.invariants.calls(scene.doubles))],
            ["upstream calls at once, most at each host",
             str([*scene.invariants.most_at_once(scene.doubles).values()])]]


def farewell(scene):
    """Stop the services by SIGTERM and read what they have written."""
    lines = 0
    for number, service in enumerate(scene.services):
        began = time.monotonic()
        try:
            service.stop()
            service.assert_clean()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            scene.ledger.blame(f"service {number} did not end well: {str(error)[-3000:]}")
        scene.ledger.note("stop", "exit 0", time.monotonic() - began)
        written = service.stdout
        lines += written.count("\n")
        if any(opening in text for opening in OPENINGS for text in (written, service.log_path.read_text())):
            scene.ledger.blame(f"service {number}: a prompt is in its log")
        if left := [path.name for path in service.directory.iterdir() if path.is_dir()]:
            scene.ledger.blame(f"service {number} leaves {left} behind")
    return [["lines logged", lines]]


def table(scene, rows):
    """The figures as text."""
    ledger, lines = scene.ledger, []
    for kind, outcomes in sorted(ledger.outcomes.items()):
        for outcome, count in sorted(outcomes.items()):
            times = sorted(ledger.times.get((kind, outcome), ()))
            spread = [f"{times[int(len(times) * share)] * 1000:8.1f}" for share in (0.5, 0.99)] if times else ["", ""]
            lines.append(f"{kind:12} {outcome:34} {count:7} {spread[0]:>9} {spread[1]:>9}")
    total = sum(map(Counter.total, ledger.outcomes.values()))
    return "\n".join([f"{'requests':12} {'outcome':34} {'count':>7} {'p50 ms':>9} {'p99 ms':>9}", *lines,
                      f"{'all':47} {total:7}", "", *(f"{name:66} {shown(value)}" for name, value in rows)])


def shown(value):
    """A figure as text."""
    return f"{value:.2f}" if isinstance(value, float) else value


def main():
    """Run each set-up, print its table, and report what must not have happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=100, help="of the storm in each set-up")
    parser.add_argument("--setup", action="append", choices=[*SETUPS], help="one of them; all by default")
    options = parser.parse_args()
    failed = []
    for name in options.setup or SETUPS:
        with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
            scene, rows = run(SETUPS[name], options.seed, options.seconds, directory)
        violations = scene.ledger.violations
        print(f"\n{name}: seed {options.seed}, a storm of {options.seconds:g} s\n{table(scene, rows)}\n",
              f"{name}: {len(violations) or 'no'} violation{'s' if len(violations) != 1 else ''}",
              *(f"- {sentence}" for sentence in violations[:40]), sep="\n", flush=True)
        failed += [name] * bool(violations)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
