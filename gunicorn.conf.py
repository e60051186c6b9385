"""The configuration that gunicorn finds by itself: ``gunicorn wsgi:app`` in this directory."""
from llama_api.server.gunicorn_conf import *  # noqa: F401, F403
