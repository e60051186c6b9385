"""The WSGI entry: ``gunicorn wsgi:app``."""

import sys

from llama_api import SettingsError, create_app

try:
    app = create_app()
except SettingsError as error:
    sys.exit(f"llama_api does not start: {error}")
