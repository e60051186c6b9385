"""The application, assembled as a straight list."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import click
from flask import Flask
from flask_caching import Cache

from . import page
from .api import admin, docs, generate, health, ollama, openai, responder, schemas
from .cache import AnswerCache, GuardedStore, LRUCache, open_store
from .core import Embeddings, Flights, Models, Service
from .http import Application, Recorder, is_monitoring, problems, security
from .logs import JsonLog
from .metrics import Activity, History, Machine, Metrics, Reporter, Tracing, open_tracing
from .ollama import OllamaClient
from .settings import Settings
from .upstreams import Breaker, Fleet, Leases, Monitor, Slots, Upstream
from .waiting import Watchdog


@dataclass(frozen=True, slots=True)
class Running:
    """The parts of an application that gunicorn's hooks need: ``app.extensions["llama_api"]``."""

    recorder: Recorder
    fleet: Fleet
    reporter: Reporter
    tracing: Tracing | None


def create_app(settings: Settings | None = None) -> Flask:
    """Make the application; the settings come from the environment. Raises SettingsError that lists every fault."""
    settings = settings or Settings.from_env()
    log = JsonLog(settings.log_file, settings.log_level)
    app = Application(__name__)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    metrics, machine, watchdog, flights = Metrics(settings), Machine(), Watchdog(), Flights()
    cache = _cache(app, settings, metrics)
    tracing = open_tracing(settings, is_monitoring)
    fleet = _fleet(settings, metrics, watchdog, cache, tracing)
    models = Models(fleet, settings.model, settings.models, settings.model_aliases)
    service = Service(fleet, cache, flights, settings.cache_ttl, settings.cache_stale_if_error)
    embeddings = Embeddings(service, fleet, cache, flights)
    shared_responder = responder.Responder(settings, service, embeddings, machine, watchdog)
    request_schema = schemas.GenerateRequest(models, settings.max_tokens_limit, settings.num_ctx)
    openai_requests = openai.OpenAIRequests(models, settings.max_tokens_limit, settings.num_ctx)
    ollama_requests = ollama.OllamaRequests(models, settings.max_tokens_limit, settings.num_ctx)
    cache.when_purged(shared_responder.forget)
    fleet.when_removed(shared_responder.forget)  # with MODELS=* it is not served any more

    directory = Path(shared) / "stats" if (shared := os.environ.get("PROMETHEUS_MULTIPROC_DIR")) else None
    activity, history = Activity(flights, is_monitoring, directory), History(metrics.samples, directory)
    reporter = Reporter(activity, history, lambda: metrics.refresh(cache, fleet))
    recorder = Recorder(metrics, activity, log, tracing)
    app.extensions["llama_api"] = Running(recorder, fleet, reporter, tracing)
    recorder.init_app(app)
    security.init_app(app, settings)
    problems.init_app(app, {**openai.WRITERS, **ollama.WRITERS})
    app.register_blueprint(generate.blueprint(shared_responder, request_schema))
    app.register_blueprint(openai.blueprint(shared_responder, openai_requests, models))
    app.register_blueprint(ollama.blueprint(shared_responder, ollama_requests, models, fleet))
    app.register_blueprint(health.blueprint(fleet, cache, settings.model))
    app.register_blueprint(admin.blueprint(settings, service, cache, fleet, metrics))
    files = page.PageFiles()
    app.register_blueprint(page.page.blueprint(files))
    app.register_blueprint(page.problems.blueprint(files))
    app.register_blueprint(page.stats.blueprint(page.Snapshot(
        settings, history, activity, lambda: health.health_of(fleet, cache, settings.model)), activity, reporter))
    app.register_blueprint(docs.blueprint(settings, request_schema))
    _warn(app, settings)
    return app


def _warn(app: Flask, settings: Settings) -> None:
    """Log the warnings about settings, except in a command, whose output they would spoil."""
    if click.get_current_context(silent=True) is None:
        for warning in settings.warnings():
            app.logger.warning(warning)


def _fleet(settings: Settings, metrics: Metrics, watchdog: Watchdog, cache: AnswerCache,
           tracing: Tracing | None) -> Fleet:
    upstreams = []
    for host in settings.ollamas:
        client = OllamaClient(host.url, settings, watchdog, host.slots)
        slots = Slots(host.url, host.slots or settings.parallel)
        upstreams.append(Upstream(host.name, client, Monitor(client, host.name), Breaker(), slots))
    models = (settings.model, *(model for model in settings.models if model != "*"))
    leases = None
    if cache.store is not None and cache.renewer is not None and cache.store.leases:
        leases = Leases(cache.renewer, cache.store)
    return Fleet(upstreams, models, metrics, settings.queue, settings.queue_timeout, settings.timeout,
                 settings.preload, leases, tracing)


def _cache(app: Flask, settings: Settings, metrics: Metrics) -> AnswerCache:
    front = Cache(app, config={
        "CACHE_TYPE": "llama_api.cache.LRUCache", "CACHE_DEFAULT_TIMEOUT": 0,
        "CACHE_OPTIONS": {"max_entries": settings.cache_max_entries, "max_bytes": settings.cache_max_bytes}}).cache
    store = None
    if settings.cache_url != "memory://" and settings.cache_max_entries:
        store = GuardedStore(open_store(settings.cache_url, settings.cache_max_entries, settings.cache_max_bytes),
                             on_error=metrics.store_failed)
    return AnswerCache(cast(LRUCache, front), store, settings.cache_ttl, settings.cache_stale_if_error,
                       on_write=metrics.cache_written)
