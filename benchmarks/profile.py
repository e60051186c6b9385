"""Where the microseconds of a hit and of a miss go: ``python -m benchmarks.profile [what] [--calls]``.

The WSGI application runs in this process, patched by gevent as in production, on a prepared environ. The functions of
STAGES are wrapped; each is charged with its own time, without that of the stages inside it and of the wrappers.
"""

from gevent import monkey; monkey.patch_all()  # noqa: E702

import argparse  # noqa: E402
import cProfile  # noqa: E402
import functools  # noqa: E402
import importlib  # noqa: E402
import inspect  # noqa: E402
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
from .doors import DOORS as BODIES  # noqa: E402
from .report import text_of  # noqa: E402
from .stages import STAGES  # noqa: E402

ROUNDS, CALLS, MISSES, PIECES = 15, 300, 60, 100
DOORS = {"": "/generate", "chat-": "/v1/chat/completions", "ollama-": "/api/chat"}
WHAT = {f"{door}{kind}": (path, kind) for door, path in DOORS.items() for kind in ("hit", "miss")}
BARE = "flask"


class Stopwatch:
    """Own time and calls by stage, and the calls that were timed inside one; one stack a greenlet."""

    def __init__(self):
        self.seconds, self.calls, self.inside = defaultdict(float), defaultdict(int), defaultdict(int)
        self._stacks = defaultdict(list)

    def install(self, stages):
        """Wrap the functions named. Raises ImportError or AttributeError where there is none of a name."""
        for name, stage in stages.items():
            module, _, path = name.partition(":")
            *owners, last = path.split(".")
            owner = functools.reduce(getattr, owners, importlib.import_module(module))
            found = inspect.getattr_static(owner, last)
            timed = self.wrapped(getattr(owner, last) if isinstance(found, classmethod) else found, stage)
            setattr(owner, last, staticmethod(timed) if isinstance(found, classmethod) else timed)

    def wrapped(self, function, stage):
        """``function``, charged to ``stage``."""
        clock, stacks, seconds, calls, inside = time.thread_time, self._stacks, self.seconds, self.calls, self.inside

        @functools.wraps(function)
        def timed(*arguments, **named):
            stack = stacks[getcurrent()]
            stack.append([0.0, stage])
            started = clock()
            try:
                return function(*arguments, **named)
            finally:
                spent = clock() - started
                seconds[stage] += spent - stack.pop()[0]
                calls[stage] += 1
                if stack:
                    stack[-1][0] += spent
                    inside[stack[-1][1]] += 1
                else:
                    del stacks[getcurrent()]

        return timed

    def overhead(self, calls=100_000):
        """Seconds that a wrapper adds to (its own stage, the stage around it)."""
        probe = Stopwatch()
        inner = probe.wrapped(lambda: None, "inner")
        bare, started = (lambda: None), time.thread_time()
        for _ in range(calls):
            bare()
        plain = (time.thread_time() - started) / calls
        outer = probe.wrapped(lambda: [inner() for _ in range(calls)], "outer")
        outer()
        return probe.seconds["inner"] / calls - plain / 2, probe.seconds["outer"] / calls - plain / 2


def environ_of(body, path):
    """A request as gunicorn hands it over."""
    return {
        "REQUEST_METHOD": "POST", "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": "", "RAW_URI": path,
        "SERVER_NAME": "127.0.0.1", "SERVER_PORT": "8000", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "127.0.0.1",
        "REMOTE_PORT": "50000", "HTTP_HOST": "127.0.0.1:8000", "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body), "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http", "wsgi.version": (1, 0), "wsgi.multithread": True, "wsgi.multiprocess": False,
        "wsgi.run_once": False, "wsgi.input_terminated": True}


def call(app, body, path="/generate"):
    """One request; the body of its answer."""
    statuses = []
    answer = app(environ_of(body, path), lambda status, headers, exc_info=None: statuses.append(status))
    try:
        data = b"".join(answer)
    finally:
        if hasattr(answer, "close"):
            answer.close()
    if not statuses[0].startswith("200"):
        raise RuntimeError(f"{statuses[0]}: {data[:300]!r}")
    return data


def per_call(app, bodies, path="/generate"):
    """Seconds of the processor a call (threads of the log included), so that neighbours matter less."""
    started = time.process_time()
    for body in bodies:
        call(app, body, path)
    return (time.process_time() - started) / len(bodies)


def body_of(prompt, path="/generate"):
    """The request of a door."""
    return json.dumps(BODIES[path](prompt)).encode()


def bodies_of(what, salt=""):
    """As many requests as are measured, and their path."""
    path, kind = WHAT.get(what, ("/generate", "hit"))
    if kind == "hit":
        return [body_of("Why is the sky blue?", path)] * (CALLS * ROUNDS), path
    return [body_of(f"{salt} question {number}?", path) for number in range(MISSES * ROUNDS)], path


def service_of(stage):
    """The service, in this process, with the answers that are hit."""
    os.environ.update(LLAMA_API_OLLAMA_URL=stage.double.url, LLAMA_API_LOG_FILE=str(stage.home / "api.log"))
    os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", tempfile.mkdtemp(dir=stage.home))
    from llama_api.app import create_app
    service = create_app()
    for path in DOORS.values():
        call(service, body_of("Why is the sky blue?", path), path)
    return service


def bare_of(stage, service):
    """The bare view, which returns the bytes of the service's hit."""
    path = stage.home / "body"
    path.write_bytes(call(service, body_of("Why is the sky blue?")))
    os.environ["BENCH_BODY"] = str(path)
    from .bare import flask_app
    return flask_app


def compare(stage):
    """Microseconds of the processor of each kind of call, interleaved; the quickest figures for tuning."""
    service = service_of(stage)
    apps = {BARE: bare_of(stage, service), **dict.fromkeys(WHAT, service)}
    times = {what: [] for what in apps}
    for number in range(ROUNDS):
        for what, app in apps.items():
            bodies, path = bodies_of(what, f"Round {number}")
            times[what].append(per_call(app, bodies[::ROUNDS], path) * 1e6)
    base = min(times[BARE])
    title = f"In process: µs of the processor, {ROUNDS} interleaved rounds; misses of {PIECES} pieces"
    return {"title": title, "headers": ["what", "median", "least", "× bare Flask"],
            "rows": [[what, f"{statistics.median(found):.1f}", f"{min(found):.1f}", f"{min(found) / base:.2f}"]
                     for what, found in times.items()]}


def stages(stage, what):
    """The table of stages of one kind of call, or of the bare view."""
    service = service_of(stage)
    untouched = per_call(bare_of(stage, service) if what == BARE else service, *bodies_of(what, "Early")) * 1e6
    watch = Stopwatch()
    watch.install(STAGES)
    app = bare_of(stage, service) if what == BARE else service_of(stage)  # what it keeps of functions is wrapped too
    entry = watch.wrapped(app.wsgi_app, "Flask, werkzeug: everything else")
    for figures in (watch.seconds, watch.calls, watch.inside):
        figures.clear()
    bodies, path = bodies_of(what, "Late")
    per_call(entry, bodies, path)
    own, around = watch.overhead()
    count = len(bodies)
    seconds = {name: (spent - watch.calls[name] * own - watch.inside[name] * around) / count
               for name, spent in watch.seconds.items()}
    rows = [[name, f"{watch.calls[name] / count:.1f}", f"{spent * 1e6:.1f}"]
            for name, spent in sorted(seconds.items(), key=lambda item: -item[1])]
    rows.append(["all, without the wrappers", "1.0", f"{untouched:.1f}"])
    return {"title": f"Where the time of a {what} goes", "headers": ["stage", "calls", "own µs"], "rows": rows}


def calls(stage, what):
    """cProfile's table (it exaggerates small functions)."""
    service = service_of(stage)
    app = bare_of(stage, service) if what == BARE else service
    bodies, path = bodies_of(what, "Counted")
    profiler = cProfile.Profile()
    profiler.enable()
    per_call(app, bodies[::5], path)
    profiler.disable()
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).strip_dirs().sort_stats("tottime").print_stats(60)
    return text.getvalue()


def main():
    """Print the comparison, then the stages of what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.partition("\n")[0])
    parser.add_argument("what", nargs="?", choices=(*WHAT, BARE))
    parser.add_argument("--calls", action="store_true", help="cProfile instead of stages")
    arguments = parser.parse_args()
    quiet = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)  # the log goes to standard output
    try:
        with Stage() as stage:
            stage.upstream(record=0, tokens=PIECES)
            if arguments.calls:
                text = calls(stage, arguments.what)
            else:
                text = text_of(stages(stage, arguments.what) if arguments.what else compare(stage))
    finally:
        os.dup2(quiet, 1)
    print(text)


if __name__ == "__main__":
    main()
