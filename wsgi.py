"""The WSGI entry: ``gunicorn wsgi:app``."""

import sys

from llama_api.app import create_app
from llama_api.settings import SettingsError

try:
    app = create_app()
except SettingsError as error:
    sys.exit(f"llama_api does not start: {error}")
