"""What a miss is compared with: a view that asks Ollama for a stream by a pooled session and joins its pieces."""

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
    """Ask for what the service asks for, piece by piece; keep nothing, share nothing, limit nothing."""
    body = {"model": MODEL, "prompt": request.get_json()["prompt"], "stream": True, "truncate": False,
            "options": {"num_predict": 100, "temperature": 0.7}}
    with session.post(UPSTREAM, json=body, stream=True) as response:
        response.raise_for_status()
        return {"response": "".join([json.loads(line)["response"] for line in response.iter_lines()])}


@app.get("/livez")
def livez():
    """Answer that it runs."""
    return "alive"
