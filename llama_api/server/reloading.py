"""A reload (HUP) takes the code and the settings as they are then; wrong settings leave the old ones in force."""

import sys
from dataclasses import fields

from ..settings import Settings, SettingsError, is_loopback
from . import reload_state

PACKAGE = __name__.partition(".")[0]


def load() -> Settings:
    """Read the settings and put them in force. Raises SettingsError, but not on a reload: then the old ones stay."""
    try:
        settings = Settings.from_env()
    except SettingsError as error:
        if not reload_state.settings:
            raise
        print(f"reloading with the previous settings, because {error}", file=sys.stderr)
        settings = in_force()
    reload_state.settings = {field.name: getattr(settings, field.name) for field in fields(Settings)}
    return settings


def in_force() -> Settings:
    """The settings that gunicorn was started or reloaded with, else those of the environment. Raises SettingsError."""
    if not reload_state.settings:
        return Settings.from_env()
    known = {field.name for field in fields(Settings)}  # those of newer code may be others
    return Settings(**{name: value for name, value in reload_state.settings.items() if name in known})


def serve_on(addresses: list[str], workers: int) -> None:
    """Put in force what gunicorn serves on; its command line wins over the settings."""
    exposed = (address for address in addresses if not is_loopback(address))
    reload_state.settings.update(bind=next(exposed, addresses[0]), workers=workers)


def forget_code() -> None:
    """Have every worker, and the next reload, import this package as it is by then."""
    for name in list(sys.modules):
        if name.partition(".")[0] == PACKAGE and name != reload_state.__name__:
            del sys.modules[name]
