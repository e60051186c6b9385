"""All Ollamas and their common queue: a free slot takes the next generation."""

import logging
import random
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ..errors import (ModelNotFound, OllamaBrokeOff, OllamaBusy, OllamaError, OllamaHangs, OllamaReset, OllamaTimeout,
                      OllamaUnavailable, QueueTimeout, RemoteModel)
from ..model_call import ModelCall
from ..model_names import is_stub, normal
from ..waiting import Cancellation, Cancelled, Progress, Wait
from .affinity import Affinity, chain_of
from .attempts import Attempts
from .generation import Generation
from .leases import Leases
from .loading import Loads, Preload
from .monitor import FIRST_PROBE_SECONDS
from .probe import Probe
from .queue import Queue
from .availability import Availability
from .observers import Generated, Observer, Run, Tracer
from .state import State, state_of
from .upstream import Upstream
from .waiter import Slot, Waiter

logger = logging.getLogger(__name__)

TRIES = 3  # at a single Ollama that cannot be reached or is busy; other failures are not safe to repeat
BACKOFF_SECONDS = 0.15
FAILOVER = (OllamaUnavailable, OllamaBusy, OllamaReset, OllamaBrokeOff)  # before a piece: try the next Ollama
PS_SECONDS = 1.0
GONE_SECONDS = 2.5  # without a successful probe, after which generations without a piece go elsewhere


class Fleet:
    """Generates answers, each in a free slot of a usable Ollama.

    ``models`` are the served ones, the default first; ``timeout`` limits a generation once it has a slot, and
    ``queue_timeout`` its wait for one, in seconds; ``preload`` has each Ollama load the first model. With ``leases``
    slots are counted over all machines; the spans of each generation are reported to ``tracer``.
    """

    def __init__(self, upstreams: Sequence[Upstream], models: Sequence[str], observer: Observer, queue: int = 64,
                 queue_timeout: float = 60.0, timeout: float = 300.0, preload: bool = False,
                 leases: Leases | None = None, tracer: Tracer | None = None):
        self.upstreams, self._models, self._observer = tuple(upstreams), tuple(models), observer
        self._availability, self._affinity = Availability(upstreams), Affinity()
        self._queue = Queue(self._availability, queue, queue_timeout, leases)
        self._queue_timeout, self._timeout, self._single = queue_timeout, timeout, len(self.upstreams) == 1
        self._loads, self._attempts, self._tracer = Loads(), Attempts(tracer), tracer
        self._preload = Preload(self._loads, models[0]) if preload else None
        for upstream in upstreams:
            upstream.monitor.subscribe(partial(self._on_probe, upstream))

    # State

    def stale_since(self, model: str, digest: str | None) -> float | None:
        """When (monotonic) another build of ``model`` than ``digest`` was first seen; None while it is the newest.

        Never waits.
        """
        self._start()
        return self._availability.stale_since(model, digest)

    def state(self) -> State:
        """The state of all Ollamas and of the queue, by probes at most 2 s old."""
        self._wait_fresh()
        return state_of(self._availability, self._queue, self._models, self._preload)

    def inventory(self) -> list[dict[str, Any]]:
        """The entries of /api/tags as of the newest probes, one per model, of the build that answers where known.

        Waits only for the first probes.
        """
        self._wait_fresh(first=True)
        found: dict[str, dict[str, Any]] = {}
        for upstream in self.upstreams:
            for model in upstream.monitor.latest.models:
                name = str(model["name"])
                build = self._availability.build(name)
                if name not in found or model.get("digest") == build != found[name].get("digest"):
                    found[name] = model
        return list(found.values())

    def when_removed(self, action: Callable[[], object]) -> None:
        """Call ``action`` each time a model has disappeared from the inventory."""
        self._availability.removed = action

    def loaded(self) -> list[dict[str, Any]]:
        """The entries of /api/ps, one per model. Raises OllamaError when no Ollama reports them."""
        found: dict[str, dict[str, Any]] | None = None
        failure: OllamaError = OllamaUnavailable()
        for upstream in [one for one in self.upstreams if one.reached] or self.upstreams[:1]:
            try:
                models = [model for model in upstream.client.loaded(PS_SECONDS)
                          if not is_stub(model) and not upstream.has_stub(str(model.get("name")))]
            except OllamaError as error:
                failure = error
            else:
                found = {str(model.get("name")): model for model in models} | (found or {})
        if found is None:
            raise failure
        return list(found.values())

    def window(self, model: str) -> int | None:
        """The context window that ``model`` is loaded with, the smallest of all Ollamas; None when unknown."""
        known = [upstream.monitor.latest.loaded or {} for upstream in self.upstreams]
        sizes = [loaded[normal(model)].context_length for loaded in known if normal(model) in loaded]
        return min((size for size in sizes if size is not None), default=None)

    def not_found_error(self, model: str) -> ModelNotFound:
        """The error for a ``model`` that no Ollama has."""
        return self._availability.not_found_error(model)

    def show(self, model: str, **fields: Any) -> dict[str, Any]:
        """The response of /api/show for ``model``; ``fields`` extend the request. Raises OllamaError."""
        return self._any_for(model).client.show(model, **fields)

    def load(self, model: str, cancellation: Cancellation, progress: Progress) -> None:
        """Load ``model`` and wait for it; the load continues if the caller leaves. Raises OllamaError or Cancelled."""
        upstream = self._any_for(model)
        progress.host, progress.state = upstream.host, "loading"
        self._loads.load(upstream, model, cancellation)

    # Generating

    def generate(self, call: ModelCall, run: Run) -> Generated:
        """Generate the answer to ``call``. Raises OllamaError, QueueFull, QueueTimeout or Cancelled.

        A generation that fails before its first piece is tried at the next Ollama, once at each, until the deadline.
        """
        if self._single or not self._availability.hosts(call.model):
            self._wait_fresh()
        if self._single:
            self._any_for(call.model).breaker.check()
        generation = Generation(call, run, self._timeout)
        if not self._single and not call.embeds:
            generation.chain = chain_of(call)
        try:
            while True:
                slot = self._slot(generation)
                self._observer.running(slot.upstream.host, 1)
                try:
                    return self._generate_at(slot.upstream, generation)
                except FAILOVER as error:
                    self._fail_over(slot.upstream, generation, error)
                finally:
                    self._observer.running(slot.upstream.host, -1)
                    self._queue.give_back(slot)
        except OllamaBusy as error:
            raise OllamaBusy(self._queue.retry_after(call.model)) from error
        except Cancelled:
            generation.outcome = "cancelled"
            raise
        finally:
            if (ended := generation.ended()) is not None:
                self._observer.generation_ended(ended)

    def build_unchanged(self, made: Generated, model: str) -> bool:
        """Whether the answer ``made`` may be stored under its build, which may have changed since the last probe.

        The next probe of a single Ollama makes all earlier answers stale. If there are several Ollamas, only the
        changed one is left out and the build stays valid, so the one that answered is asked once more.
        """
        return self._single or any(upstream.still_has(model, made.digest) for upstream in self.upstreams
                                   if upstream.host == made.host)

    def _slot(self, generation: Generation) -> Slot:
        """A slot for ``generation``. Raises the earlier failure when no slot is free in time for a retry."""
        progress, waited, began = generation.run.progress, False, time.monotonic()
        waiter = Waiter(generation.call.model, lambda free: self._ranked(generation, free), generation.tried,
                        generation.since)

        def waits() -> None:
            nonlocal waited
            waited = True
            progress.wait = lambda: self._queue.estimate(waiter)
            self._observer.waiting(1)

        try:
            slot = self._queue.take(waiter, generation.run.cancellation, waits,
                                    generation.seconds_left(self._queue_timeout))
        except (OllamaError, QueueTimeout) as error:
            raise generation.failure or error
        finally:
            if waited:
                progress.wait = Wait
                self._observer.waiting(-1)
            if self._tracer is not None:
                self._tracer.waited(progress.trace, began, sys.exception())
        generation.begin(slot)
        if not self._single and not generation.call.embeds:
            self._match(generation, slot.upstream)
        return slot

    def _match(self, generation: Generation, upstream: Upstream) -> None:
        """Report whether ``generation`` goes where its beginning is known, and note that ``upstream`` reads it now."""
        match = generation.match = self._affinity.find(generation.chain)
        self._observer.prefix_matched("none" if match is None else "hit" if match.host == upstream.host else "miss")
        self._affinity.note(generation.chain, upstream.host)

    def _generate_at(self, upstream: Upstream, generation: Generation) -> Generated:
        """Generate at ``upstream``; a single Ollama that cannot be reached or is busy is tried a few times."""
        for attempt in range(1, TRIES + 1):
            try:
                return self._try(upstream, generation)
            except OllamaHangs:
                raise
            except (OllamaUnavailable, OllamaBusy) as error:
                delay = BACKOFF_SECONDS * 2 ** attempt * random.uniform(0.5, 1.5)
                if not self._single or attempt == TRIES or delay >= generation.seconds_left(delay + 1):
                    raise
                logger.info("trying Ollama again: %s", error)
                _pause(delay, generation.run.cancellation)
        raise AssertionError("unreachable")

    def _try(self, upstream: Upstream, generation: Generation) -> Generated:
        call, run, build = generation.call, generation.run, self._availability.build(generation.call.model)
        with upstream.breaker.admission():
            try:
                with self._attempts.at(upstream, generation) as attempt:
                    completion = attempt.completion = upstream.client.generate(
                        call, build, generation.seconds_left(self._timeout), attempt.cancellation, run.publish,
                        attempt.trace)
            except OllamaTimeout as error:
                raise OllamaTimeout(generation.flowing) from error
        upstream.answered(call.model)
        if generation.match is not None and generation.match.host == upstream.host:
            known, read = completion.cached_input_tokens, completion.input_tokens
            if known is not None and read:
                self._affinity.correct(generation.match, generation.chain, known / read)
        generation.outcome, generation.completion = completion.finish_reason or "error", completion
        return Generated(completion, build, upstream.host, time.monotonic())

    def _fail_over(self, upstream: Upstream, generation: Generation, error: OllamaError) -> None:
        """Prepare the try at the next Ollama. Raises ``error`` when there is none or a piece has arrived."""
        if self._single:
            raise error
        if not isinstance(error, OllamaHangs):
            self._availability.failed(upstream)
        if generation.flowing or all(one is upstream or one in generation.tried
                                     for one in self._availability.hosts(generation.call.model)):
            raise error
        generation.failed(upstream, error)
        self._observer.failed_over(upstream.host)
        logger.warning("%s failed and another Ollama is tried: %s", upstream.host, error)

    def _ranked(self, generation: Generation, free: list[Upstream]) -> list[Upstream]:
        """The Ollamas in ``free`` from best to worst: the one that has read the beginning of the prompt, then those
        that have the model loaded, then the least busy.
        """
        model, match = generation.call.model, self._affinity.find(generation.chain)
        known = match.host if match is not None else None
        return sorted(free, key=lambda one: (one.breaker.open, one.host != known, one.loaded(model) is False,
                                             one.slots.share, one.slots.work))

    # Probes

    def _on_probe(self, upstream: Upstream, probe: Probe) -> None:
        """Pass a new probe of ``upstream`` on to everything that depends on it."""
        upstream.on_probe(probe)
        if not probe.reachable or upstream.emptied:
            self._affinity.forget(upstream.host)
        self._availability.on_probe()
        self._queue.serve_waiters()
        self._attempts.on_probe(upstream)
        if upstream.gone_for > GONE_SECONDS and any(one is not upstream for one in self.upstreams if one.reached):
            self._attempts.move(upstream)
        if self._preload is not None:
            self._preload.on_probe(upstream)

    def _any_for(self, model: str) -> Upstream:
        """An Ollama to ask about ``model``, the first one when none is usable. Raises RemoteModel."""
        upstream = next(iter(self._availability.hosts(model)), self.upstreams[0])
        if upstream.has_stub(model):
            raise RemoteModel(model)
        return upstream

    def _start(self) -> None:
        for upstream in self.upstreams:
            upstream.monitor.start()

    def _wait_fresh(self, first: bool = False) -> None:
        """Wait until each probe is at most 2 s old, or with ``first`` has been made at all; at most 1.2 s."""
        self._start()
        until = time.monotonic() + FIRST_PROBE_SECONDS
        for monitor in [upstream.monitor for upstream in self.upstreams]:
            if not (monitor.known if first else monitor.fresh):
                monitor.wait_fresh(max(0.0, until - time.monotonic()))


def _pause(seconds: float, cancellation: Cancellation) -> None:
    woken = threading.Event()
    with cancellation.interrupts(woken.set):
        if woken.wait(seconds):
            raise Cancelled
