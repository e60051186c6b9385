"""The faults of the chaos run: Ollamas that fail, dead workers, reloads, a store in trouble."""

import os
import random
import signal
import time
from collections import Counter
from contextlib import contextmanager
from http.client import HTTPException

from tests.chaos.builds import MODEL
from tests.chaos.scene import SLACK
from tests.support.double import FAULTS
from tests.support.gunicorn_server import until

BY_PROMPT = {"controls", "text_in_last", "endless_tokens"}  # they change the text: the clients ask for them
LEAK = "leak"  # only a restart of Ollama gives the slot back
MIXTURE = 7  # faults at once
LOOKS = 6  # consecutive answers of /health, as a worker may not have read yet what the others report
TO_ONE_HOST = {"be busy": "busy", "reset connections": "reset", "be out of memory": "oom", "be slow": "slow",
               "hang": "hang"}
SMALL_FAULTS = ("tags", "show", "version", "ps")


class FaultInjector:
    """Mixes the faults of the double afresh each second, and does something worse in between.

    What it does, and in which order, comes from the seed; how much of it, from the time there is.
    """

    def __init__(self, scene):
        self._scene, self._doubles, self._builds = scene, scene.doubles, scene.builds
        self._random = random.Random(f"{scene.seed} fault injector")
        self._well = vars(self._doubles[0].set())
        self._earlier = Counter()  # faults that occurred before a double was reset
        self.done = Counter()

    def run(self):
        """Do harm until the time is over, then heal everything."""
        faults, deeds = [], []
        try:
            while not self._scene.over:
                faults = faults if len(faults) >= MIXTURE else faults + self._shuffled(
                    sorted(set(FAULTS) - BY_PROMPT - {LEAK}))
                mixture, faults = faults[:MIXTURE], faults[MIXTURE:]
                with self._mixed(mixture):
                    self._pause(0.4)
                    deeds = deeds or self._shuffled(self._deeds())
                    name, deed = deeds.pop()
                    self.done[name] += 1
                    deed()
                    self._pause(0.4)
        except Exception as error:
            self._scene.ledger.blame(f"the fault injector: {type(error).__name__}: {error}")
        finally:
            self.heal()

    def heal(self):
        """Let everything be well again. What is under way is not cut off: it must end by itself."""
        for double in self._doubles:
            double.revive()
            double.set(**self._well)
            double.start()
        self._builds.renew(*self._doubles)
        self._scene.store.heal()

    @property
    def faults(self):
        """How often each fault has occurred."""
        return sum((double.faults for double in self._doubles), Counter(self._earlier))

    @contextmanager
    def _mixed(self, mixture):
        """Let these faults strike at random inside the block, and now and then one of the small endpoints fail."""
        names = self._random.choice(((), (), (), ("tags",), ("show",), ("version", "ps"), SMALL_FAULTS))
        fault = self._random.choice(("crashed", "hang", "reset", "html_200", "error_array", "empty_502"))
        since = time.monotonic()
        for double in self._doubles:
            double.set(fault=",".join(mixture), rate=self._random.choice((0.1, 0.6, 0.9)), times=0,
                       ttft=self._random.choice((0.0, 0.02, 0.1)),
                       **{f"{name}_fault": fault if name in names else "" for name in SMALL_FAULTS})
        yield
        if "tags" in names:
            self._calm_probes()
            self._builds.hidden.append((since, time.monotonic()))

    def _calm_probes(self):
        for double in self._doubles:
            double.set(**{f"{name}_fault": "" for name in SMALL_FAULTS})

    def _shuffled(self, things):
        things = list(things)
        self._random.shuffle(things)
        return things

    def _pause(self, seconds):
        time.sleep(max(0.0, min(seconds, self._scene.ends - time.monotonic())))

    def _deeds(self):
        """Pairs of name and deed: each deed to each host, to each service, to the store."""
        to_hosts = [("kill", self._kill), ("freeze", self._freeze), ("stop", self._stop), ("leak slots", self._leak),
                    ("lose the model", self._lose_model), ("have another build", self._rebuild),
                    *((name, lambda host, fault=fault: self._strike(host, fault))
                      for name, fault in TO_ONE_HOST.items())]
        deeds = [(f"host {at}: {name}", lambda deed=deed, host=host: deed(host))
                 for at, host in enumerate(self._doubles) for name, deed in to_hosts]
        deeds += [(f"service {at}: {name}", lambda deed=deed, service=service: deed(service))
                  for at, service in enumerate(self._scene.services)
                  for name, deed in (("kill a worker", self._kill_worker), ("reload", self._reload))]
        deeds += [("all hosts: stop", lambda: self._stop(*self._doubles)),
                  ("all hosts: load slowly", self._load_slowly),
                  ("all hosts: lose the model", lambda: self._lose_model(*self._doubles)),
                  ("all hosts: have another build", lambda: self._builds.renew(*self._doubles))]
        deeds += [(f"store: {name[3:].replace('_', ' ')}", lambda name=name: getattr(
            self._scene.store, name)(self._pause)) for name in dir(self._scene.store) if name.startswith("do_")]
        return deeds

    # To the service

    def _kill_worker(self, service):
        victim = self._random.choice(sorted(service.workers))
        self._scene.kills.append((time.monotonic(), service))
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return  # it was on its way out
        self._scene.kills.append((time.monotonic() + 0.5, service))  # its connections break a little later

    def _reload(self, service):
        service.signal(signal.SIGHUP)

    # To hosts

    @contextmanager
    def _broken(self):
        """Note that hosts break off their generations inside the block, and that nobody sees their pieces."""
        at, since = len(self._scene.invariants.broken), time.monotonic()
        self._scene.invariants.broken.append((since, float("inf")))
        yield
        self._scene.invariants.broken[at] = since, time.monotonic()
        self._builds.hidden.append((since, time.monotonic()))

    def _stop(self, *hosts):
        with self._broken():
            for host in hosts:
                host.stop()
            self._pause(0.8)
            for host in hosts:
                host.start()

    def _kill(self, host):
        with self._broken():
            self._forget(host)
            host.kill()
            self._pause(1.0)
            host.revive()
            self._reborn(host)

    def _leak(self, host):
        host.set(fault=LEAK, rate=1.0)
        self._pause(1.0)
        with self._broken():
            self._forget(host)
            host.reset()
            self._reborn(host)

    def _forget(self, host):
        """Keep the counts of a host that is about to forget them."""
        self._earlier += host.faults
        self._scene.invariants.remember(host)

    def _reborn(self, host):
        self._builds.born(host)
        host.set(**self._well)
        self._builds.renew(*self._doubles)

    def _freeze(self, host):
        with self._broken(), host.frozen():
            self._pause(1.5)

    def _strike(self, host, fault):
        host.set(fault=fault, rate=1.0)
        self._pause(1.2)

    def _lose_model(self, *hosts):
        self._builds.remove(*hosts)
        self._pause(1.2)
        self._builds.renew(*self._doubles)

    def _load_slowly(self):
        for host in self._doubles:
            host.set(load=0.5)
            host.set_model(MODEL, loaded=False)
        self._pause(1.0)
        for host in self._doubles:
            host.set(load=0.0)

    def _rebuild(self, host):
        """Have one host another build than the others, which must leave it out once they see that."""
        build = self._builds.renew(host)
        if len(self._doubles) > 2:
            self._calm_probes()
            until(lambda: all(self._tells(service, host, build) for service in self._scene.services), 2 * SLACK,
                  f"the sight of another build at {host.host}")
            since = time.monotonic()
            build.left_out = since, float("inf")
            self._pause(2.0)
            build.left_out = since, time.monotonic()
        self._builds.renew(*self._doubles)

    def _tells(self, service, host, build):
        """Whether every worker of ``service`` leaves ``build`` out."""
        for _ in range(LOOKS):
            try:
                hosts = {told["host"]: told for told in service.health()["hosts"]}
            except (OSError, HTTPException):  # by a worker that ends
                return False
            if hosts[host.host]["digest"] != build.digest[:12] or hosts[host.host]["usable"]:
                return False
        return True
