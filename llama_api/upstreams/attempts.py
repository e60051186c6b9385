"""The current attempts to generate: cancelled when no caller is left, moved when their Ollama is gone."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from ..answer import Completion
from ..errors import OllamaReset
from ..waiting import Cancellation, Cancelled
from .journey import Journey
from .run import Attempted, Tracer
from .upstream import Upstream


class _Attempt:
    """One generation at one Ollama: ``cancellation`` ends it, ``trace`` is its own span, if any."""

    def __init__(self, journey: Journey, upstream: Upstream):
        self.journey, self.upstream, self.cancellation = journey, upstream, Cancellation()
        self.left = self.moved = False
        trace = journey.run.progress.trace
        self.trace = None if trace is None else trace.child()
        self.began = time.monotonic()
        self.completion: Completion | None = None

    @property
    def loading(self) -> bool:
        """Whether its model is being loaded, as of the newest probe."""
        return not self.journey.flowing and self.upstream.loaded(self.journey.call.model) is False

    def leave(self) -> None:
        """End the attempt when its caller has left or an operator cancels it.

        Ollama abandons a load whose client leaves. So a load continues unless an operator cancels it.
        """
        if self.journey.run.cancellation.reason is None and self.loading:
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
    def at(self, upstream: Upstream, journey: Journey) -> Iterator[_Attempt]:
        """Run the block as an attempt of ``journey`` at ``upstream``; its cancellation ends it.

        Raises OllamaReset when the attempt was moved away.
        """
        attempt = _Attempt(journey, upstream)
        self._under_way.add(attempt)
        try:
            if attempt.loading:
                journey.run.progress.state = "loading"
            with journey.run.cancellation.interrupts(attempt.leave):
                yield attempt
        except Cancelled:
            if attempt.moved:
                raise OllamaReset from None
            raise
        finally:
            self._under_way.discard(attempt)
            if self._tracer is not None:
                self._tracer.attempted(Attempted(
                    journey.call, upstream.host, attempt.trace, attempt.began, journey.run.progress.first_piece_at,
                    attempt.completion, sys.exception()))

    def look(self, upstream: Upstream) -> None:
        """Note, after a probe of ``upstream``, the attempts whose model is now loaded."""
        for attempt in [one for one in self._under_way if one.upstream is upstream and not one.loading]:
            if attempt.journey.run.progress.state == "loading":
                attempt.journey.run.progress.state = "writing"
            if attempt.left:
                attempt.cancellation.request()

    def move(self, upstream: Upstream) -> None:
        """Move attempts without a piece away from ``upstream``, which no longer answers probes."""
        for attempt in [one for one in self._under_way if one.upstream is upstream and not one.journey.flowing]:
            attempt.moved = True
            attempt.cancellation.request()
