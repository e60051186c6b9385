"""The baseline of a miss: a view that requests a stream from Ollama by a pooled session and joins its pieces."""

import json
import os

import requests
from flask import Flask, request

from .contenders import MODEL

UPSTREAM = os.environ["BENCH_UPSTREAM"]
CALLERS = 64

app = Flask(__name__, static_folder=None)
session = requests.Session()
session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=CALLERS))


@app.post("/generate")
def generate():
    """Make the service's request, piece by piece; no cache, sharing or limits."""
    body = {"model": MODEL, "prompt": request.get_json()["prompt"], "stream": True, "truncate": False,
            "options": {"num_predict": 100, "temperature": 0.7}}
    with session.post(UPSTREAM, json=body, stream=True) as response:
        response.raise_for_status()
        return {"response": "".join([json.loads(line)["response"] for line in response.iter_lines()])}


@app.get("/livez")
def livez():
    """Answer that it runs."""
    return "alive"
