"""How gunicorn serves the application. ``gunicorn wsgi:app`` reads this file by itself."""

# The worker patches after its fork, which is too late for what this file imports.
from gevent import monkey; monkey.patch_all()  # noqa: E702

import atexit  # noqa: E402
import os  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402

import gevent  # noqa: E402

# Workers share this directory: their figures (prometheus_client reads the variable on import) and the slots' locks.
if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="llama_api-")
    atexit.register(lambda master=os.getpid(): os.getpid() == master and shutil.rmtree(
        os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True))

from prometheus_client import multiprocess  # noqa: E402

from llama_api.settings import SettingsError, load  # noqa: E402

try:
    settings = load()
except SettingsError as error:
    sys.exit(f"llama_api does not start: {error}")

bind = settings.bind
workers = settings.workers
# See benchmarks/README.md: gthread reads request heads with no deadline, so half-sent ones hold its threads for ever.
worker_class = "llama_api.server.worker.Worker"
worker_connections = 2000 + 4 * (settings.queue + settings.parallel)  # well above all that may wait for the model
keepalive = 2  # seconds; under gevent also the time limit of a request's head
graceful_timeout = int(settings.timeout + settings.queue_timeout) + 5
timeout = 60  # seconds without a sign of life, which a waiting worker gives as well
forwarded_allow_ips = ""  # LLAMA_API_TRUSTED_PROXIES says whom to believe
control_socket_disable = True


def post_request(worker, req, environ, resp):
    """Let the other connections have their turn: a busy kept-alive one would never yield."""
    gevent.sleep(0)


def post_worker_init(worker):
    """Look at Ollama before the first request does."""
    worker.wsgi.extensions["llama_api"].fleet.state()
    # A Ctrl-C reaches the whole terminal's group; the master tells its workers what to do about it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def child_exit(server, worker):
    """Forget the gauges of a worker that has ended."""
    multiprocess.mark_process_dead(worker.pid)
