"""How gunicorn serves the application: ``gunicorn -c python:llama_api.server.gunicorn_conf llama_api.wsgi:app``.

In the checkout ``gunicorn wsgi:app`` is the same.
"""

# The worker patches after its fork, which is too late for the imports of this file.
from gevent import monkey; monkey.patch_all()  # noqa: E702

import atexit  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

import gevent  # noqa: E402

from ..settings import SettingsError  # noqa: E402
from . import reloading  # noqa: E402
from .metrics_directory import make_directory  # noqa: E402

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"  # of the workers' figures; prometheus_client reads it when it is imported

try:
    settings = reloading.load()
except SettingsError as error:
    sys.exit(f"llama_api does not start: {error}")


def _remove_directory(master: int) -> None:
    if os.getpid() == master:  # not in a worker, which inherits this function
        shutil.rmtree(os.environ[DIRECTORY], ignore_errors=True)


if DIRECTORY not in os.environ:  # neither set by the operator nor before a reload
    os.environ[DIRECTORY] = make_directory()
    atexit.register(_remove_directory, os.getpid())

from prometheus_client import multiprocess  # noqa: E402

from .command_line import faults_of  # noqa: E402

bind = settings.bind
workers = settings.workers
# See benchmarks/README.md: gthread reads request heads with no deadline, so half-sent ones hold its threads forever.
worker_class = "llama_api.server.worker.Worker"
worker_connections = 2000 + 4 * (settings.queue + settings.parallel)  # well above all that may wait for the model
keepalive = 2  # seconds; under gevent also the time limit of a request's head
graceful_timeout = int(settings.timeout + settings.queue_timeout) + 5
timeout = 60  # seconds without a heartbeat, which a waiting worker sends too
forwarded_allow_ips = ""  # LLAMA_API_TRUSTED_PROXIES replaces it
control_socket_disable = True


def on_starting(server: Any) -> None:
    """Refuse unsupported options, and unload the code."""
    if faults := list(faults_of(server.cfg)):
        sys.exit("\n  ".join(["llama_api does not start, because these gunicorn options are not supported:", *faults]))
    if server.cfg.daemon:
        atexit.register(_remove_directory, os.getpid())  # the pid has changed by now
    shutil.chown(os.environ[DIRECTORY], server.cfg.uid, server.cfg.gid)
    on_reload(server)


def on_reload(server: Any) -> None:
    """Pass the addresses on to the new workers, and have them import the current code."""
    reloading.serve_on(server.cfg.bind, server.cfg.workers)
    reloading.forget_code()


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """Yield to the other connections, as a busy keep-alive connection never would."""
    gevent.sleep(0)


def post_worker_init(worker: Any) -> None:
    """Probe Ollama before the first request, and begin to sample."""
    running = worker.wsgi.extensions["llama_api"]
    running.fleet.state()
    running.reporter.start()
    # Ctrl-C reaches the whole process group; the master signals its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def worker_exit(server: Any, worker: Any) -> None:
    """Report the last requests, and send the last spans and metrics."""
    if worker.booted:
        running = worker.wsgi.extensions["llama_api"]
        running.reporter.close()
        if running.tracing is not None:
            running.tracing.close()


def child_exit(server: Any, worker: Any) -> None:
    """Forget the gauges of a worker that has ended."""
    multiprocess.mark_process_dead(worker.pid)
