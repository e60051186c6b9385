"""llama_api: text from a Llama 3 8B behind Ollama by one plain call, cached, collapsed and measured."""

from typing import cast

import click
from flask import Flask
from flask_caching import Cache

from . import cli, docs, errors, routes, security, wire
from .cache import LRUCache
from .lean import LeanFlask
from .logs import JsonLog
from .parts import Parts
from .settings import Settings, SettingsError, in_force

__all__ = ["Settings", "SettingsError", "create_app"]


def create_app(settings: Settings | None = None) -> Flask:
    """Make the application; the settings come from the environment. Raises SettingsError that names every fault."""
    settings = settings or in_force()
    log = JsonLog(settings.log_file, settings.log_level)
    app = LeanFlask(__name__)
    app.json.sort_keys = False  # type: ignore[attr-defined]
    cache = Cache(app, config={
        "CACHE_TYPE": "llama_api.cache.LRUCache", "CACHE_DEFAULT_TIMEOUT": 0,
        "CACHE_OPTIONS": {"max_entries": settings.cache_max_entries, "max_bytes": settings.cache_max_bytes}})
    parts = Parts.assemble(settings, log, cast(LRUCache, cache.cache))
    app.extensions["llama_api"] = parts
    parts.metrics.init_app(app)
    app.before_request(wire.bound_sending)
    security.init_app(app, settings)
    errors.init_app(app)
    app.register_blueprint(routes.bp)
    docs.init_app(app, parts)
    cli.init_app(app)
    if click.get_current_context(silent=True) is None:  # else a command runs, whose output they would spoil
        for warning in settings.warnings():
            app.logger.warning(warning)
    return app
