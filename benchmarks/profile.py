"""Where the microseconds of a hit and of a miss go: ``python -m benchmarks.profile [hit|miss|flask] [--calls]``.

The WSGI application runs in this process, patched by gevent as in production, on a prepared environ. The functions of
STAGES are wrapped; each is charged with its own time, without that of the stages inside it and of the wrappers.
"""

from gevent import monkey; monkey.patch_all()  # noqa: E702

import argparse  # noqa: E402
import cProfile  # noqa: E402
import functools  # noqa: E402
import importlib  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import pstats  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections import defaultdict  # noqa: E402

from gevent import getcurrent  # noqa: E402

from .contenders import Stage  # noqa: E402
from .report import text_of  # noqa: E402

ROUNDS, CALLS, MISSES = 15, 1_000, 150
FLASK = {
    "flask.app:Flask.request_context": "Flask: make the request context",
    "flask.ctx:AppContext.push": "Flask: push contexts", "flask.ctx:RequestContext.push": "Flask: push contexts",
    "flask.ctx:AppContext.pop": "Flask: pop contexts", "flask.ctx:RequestContext.pop": "Flask: pop contexts",
    "flask.ctx:RequestContext.match_request": "werkzeug: match the URL",
    "flask.app:Flask.preprocess_request": "Flask: run the before-request functions",
    "flask.app:Flask.process_response": "Flask: run the after-request functions",
    "flask.app:Flask.dispatch_request": "Flask: dispatch and view",
    "werkzeug.wrappers.request:Request.get_json": "werkzeug: get_json",
    "werkzeug.wrappers.response:Response.__init__": "werkzeug: make the response",
    "werkzeug.wrappers.response:Response.__call__": "werkzeug: send the response"}
STAGES = {**FLASK,
          "llama_api.metrics:Metrics._begin": "request id and clock",
          "llama_api.routes:read_json_body": "read the body, within its time",
          "llama_api.concurrency:Watchdog.limit": "watchdog of the body",
          "llama_api.routes:parse_object": "parse JSON",
          "marshmallow.schema:Schema.load": "validate (marshmallow)",
          "llama_api.metrics:Metrics.asked": "note the question (SHA-256 of the prompt)",
          "llama_api.service:key_for": "cache key",
          "llama_api.cache:AnswerCache.get": "cache: get", "llama_api.cache:AnswerCache.set": "cache: set",
          "llama_api.service:Service.generate": "service: choose",
          "llama_api.health:Monitor.stale_since": "digest of the model",
          "llama_api.presentation:plain": "present: JSON", "llama_api.presentation:_label": "present: cache headers",
          "llama_api.metrics:Metrics.replied": "figures of the reply",
          "llama_api.metrics:Metrics._record": "count (Prometheus)",
          "llama_api.logs:encode": "log: encode", "llama_api.logs:LineWriter.put": "log: hand to the writers",
          "llama_api.security:_harden": "security headers",
          "llama_api.flights:Flights.board": "flight: board", "llama_api.service:FlightReply.answer": "WAIT for it",
          "llama_api.service:Service._fly": "flight: produce", "llama_api.gate:Gate.slot": "gate",
          "llama_api.ollama:OllamaClient.generate": "Ollama: our client",
          "requests.sessions:Session.prepare_request": "requests: prepare",
          "requests.sessions:Session.send": "requests: send",
          "urllib3.connectionpool:HTTPConnectionPool.urlopen": "urllib3",
          "http.client:HTTPConnection.getresponse": "http.client: read the head (and WAIT)",
          "llama_api.metrics:Metrics.generation_ended": "count (Prometheus)"}


class Stopwatch:
    """Own time and calls by stage; one stack a greenlet."""

    def __init__(self):
        self.seconds, self.calls = defaultdict(float), defaultdict(int)
        self._stacks = defaultdict(list)

    def install(self, stages):
        """Wrap the functions named, those that there are; returns the names of those that there are not."""
        missing = []
        for name, stage in stages.items():
            module, _, path = name.partition(":")
            *owners, last = path.split(".")
            try:
                owner = functools.reduce(getattr, owners, importlib.import_module(module))
                setattr(owner, last, self._wrapped(getattr(owner, last), stage))
            except (ImportError, AttributeError):
                missing.append(name)
        return missing

    def _wrapped(self, function, stage):
        clock, stacks, seconds, calls = time.perf_counter, self._stacks, self.seconds, self.calls

        @functools.wraps(function)
        def timed(*arguments, **named):
            stack = stacks[getcurrent()]
            stack.append(0.0)
            started = clock()
            try:
                return function(*arguments, **named)
            finally:
                spent = clock() - started
                seconds[stage] += spent - stack.pop()
                calls[stage] += 1
                if stack:
                    stack[-1] += spent
                else:
                    del stacks[getcurrent()]

        return timed

    def overhead(self, calls=100_000):
        """Seconds that a wrapper adds to (its own stage, the stage around it)."""
        probe = Stopwatch()
        inner = probe._wrapped(lambda: None, "inner")
        bare, started = (lambda: None), time.perf_counter()
        for _ in range(calls):
            bare()
        plain = (time.perf_counter() - started) / calls
        outer = probe._wrapped(lambda: [inner() for _ in range(calls)], "outer")
        outer()
        return probe.seconds["inner"] / calls - plain / 2, probe.seconds["outer"] / calls - plain / 2


def environ_of(body):
    """A request as gunicorn hands it over."""
    return {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/generate", "SCRIPT_NAME": "", "QUERY_STRING": "",
        "RAW_URI": "/generate",
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "50000", "HTTP_HOST": "127.0.0.1:8000", "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body), "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http", "wsgi.version": (1, 0), "wsgi.multithread": True, "wsgi.multiprocess": False,
        "wsgi.run_once": False, "wsgi.input_terminated": True}


def call(app, body):
    """One request; the body of its answer."""
    statuses = []
    answer = app(environ_of(body), lambda status, headers, exc_info=None: statuses.append(status))
    try:
        data = b"".join(answer)
    finally:
        if hasattr(answer, "close"):
            answer.close()
    if not statuses[0].startswith("200"):
        raise RuntimeError(f"{statuses[0]}: {data[:300]!r}")
    return data


def per_call(app, bodies, clock=time.process_time):
    """Seconds a call; by default of the processor (threads of the log included), so that neighbours matter less."""
    started = clock()
    for body in bodies:
        call(app, body)
    return (clock() - started) / len(bodies)


def hit_body():
    """The request of a hit."""
    return json.dumps({"prompt": "Why is the sky blue? [[tokens=90]]"}).encode()


def applications(stage):
    """The service and the bare view, the latter returning the bytes of the former's hit."""
    os.environ.update(LLAMA_API_OLLAMA_URL=stage.double.url, LLAMA_API_LOG_FILE=str(stage.home / "api.log"))
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(dir=stage.home))
    from llama_api.app import create_app
    service = create_app()
    call(service, hit_body())
    path = stage.home / "body"
    path.write_bytes(call(service, hit_body()))
    os.environ["BENCH_BODY"] = str(path)
    from .bare import flask_app
    return service, flask_app


def compare(stage):
    """Microseconds a call of the service's hit and of the bare view, interleaved; the quickest figure for tuning."""
    service, bare = applications(stage)
    times = {"bare": [], "hit": []}
    for _ in range(ROUNDS):
        for name, app in (("bare", bare), ("hit", service)):
            times[name].append(per_call(app, [hit_body()] * CALLS) * 1e6)
    ours, base = min(times["hit"]), min(times["bare"])
    return {"title": f"In process, without the server: µs of the processor, {ROUNDS} interleaved rounds of {CALLS:,}",
            "headers": ["what", "median", "least", "× bare Flask"],
            "rows": [[name, f"{statistics.median(found):.1f}", f"{min(found):.1f}", f"{best / base:.2f}"]
                     for name, found, best in (("bare Flask view", times["bare"], base),
                                               ("a hit", times["hit"], ours))]}


def stages(stage, what):
    """The table of stages for a hit, a miss or the bare view."""
    service, bare = applications(stage)
    app = bare if what == "flask" else service
    if what == "miss":
        bodies = [json.dumps({"prompt": f"Question {number}?"}).encode() for number in range(MISSES * ROUNDS)]
    else:
        bodies = [hit_body()] * (CALLS * ROUNDS)
    untouched = per_call(app, [body.replace(b"Question", b"Early question") for body in bodies]) * 1e6
    watch = Stopwatch()
    watch.install(STAGES)
    entry = watch._wrapped(app.wsgi_app, "Flask, werkzeug: everything else")
    per_call(entry, [body.replace(b"Question", b"Late question") for body in bodies])
    own, around = watch.overhead()
    count = len(bodies)
    inner = {"Flask, werkzeug: everything else": sum(watch.calls.values()) - count}
    rows = [[name, f"{watch.calls[name] / count:.1f}",
             f"{(seconds - watch.calls[name] * own - inner.get(name, 0) * around) / count * 1e6:.1f}"]
            for name, seconds in sorted(watch.seconds.items(), key=lambda item: -item[1])]
    rows.append(["all, without the wrappers", "1.0", f"{untouched:.1f}"])
    return {"title": f"Where the time of a {what} goes", "headers": ["stage", "calls", "own µs"], "rows": rows}


def calls(stage, what):
    """cProfile's table (it exaggerates small functions)."""
    service, bare = applications(stage)
    app = bare if what == "flask" else service
    profiler = cProfile.Profile()
    profiler.enable()
    per_call(app, [hit_body()] * CALLS * 3)
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(45)
    return text.getvalue()


def main():
    """Print the comparison, then the stages of what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=("hit", "miss", "flask"))
    parser.add_argument("--calls", action="store_true", help="cProfile instead of stages")
    arguments = parser.parse_args()
    quiet = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # the log goes to standard output
    try:
        with Stage() as stage:
            stage.upstream(record=0)
            if arguments.calls:
                text = calls(stage, arguments.what)
            else:
                text = text_of(stages(stage, arguments.what) if arguments.what else compare(stage))
    finally:
        os.dup2(quiet, 1)
    print(text)


if __name__ == "__main__":
    main()
