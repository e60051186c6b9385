"""The image and what compose starts, as far as files can be checked without Docker."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from llama_api.settings import Settings
from tests.support.gunicorn_server import ROOT, free_port

DOCKER = ROOT / "deploy" / "docker"
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def compose():
    """The content of compose.yaml."""
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def test_hadolint_has_no_word_to_say_against_the_dockerfile():
    """Not even at its lowest level."""
    subprocess.run([BIN / "hadolint", "--failure-threshold", "style", DOCKER / "Dockerfile"], check=True)


def test_the_compose_files_are_valid():
    """By the schema of the Compose Specification."""
    subprocess.run([BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec",
                    *sorted(DOCKER.glob("compose*.yaml"))], check=True)


def test_docker_gets_what_the_image_copies_and_no_more():
    """.dockerignore lets in the sources of COPY, which are there, and nothing else."""
    sources = {name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", (DOCKER / "Dockerfile").read_text(), re.M)
               for name in line.split()}
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert sources == let_in and all((ROOT / name).exists() for name in sources)


def test_every_file_that_compose_mounts_is_there(compose):
    """Docker would make a directory in the place of a missing one."""
    mounted = [volume.split(":")[0] for service in compose["services"].values()
               for volume in service.get("volumes", []) if volume.startswith(".")]
    missing = [name for name in mounted if not (DOCKER / name).is_file()]
    assert mounted and not missing


def test_compose_lets_each_of_us_finish(compose):
    """The grace is longer than the longest request, and the two are known to nginx and Prometheus by their names."""
    ours = {name: service for name, service in compose["services"].items() if name.startswith("llama-api-")}
    seconds = {int(service["stop_grace_period"].removesuffix("s")) for service in ours.values()}
    assert len(ours) == 2 and min(seconds) > Settings().timeout + Settings().queue_timeout + 5
    upstream = (DOCKER / "upstream.conf").read_text()
    targets, = yaml.safe_load(compose["configs"]["targets"]["content"])
    assert set(re.findall(r"server (\S+) resolve", upstream)) == set(targets["targets"]) == {
        f"{name}:8000" for name in ours}


def test_nginx_in_compose_balances_as_it_does_elsewhere():
    """The two upstream.conf differ in the servers' addresses alone."""
    def blocks(path):
        text = re.sub(r" *#.*", "", path.read_text())
        text = re.sub(r"llama-api-([12]):8000 resolve", r"127.0.0.1:800\1", text)
        return [line for line in text.splitlines() if line and not line.startswith("resolver")]

    assert blocks(DOCKER / "upstream.conf") == blocks(ROOT / "deploy" / "nginx" / "upstream.conf")


def test_the_image_knows_its_health(serve, double):
    """Its HEALTHCHECK succeeds while the service answers and fails where none does."""
    text = (DOCKER / "Dockerfile").read_text().replace("\\\n", "")
    program, *options = json.loads(re.search(r"^HEALTHCHECK .*CMD (.*)$", text, re.M)[1])

    def healthy(port):
        command = [option.replace("8000", str(port)) for option in options]
        return subprocess.run([sys.executable, *command], capture_output=True).returncode == 0

    assert program == "python" and healthy(serve(double).port) and not healthy(free_port())
