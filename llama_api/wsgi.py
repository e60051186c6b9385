"""The WSGI entry: ``llama_api.wsgi:app``."""

import sys

from .app import create_app
from .server import in_force
from .settings import SettingsError

try:
    app = create_app(in_force())
except SettingsError as error:
    sys.exit(f"llama_api does not start: {error}")
