"""The WSGI entry: ``llama_api.wsgi:app``."""

import sys

from .app import create_app
from .server import current_settings
from .settings import SettingsError

try:
    app = create_app(current_settings())
except SettingsError as error:
    sys.exit(f"llama_api does not start: {error}")
