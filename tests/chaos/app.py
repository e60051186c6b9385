"""The service with one path more: ``GET /_inside`` tells what this worker has under way, past Flask and every hook."""

import gc
import json
import os

import psutil
from greenlet import greenlet

from wsgi import app

_inner = app.wsgi_app
_parts = app.extensions["llama_api"]
_process = psutil.Process()


def _inside():
    claims = _parts.service._claims
    return {"flights": _parts.flights.count, "flights by key": len(_parts.flights._flights),
            "claims": len(claims._held) if claims else 0, "time limits": len(_parts.watchdog._limits),
            "running": _parts.gate.running, "waiting": _parts.gate.waiting,
            "requests": _parts.metrics.under_way}


def _size():
    gc.collect()
    return {"greenlets": sum(isinstance(found, greenlet) and bool(found) for found in gc.get_objects()),
            "threads": _process.num_threads(), "files": _process.num_fds(), "rss": _process.memory_info().rss}


def _with_inside(environ, start_response):
    if environ["PATH_INFO"] != "/_inside":
        return _inner(environ, start_response)
    connections = [_peer(connection) for connection in _process.net_connections("tcp") if connection.raddr]
    body = json.dumps({"pid": os.getpid(), "left": _inside(), "size": _size(), "peers": connections}).encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body))),
                              ("Connection", "close")])
    return [body]


def _peer(connection):
    return [connection.laddr.port, connection.raddr.port]


app.wsgi_app = _with_inside
