"""The WSGI entry: ``gunicorn wsgi:app``."""

from llama_api import create_app

app = create_app()
