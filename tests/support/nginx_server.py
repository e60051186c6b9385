"""A real nginx with the configuration of deploy/ before services of the tests, and clients that load it."""

import itertools
import os
import socket
import subprocess
import threading

from tests.support.certificates import certify
from tests.support.double import answer_for
from tests.support.gunicorn_server import ROOT, Server, free_port, until
from tests.support.programs import find

CLIENTS = 12
PROGRAM = find("nginx")
MAIN = """
daemon off; worker_processes 2; pid {home}/pid; error_log {home}/error.log; {user}
events {{ worker_connections 2048; }}
http {{
    access_log {home}/access.log;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    include {home}/llama-api*.conf;
}}
"""


class Nginx(Server):
    """nginx on free loopback ports, with the files of deploy/nginx before two services; requests go as to a Server.

    ``front`` is the file that says how it listens: plain.conf, or tls.conf with a certificate for localhost.
    """

    def __init__(self, directory, services, front="plain.conf"):
        super().__init__(directory, {})
        first, second = services
        self.tls_port = free_port()
        self.certificate = None  # with tls.conf, the one to trust
        (self.directory / "snippets").mkdir()
        moved = {"listen 80;": f"listen 127.0.0.1:{self.port};", "listen 443 ": f"listen 127.0.0.1:{self.tls_port} ",
                 "/etc/ssl/llama-api": str(self.directory), ":8001": f":{first.port}", ":8002": f":{second.port}"}
        for name, place in (("upstream.conf", "llama-api-upstream.conf"), ("proxy.conf", "snippets/llama-api.conf"),
                            (front, "llama-api.conf")):
            text = (ROOT / "deploy" / "nginx" / name).read_text()
            for shipped, ours in moved.items():
                text = text.replace(shipped, ours)
            (self.directory / place).write_text(text)
        if front == "tls.conf":
            self.certificate, _ = certify(self.directory)
        user = "user root;" if os.geteuid() == 0 else ""  # its workers write to our directory
        (self.directory / "nginx.conf").write_text(MAIN.format(home=self.directory, user=user))

    def __enter__(self):
        with open(self.directory / "stderr", "ab") as err:
            self.process = subprocess.Popen([PROGRAM, "-p", self.directory, "-c", self.directory / "nginx.conf",
                                             "-e", self.directory / "error.log"], stderr=err, start_new_session=True)
        until(self._listens, what="nginx")
        assert not self.stderr, self.stderr  # no warning about the configuration either
        return self

    def __exit__(self, *details):
        self.process.terminate()
        self.wait()

    def _listens(self):
        assert self.process.poll() is None, self.stderr
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


class Load:
    """Clients that ask all the time, plain and streamed, new and old questions; ``failures`` is what went wrong."""

    def __init__(self, server):
        self._server, self._end, self._numbers = server, threading.Event(), itertools.count()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        self.answers, self.failures = 0, []

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *details):
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        while not self._end.is_set():
            number = next(self._numbers)
            prompt = f"Load {number}?" if number % 2 else f"Load {number % 20}?"
            try:
                reply = self._server.ask(prompt, stream=number % 3 == 0)
                if reply.status != 200 or reply.text != answer_for(prompt, n=100):
                    self.failures.append((reply.status, reply.body[:200]))
                self.answers += 1
            except Exception as error:
                self.failures.append(repr(error))

    def goes_on(self, count=40):
        """Wait until ``count`` more answers have come."""
        wanted = self.answers + count
        until(lambda: self.answers >= wanted or self.failures, what=f"answer {wanted}")
