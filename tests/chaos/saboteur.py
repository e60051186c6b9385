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
        self._scene, self._double, self._redis = scene, scene.double, scene.redis
        self._random = random.Random(f"{scene.seed} saboteur")
        self._targets = 0
        self._well = vars(self._double.set())
        self._earlier = Counter()  # of the double, from before it was reset
        self._earlier_calls = self._earlier_peak = 0
        self.done = Counter()

    def run(self):
        """Do harm until the time is over, then heal everything."""
        faults, deeds = [], []
        round_number = 0
        try:
            while not self._scene.over:
                faults = faults if len(faults) >= MIXTURE else faults + self._shuffled(set(FAULTS) - BY_PROMPT - {LEAK})
                mixture, faults = faults[:MIXTURE], faults[MIXTURE:]
                self._double.set(fault=",".join(mixture), rate=self._random.choice((0.3, 0.6, 0.9)), times=0,
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
        self._double.set(**self._well)
        self._double.start()
        self._double.add_model("llama3:8b")
        if self._redis.process is None:
            self._redis.start()
        self._redis.resume()
        self._scene.troubles.append(time.monotonic())

    @property
    def faults(self):
        """How often each fault has struck."""
        return Counter(self._earlier) + self._double.faults

    @property
    def calls(self):
        """How many generations were asked of Ollama."""
        return self._earlier_calls + len(self._double.calls("/api/generate"))

    @property
    def peak(self):
        """How many of them at once, at most."""
        return max(self._earlier_peak, self._double.peak)

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

    def _forget(self):
        """Restart Ollama with all knobs as at the start; its slots are free, what was under way breaks off."""
        self._earlier = self.faults
        self._earlier_calls = self.calls
        self._double.reset()
        self._double.start()

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

    def do_stop_ollama(self):
        self._double.stop()
        self._pause(0.7)
        self._double.start()

    def do_lose_the_model(self):
        self._double.remove_model("llama3:8b")
        self._pause(1.2)
        self._double.add_model("llama3:8b")  # as another build: all answers are stale

    def do_leak_slots(self):
        self._earlier_peak = self.peak  # from here on it counts slots that nobody holds
        self._double.set(fault=LEAK, rate=1.0)
        self._pause(1.0)
        self._forget()

    def do_load_slowly(self):
        self._double.set(load=0.5)
        self._pause(1.0)
        self._double.set(load=0.0)

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
