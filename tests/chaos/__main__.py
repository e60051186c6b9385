"""Everything at once: all faults, storms and rude clients, against two services that share a Redis.

``python -m tests.chaos --seed 1 --seconds 120`` prints a table of what happened; its exit status is 1 when anything
did that must not: a wrong answer, a request without an end, an undue error or disconnect, something left over.
"""

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.chaos import leftovers
from tests.chaos.clients import BODY_LIMIT, QUEUE_TIMEOUT, TIMEOUT, Caller, Hooligan, Mob, Scene
from tests.chaos.saboteur import Saboteur
from tests.support.double_process import double_processes
from tests.support.gunicorn_server import Server
from tests.support.redis_server import RedisServer

PARALLEL, HOSTS = 2, 3
CALLERS, HOOLIGANS, MOBS = 24, 6, 2
KNOBS = {"slots": 32, "ttft": 0.02, "gap": 0.002, "slow": 1.0, "drip": 0.005, "size": 400_000, "record": 100_000}
SETTINGS = {"timeout": TIMEOUT, "queue_timeout": QUEUE_TIMEOUT, "connect_timeout": 0.5, "parallel": PARALLEL,
            "queue": 12, "cache_ttl": 3, "cache_stale_if_error": 60, "cache_max_entries": 150,
            "max_body_bytes": BODY_LIMIT}
CLEAR_END = 3 * (TIMEOUT + QUEUE_TIMEOUT) + 15  # seconds for the last requests of all callers to end


class ChaosServer(Server):
    """The service, which also tells what it has under way."""

    application = "tests.chaos.app:app"


def run(seed, seconds, directory):
    """Let chaos reign for ``seconds``; returns the Scene and the rows of the table."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(directory))
        doubles = stack.enter_context(double_processes(HOSTS, **KNOBS))
        services = []
        for number, workers in enumerate((2, 1)):
            service = ChaosServer(Path(directory) / f"service{number}", SETTINGS | {
                "workers": workers, "ollama_url": ",".join(double.url for double in doubles),
                "cache_url": redis.url})
            service.machine = Path(directory) / f"machine{number}"  # they meet in Redis alone
            service.machine.mkdir()
            stack.callback(lambda service=service: service.process and service.kill())
            services.append(service.start())
        scene = Scene(seed, services, doubles, redis, time.monotonic(), time.monotonic() + 60)
        before = leftovers.idle(scene)
        scene.began, scene.ends = time.monotonic(), time.monotonic() + seconds
        saboteur, asked = storm(scene)
        rows = [["upstream calls", saboteur.calls], ["upstream calls at once, most at each host", str(saboteur.peaks)],
                ["faults of Ollama that struck", sum(saboteur.faults.values())],
                ["different faults that struck", len(saboteur.faults)], ["crowds of 8 identical requests", asked],
                *([f"done: {deed}", count] for deed, count in sorted(saboteur.done.items()))]
        # A call that was cut off may be seen to end a little later, and without Redis each machine counts by itself.
        if max(saboteur.peaks) > len(services) * PARALLEL + 2:
            scene.ledger.blame(f"{saboteur.peaks} calls at once, {len(services)} x {PARALLEL} are allowed")
        rows += leftovers.recovered(scene) + leftovers.check(scene, before)
        rows += farewell(scene)
    return scene, rows


def storm(scene):
    """Let all actors act, until each has ended."""
    saboteur, mobs = Saboteur(scene), [Mob(scene, number) for number in range(MOBS)]
    actors = [saboteur, *mobs, *(Caller(scene, number) for number in range(CALLERS)),
              *(Hooligan(scene, CALLERS + number) for number in range(HOOLIGANS))]
    threads = [threading.Thread(target=actor.run, daemon=True) for actor in actors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, scene.ends + CLEAR_END - time.monotonic()))
    if stuck := sum(thread.is_alive() for thread in threads):
        scene.ledger.blame(f"{stuck} callers never came to an end")
    return saboteur, sum(mob.asked for mob in mobs)


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
        if "Chaos" in written + service.log_path.read_text():
            scene.ledger.blame(f"service {number}: a prompt is in its log")
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
    """Run, print the table, tell what must not have happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        scene, rows = run(options.seed, options.seconds, directory)
    print(table(scene, rows))
    violations = scene.ledger.violations
    if violations:
        print(f"\n{len(violations)} violations with --seed {options.seed} --seconds {options.seconds:g}:",
              *(f"- {sentence}" for sentence in violations[:40]), sep="\n")
    else:
        print("\nno violation")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
