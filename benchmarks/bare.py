"""The baselines of a hit: a Flask view and a WSGI application that only return its bytes."""

import os
import pathlib

from flask import Flask, Response, request

BODY = pathlib.Path(os.environ["BENCH_BODY"]).read_bytes()
HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(BODY)))]

flask_app = Flask(__name__, static_folder=None)


@flask_app.post("/generate")
def generate():
    """Parse the JSON, return the bytes."""
    request.get_json()
    return Response(BODY, mimetype="application/json")


@flask_app.get("/livez")
def livez():
    """Answer that it runs."""
    return "alive"


def raw_app(environ, start_response):
    """Read the body, return the bytes."""
    environ["wsgi.input"].read()
    start_response("200 OK", HEADERS)
    return [BODY]
