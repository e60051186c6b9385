"""gunicorn's gevent worker, with listeners that lose no connection, patient writes, and refusals as problems."""

from functools import partial
from ssl import SSLContext
from typing import Any

import gevent
from gunicorn.config import Config
from gunicorn.workers.ggevent import GeventWorker

from .client_socket import PlainHTTP, connected
from .listener import ListenerName, Server
from .bad_requests import refuse_error, refuse_plain


class Worker(GeventWorker):
    """The worker of gunicorn_conf."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._servers: list[Server] = []
        self._tls: SSLContext | None = None

    def init_process(self) -> None:
        """Begin to serve."""
        settle(self.cfg)
        super().init_process()

    def server_class(self, listener: Any, *, spawn: Any, application: Any, log: Any, handler_class: Any, environ: Any,
                     ssl_context: SSLContext | None = None) -> Server:
        """The server on ``listener``; gunicorn calls this for each one. Arguments for a pywsgi server are ignored."""
        self._tls = ssl_context
        server = Server(listener, handle=partial(self.handle, ListenerName(listener)), spawn=spawn)
        if self.cfg.workers > 1:
            server.max_accept = 1  # so that one worker does not take all connections
        self._servers.append(server)
        return server

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve the requests of a connection."""
        try:
            client = connected(client, self._tls, self.cfg.suppress_ragged_eofs)
        except PlainHTTP as error:
            refuse_plain(error.client)
            error.client.close()
        except OSError as error:
            self.log.debug("No TLS came about: %s", error)
        else:
            super().handle(listener, client, addr)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer unreadable data; gunicorn would answer with a page and log the received bytes."""
        refuse_error(client, exc)

    def handle_exit(self, sig: Any, frame: Any) -> None:
        """At SIGTERM log the current requests and stop accepting, a second before gunicorn's own loop would."""
        super().handle_exit(sig, frame)
        if self._servers:
            under_way = self.wsgi.extensions["llama_api"].recorder.under_way
            self.log.info("Worker %s stops and waits for %s requests", self.pid, under_way)
            for server in self._servers:
                gevent.spawn(server.close)


def settle(cfg: Config) -> None:
    """Make each setting of ``cfg`` a plain attribute: a request reads dozens, each by two calls otherwise."""
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})
