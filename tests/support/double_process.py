"""Doubles of Ollama as processes of their own, which can be killed and stopped as a real one can."""

import signal
import subprocess
import sys
from contextlib import contextmanager

from tests.support.double import DoubleRemote
from tests.support.gunicorn_server import ROOT, free_port, until


class DoubleProcess(DoubleRemote):
    """A double that can die, hang and come back on its port."""

    def __init__(self, **controls):
        self._controls, self._port = controls, free_port()
        self.process = None
        self.revive()

    @property
    def host(self):
        """Its name in the service."""
        return f"127.0.0.1:{self.port}"

    def revive(self):
        """Start the process again, if it has ended."""
        if self.process is not None and self.process.poll() is None:
            return
        self.close()
        command = [sys.executable, "-m", "tests.support.double", "--port", str(self._port)]
        options = [text for name, value in self._controls.items()
                   for text in (f"--{name.replace('_', '-')}", str(value))]
        self.process = subprocess.Popen([*command, *options], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        super().__init__(self.process.stdout.readline().strip())

    def kill(self):
        """End it as a crash would."""
        self.process.kill()
        self.process.wait()

    @contextmanager
    def frozen(self):
        """Stop the process inside the block: its connections stay, and nothing comes."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)
            until(self.counters_come, what="the double")

    def counters_come(self):
        """Whether it answers."""
        try:
            return self.ask("counters")
        except OSError:
            return None

    def close(self):
        """End it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()
            self.process = None


@contextmanager
def double_processes(count, **controls):
    """So many doubles, each a process of its own."""
    doubles = []
    try:
        doubles += (DoubleProcess(**controls) for _ in range(count))
        yield doubles
    finally:
        for double in doubles:
            double.close()
