"""A real Prometheus with the files of deploy/monitoring, quicker than there, before services of the tests."""

import json
import math
import re
import subprocess
import urllib.error
import urllib.parse
import urllib.request

from tests.support.gunicorn_server import ROOT, free_port, until
from tests.support.programs import needed

MONITORING = ROOT / "deploy" / "monitoring"


class Prometheus:
    """Looks at ``services`` and its rules twice a second, and fires an alert as soon as it holds."""

    def __init__(self, directory, services, key):
        self.directory, self.port, self.process = directory, free_port(), None
        directory.mkdir()
        config = (MONITORING / "prometheus.yml").read_text()
        assert config.count(": 15s") == 2
        (directory / "prometheus.yml").write_text(config.replace(": 15s", ": 500ms"))
        (directory / "rules.yml").write_text(re.sub(r"(?m)^ +for: .*\n", "", (MONITORING / "rules.yml").read_text()))
        (directory / "targets.yml").write_text(json.dumps(
            [{"targets": [f"127.0.0.1:{service.port}" for service in services]}]))
        (directory / "key").write_text(key)

    def __enter__(self):
        with open(self.directory / "stderr", "wb") as err:
            self.process = subprocess.Popen(
                [needed("prometheus"), f"--config.file={self.directory}/prometheus.yml",
                 f"--storage.tsdb.path={self.directory}/data", f"--web.listen-address=127.0.0.1:{self.port}"],
                stdout=err, stderr=err)
        until(self._ready, what="Prometheus")
        return self

    def __exit__(self, *details):
        self.process.terminate()
        self.process.wait()

    def _ready(self):
        assert self.process.poll() is None, (self.directory / "stderr").read_text()
        try:
            return self._get("/-/ready")
        except urllib.error.URLError:  # an HTTPError is one
            return False

    def _get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as response:
            return response.read()

    def ask(self, path, **parameters):
        """The ``data`` of an answer of its API."""
        return json.loads(self._get(f"/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))["data"]

    def values(self, expression):
        """The numbers that ``expression`` has now; NaN, as of a ratio to nothing, is none."""
        found = (float(sample["value"][1]) for sample in self.ask("query", query=expression)["result"])
        return [value for value in found if not math.isnan(value)]

    @property
    def firing(self):
        """The names of the alerts that fire."""
        return {alert["labels"]["alertname"] for alert in self.ask("alerts")["alerts"] if alert["state"] == "firing"}
