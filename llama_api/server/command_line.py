"""gunicorn's command line: unsupported options are refused at start rather than silently ignored."""

from collections.abc import Iterator

from gunicorn.config import Config, ControlSocket

from ..settings import PREFIX
from .worker import Worker


def faults_of(cfg: Config) -> Iterator[str]:
    """A sentence for each option in ``cfg`` that cannot be honoured."""
    if cfg.preload_app:
        yield "--preload would leave the threads of the log in the master; remove it"
    if not issubclass(cfg.worker_class, Worker):
        yield (f"--worker-class {cfg.worker_class_str} does not notice clients that leave, unlike the service's own;"
               " remove it")
    if cfg.threads > 1:
        yield f"--threads {cfg.threads} has no effect, because each connection has a greenlet; remove it"
    if "h2" in cfg.http_protocols or cfg.http2_cleartext != "off":
        yield "HTTP/2 is not supported; put a proxy that supports it in front, see deploy/nginx"
    if cfg.control_socket != ControlSocket.default:
        yield "--control-socket is not supported; remove it, and control the master by signals"
    for name in sorted(cfg.env):
        if name.startswith((PREFIX, "WEB_CONCURRENCY", "PROMETHEUS_", "OTEL_")):
            yield f"--env {name}=… takes effect after the settings are read; set {name} in the environment instead"
