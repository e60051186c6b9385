"""The state of all Ollamas and of the queue, in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..model_names import normal
from .loading import Preload
from .queue import Queue
from .availability import Availability
from .upstream import Upstream

SHOWN_DIGITS = 12  # of a digest


@dataclass(frozen=True, slots=True)
class State:
    """The state of the Ollamas and the queue; each reason is a sentence or None.

    ``unready`` says why requests cannot be served, ``unusable`` why no Ollama is usable, ``degraded`` what else is
    wrong. ``ollama``, ``queue`` and ``hosts`` are those of GET /health.
    """

    unready: str | None
    unusable: str | None
    degraded: str | None
    ollama: dict[str, Any]
    queue: dict[str, Any]
    hosts: list[dict[str, Any]]


def state_of(availability: Availability, queue: Queue, models: Sequence[str], preload: Preload | None = None) -> State:
    """The state as of the newest probes. ``models`` are the served ones, the default first."""
    hosts = [_host(upstream, models[0], availability.build(models[0]), preload.failure(upstream) if preload else None)
             for upstream in availability.upstreams]
    named = [(f"{host['host']}: " if len(hosts) > 1 else "", host) for host in hosts]
    reasons = [f"{name}{host['reason']}" for name, host in named if host["reason"]]
    unusable = None if any(host["usable"] for host in hosts) else "; ".join(reasons)
    troubles = [*reasons, *_missing(availability, models[1:])]
    if queue.waiting >= queue.limit and (queue.limit or not any(
            host["usable"] and host["running"] < host["slots"] for host in hosts)):
        troubles.append("the queue is full")
    unready = unusable
    if preload is not None and unusable is None:
        pending = [preload.pending(upstream) for upstream, host in zip(availability.upstreams, hosts) if host["usable"]]
        unready = None if None in pending else "; ".join(f"Ollama is not ready: {reason}" for reason in pending)
    return State(
        unready, unusable, None if unusable else "; ".join(troubles) or None,
        {"reachable": any(host["reachable"] for host in hosts),
         "version": next((host["version"] for host in hosts if host["version"]), None),
         "model_present": any(host["model_present"] for host in hosts)},
        {"running": sum(host["running"] for host in hosts), "waiting": queue.waiting,
         "slots": sum(host["slots"] for host in hosts), "limit": queue.limit}, hosts)


def _host(upstream: Upstream, model: str, build: str | None, failed: str | None) -> dict[str, Any]:
    """One object of ``hosts`` in GET /health; ``failed`` says how its load at start failed, if it did."""
    probe, name = upstream.monitor.latest, normal(model)
    out_of_use, digest = upstream.out_of_use(model, build), probe.builds.get(name)
    loaded = probe.loaded.get(name) if probe.loaded is not None else None
    return {"host": upstream.host, "usable": out_of_use is None, "reachable": probe.reachable,
            "version": probe.version, "model_present": name in probe.builds,
            "loaded": None if probe.loaded is None else loaded is not None,
            "gpu_percent": loaded.gpu_percent if loaded else None,
            "context_length": loaded.context_length if loaded else None,
            "digest": digest[:SHOWN_DIGITS] if digest else None, "running": upstream.slots.held,
            "slots": upstream.slots.number,
            "reason": out_of_use or "; ".join(filter(None, (failed, upstream.complaint(model)))) or None}


def _missing(availability: Availability, models: Sequence[str]) -> list[str]:
    """A sentence for each of ``models`` that no Ollama has."""
    there = {name for upstream in availability.upstreams for name in upstream.monitor.latest.builds}
    return [str(availability.not_found_error(model)).removesuffix(".") for model in models
            if normal(model) not in there]
