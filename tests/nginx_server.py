"""A real nginx with the configuration of deploy/, before services of the tests."""

import os
import shutil
import subprocess

from tests.gunicorn_server import ROOT, Server, until

PROGRAM = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
MAIN = """
daemon off; worker_processes 2; pid {home}/pid; error_log {home}/error.log; {user}
events {{ worker_connections 2048; }}
http {{
    access_log {home}/access.log;
    client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;
    include {home}/llama-api.conf;
}}
"""


class Nginx(Server):
    """nginx on a free loopback port, with deploy/nginx.conf before two services; requests are sent as to a Server."""

    def __init__(self, directory, services):
        super().__init__(directory, {})
        first, second = services
        text = (ROOT / "deploy" / "nginx.conf").read_text()
        for shipped, ours in (("listen 80;", f"listen 127.0.0.1:{self.port};"), (":8001", f":{first.port}"),
                              (":8002", f":{second.port}")):
            assert text.count(shipped) == 1, shipped
            text = text.replace(shipped, ours)
        (self.directory / "llama-api.conf").write_text(text)
        user = "user root;" if os.geteuid() == 0 else ""  # its workers write to our directory
        (self.directory / "nginx.conf").write_text(MAIN.format(home=self.directory, user=user))

    def __enter__(self):
        with open(self.directory / "stderr", "ab") as err:
            self.process = subprocess.Popen([PROGRAM, "-p", self.directory, "-c", self.directory / "nginx.conf",
                                             "-e", self.directory / "error.log"], stderr=err, start_new_session=True)
        until(self._answers, what="nginx")
        return self

    def __exit__(self, *details):
        self.process.terminate()
        self.wait()
