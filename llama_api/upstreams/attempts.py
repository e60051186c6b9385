"""The current attempts to generate: cancelled when no caller is left, moved when their Ollama is gone."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..answer import Completion
from ..errors import OllamaReset
from ..waiting import Cancellation, Cancelled
from .generation import Generation
from .observers import Attempted, Tracer
from .upstream import Upstream


class _Attempt:
    """One generation at one Ollama: ``cancellation`` ends it, ``trace`` is its own span, if any."""

    def __init__(self, generation: Generation, upstream: Upstream):
        self.generation, self.upstream, self.cancellation = generation, upstream, Cancellation()
        self.left = self.moved = False
        trace = generation.run.progress.trace
        self.trace = None if trace is None else trace.child()
        self.began = time.monotonic()
        self.completion: Completion | None = None

    @property
    def loading(self) -> bool:
        """Whether its model is being loaded, as of the newest probe."""
        return not self.generation.flowing and self.upstream.loaded(self.generation.call.model) is False

    def leave(self) -> None:
        """End the attempt when its caller has left or an operator cancels it.

        Ollama abandons a load whose client leaves. So a load continues unless an operator cancels it.
        """
        if self.generation.run.cancellation.reason is None and self.loading:
            self.left = True
            self.upstream.monitor.hurry()
        else:
            self.cancellation.request()


class Attempts:
    """All current attempts; the end of each is reported to ``tracer``."""

    def __init__(self, tracer: Tracer | None = None) -> None:
        self._under_way: set[_Attempt] = set()
        self._tracer = tracer

    def __repr__(self) -> str:
        return f"<Attempts: {len(self._under_way)} under way>"

    @contextmanager
    def at(self, upstream: Upstream, generation: Generation) -> Iterator[_Attempt]:
        """Run the block as an attempt of ``generation`` at ``upstream``; its cancellation ends it.

        Raises OllamaReset when the attempt was moved away.
        """
        attempt = _Attempt(generation, upstream)
        self._under_way.add(attempt)
        try:
            if attempt.loading:
                generation.run.progress.state = "loading"
            with generation.run.cancellation.interrupts(attempt.leave):
                yield attempt
        except Cancelled:
            if attempt.moved:
                raise OllamaReset from None
            raise
        finally:
            self._under_way.discard(attempt)
            if self._tracer is not None:
                self._tracer.attempted(Attempted(
                    generation.call, upstream.host, attempt.trace, attempt.began,
                    generation.run.progress.first_piece_at, attempt.completion, sys.exception()))

    def on_probe(self, upstream: Upstream) -> None:
        """Note, after a probe of ``upstream``, the attempts whose model is now loaded."""
        for attempt in [one for one in self._under_way if one.upstream is upstream and not one.loading]:
            if attempt.generation.run.progress.state == "loading":
                attempt.generation.run.progress.state = "writing"
            if attempt.left:
                attempt.cancellation.request()

    def move(self, upstream: Upstream) -> None:
        """Move attempts without a piece away from ``upstream``, which no longer answers probes."""
        for attempt in [one for one in self._under_way if one.upstream is upstream and not one.generation.flowing]:
            attempt.moved = True
            attempt.cancellation.request()
