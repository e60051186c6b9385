"""The WSGI entry in the checkout: ``gunicorn wsgi:app``, ``flask --app wsgi``."""
from llama_api.wsgi import app  # noqa: F401
