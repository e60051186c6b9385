"""The service with one path more: ``GET /_inside`` tells what this worker has under way, past Flask and every hook."""

import gc
import json
import os
from collections import Counter

import psutil
from greenlet import greenlet

from llama_api.core.flights import Flight
from llama_api.upstreams.journey import Journey
from llama_api.upstreams.waiter import Waiter
from wsgi import app

_inner = app.wsgi_app
_parts = app.extensions["llama_api"]
_process = psutil.Process()


def _inside():
    """What is under way, and the objects that live as long as something is."""
    queue = _parts.fleet.state().queue
    alive = Counter(type(found) for found in gc.get_objects())
    return {"running": queue["running"], "waiting": queue["waiting"], "requests": _parts.recorder.under_way,
            "flights": alive[Flight], "waiters": alive[Waiter], "journeys": alive[Journey]}


def _size():
    return {"greenlets": sum(isinstance(found, greenlet) and bool(found) for found in gc.get_objects()),
            "threads": _process.num_threads(), "files": _process.num_fds(), "rss": _process.memory_info().rss}


def _with_inside(environ, start_response):
    if environ["PATH_INFO"] != "/_inside":
        return _inner(environ, start_response)
    gc.collect()
    connections = [_peer(connection) for connection in _process.net_connections("tcp") if connection.raddr]
    body = json.dumps({"pid": os.getpid(), "left": _inside(), "size": _size(), "peers": connections}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body))),
                              ("Connection", "close")])
    return [body]


def _peer(connection):
    return [connection.laddr.port, connection.raddr.port]


app.wsgi_app = _with_inside
