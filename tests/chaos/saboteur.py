"""What is done to the service during the chaos run: Ollama's faults, dead workers, reloads, a Redis in trouble."""

import os
import random
import signal
import time
from collections import Counter

from tests.support.double import FAULTS

BY_PROMPT = {"controls", "text_in_last", "endless_tokens"}  # they change the text: the clients ask for them
LEAK = "leak"  # only a restart of Ollama gives the slot back
MIXTURE = 7  # faults at once


class Saboteur:
    """Mixes the faults of the double anew each second, and does something worse every other second.

    What it does, and in which order, comes from the seed; how much of it, from the time there is.
    """

    def __init__(self, scene):
        self._scene, self._doubles, self._redis = scene, scene.doubles, scene.redis
        self._random = random.Random(f"{scene.seed} saboteur")
        self._targets = 0
        self._well = vars(self._doubles[0].set())
        self._earlier = Counter()  # faults that struck before a double was reset
        self._earlier_calls, self._earlier_peaks = 0, [0] * len(self._doubles)
        self.done = Counter()

    def run(self):
        """Do harm until the time is over, then heal everything."""
        faults, deeds = [], []
        round_number = 0
        try:
            while not self._scene.over:
                faults = faults if len(faults) >= MIXTURE else faults + self._shuffled(set(FAULTS) - BY_PROMPT - {LEAK})
                mixture, faults = faults[:MIXTURE], faults[MIXTURE:]
                for double in self._doubles:
                    double.set(fault=",".join(mixture), rate=self._random.choice((0.1, 0.6, 0.9)), times=0,
                               ttft=self._random.choice((0.0, 0.02, 0.1)), **self._small_faults())
                self._pause(0.5)
                if round_number % 2 == 0:
                    deeds = deeds or self._shuffled(deed for deed in dir(self) if deed.startswith("do_"))
                    deed = deeds.pop()
                    self.done[deed.removeprefix("do_").replace("_", " ")] += 1
                    getattr(self, deed)()
                self._pause(0.5)
                round_number += 1
        except Exception as error:
            self._scene.ledger.blame(f"the saboteur: {type(error).__name__}: {error}")
        finally:
            self.heal()

    def heal(self):
        """Let everything be well again. What is under way is not cut off: it must end by itself."""
        for double in self._doubles:
            double.revive()
            double.set(**self._well)
            double.start()
        self._rebuild()
        if self._redis.process is None:
            self._redis.start()
        self._redis.resume()
        self._scene.troubles.append(time.monotonic())

    @property
    def faults(self):
        """How often each fault has struck."""
        return sum((double.faults for double in self._doubles), Counter(self._earlier))

    @property
    def calls(self):
        """How many generations were asked of Ollama."""
        return self._earlier_calls + sum(len(double.calls("/api/generate")) for double in self._doubles)

    @property
    def peaks(self):
        """How many of them at once, at most, at each host."""
        return [max(earlier, double.peak) for earlier, double in zip(self._earlier_peaks, self._doubles)]

    def _small_faults(self):
        """Faults of the small endpoints, now and then."""
        names = self._random.choice(((), (), (), ("tags",), ("show",), ("version",), ("tags", "show", "version")))
        fault = self._random.choice(("crashed", "hang", "reset", "html_200", "error_array", "empty_502"))
        return {f"{name}_fault": fault if name in names else "" for name in ("tags", "show", "version")}

    def _shuffled(self, names):
        names = sorted(names)
        self._random.shuffle(names)
        return names

    def _pause(self, seconds):
        time.sleep(max(0.0, min(seconds, self._scene.ends - time.monotonic())))

    def _service(self):
        self._targets += 1
        return self._scene.services[self._targets % len(self._scene.services)]

    def _host(self):
        self._targets += 1
        return self._doubles[self._targets % len(self._doubles)]

    def _rebuild(self):
        """Have all hosts the same new build of the model: all answers are stale."""
        digest = self._random.randbytes(32).hex()
        for double in self._doubles:
            double.add_model("llama3:8b", digest)

    def _remember(self, double):
        """Keep the counts of a host that is about to forget them."""
        self._earlier += double.faults
        self._earlier_calls += len(double.calls("/api/generate"))
        self._earlier_peaks = self.peaks

    # Deeds

    def do_kill_a_worker(self):
        service = self._service()
        victim = self._random.choice(sorted(service.workers))
        self._scene.kills.append((time.monotonic(), service))
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            return  # it was on its way out
        self._scene.kills.append((time.monotonic() + 0.5, service))  # its connections break a little later

    def do_kill_a_worker_of_the_other(self):
        self.do_kill_a_worker()

    def do_reload(self):
        self._service().signal(signal.SIGHUP)

    def do_reload_the_other(self):
        self._service().signal(signal.SIGHUP)

    def do_stop_a_host(self):
        host = self._host()
        host.stop()
        self._pause(0.7)
        host.start()

    def do_stop_all_hosts(self):
        for host in self._doubles:
            host.stop()
        self._pause(0.7)
        for host in self._doubles:
            host.start()

    def do_kill_a_host(self):
        host = self._host()
        self._remember(host)
        host.kill()
        self._pause(1.0)
        host.revive()
        host.set(**self._well)
        self._rebuild()

    def do_freeze_a_host(self):
        with self._host().frozen():
            self._pause(1.5)

    def do_rebuild_a_host(self):
        self._host().add_model("llama3:8b")
        self._pause(1.5)
        self._rebuild()

    def do_lose_the_model_on_a_host(self):
        self._host().remove_model("llama3:8b")
        self._pause(1.2)
        self._rebuild()

    def do_lose_the_model(self):
        for host in self._doubles:
            host.remove_model("llama3:8b")
        self._pause(1.2)
        self._rebuild()

    def do_leak_slots(self):
        host = self._host()
        self._earlier_peaks = self.peaks  # from here on it counts slots that nobody holds
        host.set(fault=LEAK, rate=1.0)
        self._pause(1.0)
        self._remember(host)
        host.reset()
        host.start()
        self._rebuild()

    def do_load_slowly(self):
        for host in self._doubles:
            host.set(load=0.5)
        self._pause(1.0)
        for host in self._doubles:
            host.set(load=0.0)

    def _redis_trouble(self, seconds, cure):
        self._scene.troubles.append(time.monotonic())
        self._pause(seconds)
        cure()
        self._scene.troubles.append(time.monotonic())

    def do_kill_redis(self):
        self._redis.kill()
        self._redis_trouble(1.5, self._redis.start)

    def do_stop_redis(self):
        self._redis.pause()
        self._redis_trouble(1.5, self._redis.resume)

    def do_wipe_redis(self):
        with self._redis.client() as client:
            client.flushall()
        self._redis_trouble(0, lambda: None)
