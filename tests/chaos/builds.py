"""The builds of the model at each double, over time. Each build has a voice: its answers are its own."""

import secrets
import threading
import time
from dataclasses import dataclass

MODEL = "llama3:8b"


@dataclass(eq=False)
class Build:
    """One build; times are monotonic. The one that a double is born with has no voice of its own."""

    digest: str = ""
    gone: float | None = None  # since when no double has it, but some has another
    left_out: tuple[float, float] | None = None  # while all services report that they leave it out

    @property
    def changes(self):
        """The changes that it makes to a request, as for pieces_for."""
        return {"voice": self.digest[:8]} if self.digest else {}


class Builds:
    """All builds there were, the newest first."""

    def __init__(self, doubles):
        self._lock = threading.Lock()
        self._born = Build()
        self.all = [self._born]
        self._on = dict.fromkeys(doubles, self._born)
        self.hidden = []  # since and until

    def renew(self, *doubles):
        """Have ``doubles`` the same new build, and return it."""
        build = Build(secrets.token_hex(32))
        with self._lock:
            self.all.insert(0, build)
        for double in doubles:
            double.set_model(MODEL, digest=build.digest, voice=build.digest[:8])
            self._put(double, build)
        return build

    def remove(self, *doubles):
        """Have ``doubles`` no build."""
        for double in doubles:
            double.remove_model(MODEL)
            self._put(double, None)

    def born(self, double):
        """``double`` starts again, with its original build."""
        self._put(double, self._born)

    @property
    def newest(self):
        return self.all[0]

    def blind(self, since, until):
        """Seconds between two times for which the services may have been kept from seeing what the doubles have."""
        return sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in self.hidden)

    def _put(self, double, build):
        with self._lock:
            self._on[double] = build
            there = {one for one in self._on.values() if one is not None}
            for one in self.all:
                if one in there:
                    one.gone = None
                elif one.gone is None and there:
                    one.gone = time.monotonic()
