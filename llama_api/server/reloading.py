"""A reload (HUP) imports the current code and reads the settings again; invalid ones leave the old ones in force."""

import sys
from dataclasses import fields

from ..settings import Settings, SettingsError, is_loopback
from . import reload_state

PACKAGE = __name__.partition(".")[0]


def load() -> Settings:
    """Read the settings and put them in force. Raises SettingsError, except on a reload, which keeps the old ones."""
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        if not reload_state.settings:
            raise
        print(f"reloading with the previous settings, because {error}", file=sys.stderr)
        settings = current_settings()
    reload_state.settings = {field.name: getattr(settings, field.name) for field in fields(Settings)}
    return settings


def current_settings() -> Settings:
    """The settings that gunicorn was started or reloaded with, else those of the environment. Raises SettingsError."""
    if not reload_state.settings:
        return Settings.from_env()
    known = {field.name for field in fields(Settings)}  # newer code may have other fields
    return Settings(**{name: value for name, value in reload_state.settings.items() if name in known})


def serve_on(addresses: list[str], workers: int) -> None:
    """Put gunicorn's addresses and workers in force; its command line overrides the settings."""
    exposed = (address for address in addresses if not is_loopback(address))
    reload_state.settings.update(bind=next(exposed, addresses[0]), workers=workers)


def forget_code() -> None:
    """Make every new worker, and the next reload, import the package again."""
    for name in list(sys.modules):
        if name.partition(".")[0] == PACKAGE and name != reload_state.__name__:
            del sys.modules[name]
