"""gunicorn's command line: what this service cannot honour is refused at the start, not dropped in silence."""

from collections.abc import Iterator

from gunicorn.config import Config, ControlSocket

from ..settings import PREFIX
from .worker import Worker


def faults_of(cfg: Config) -> Iterator[str]:
    """A sentence for each option in ``cfg`` that cannot be honoured."""
    if cfg.preload_app:
        yield "--preload would leave the threads of the log in the master: leave it out"
    if not issubclass(cfg.worker_class, Worker):
        yield (f"--worker-class {cfg.worker_class_str} is not the service's own, which sees its clients leave: leave it"
               " out")
    if cfg.threads > 1:
        yield f"--threads {cfg.threads}: the worker has a greenlet for each connection and no threads: leave it out"
    if "h2" in cfg.http_protocols or cfg.http2_cleartext != "off":
        yield "HTTP/2 is not spoken here: put a proxy in front that does, see deploy/nginx"
    if cfg.control_socket != ControlSocket.default:
        yield "--control-socket: there is none: leave it out, and steer the master by signals"
    for name in sorted(cfg.env):
        if name.startswith((PREFIX, "WEB_CONCURRENCY", "PROMETHEUS_", "OTEL_")):
            yield f"--env {name}=… comes after the settings are read: set {name} in the environment instead"
