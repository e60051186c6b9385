"""The application, put together as a straight list."""

from typing import cast

import click
from flask import Flask
from flask_caching import Cache

from . import errors, page
from .api import docs
from .api import generate as routes
from .commands import cache as cli
from .http import connection as wire
from .http import security
from .cache.lru import LRUCache
from .http.flask_app import LeanFlask
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
        "CACHE_TYPE": "llama_api.cache.lru.LRUCache", "CACHE_DEFAULT_TIMEOUT": 0,
        "CACHE_OPTIONS": {"max_entries": settings.cache_max_entries, "max_bytes": settings.cache_max_bytes}})
    parts = Parts.assemble(settings, log, cast(LRUCache, cache.cache))
    app.extensions["llama_api"] = parts
    parts.metrics.init_app(app)
    app.before_request(wire.bound_sending)
    security.init_app(app, settings)
    errors.init_app(app)
    app.register_blueprint(routes.bp)
    app.register_blueprint(page.blueprint())
    docs.init_app(app, parts)
    cli.init_app(app)
    if click.get_current_context(silent=True) is None:  # else a command runs, whose output they would spoil
        for warning in settings.warnings():
            app.logger.warning(warning)
    return app
