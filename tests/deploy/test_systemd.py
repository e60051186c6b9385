"""The unit, by systemd's own checks, and the rotation of its log, by logrotate itself."""

import configparser
import getpass
import grp
import os
import re
import subprocess
import sys

import pytest

from llama_api.upstreams import Slots
from tests.support.gunicorn_server import ROOT
from tests.support.programs import needed

UNIT = ROOT / "deploy" / "systemd" / "llama-api@.service"
ROTATION = ROOT / "deploy" / "systemd" / "llama-api.logrotate"


@pytest.fixture(scope="module")
def service():
    """The options of the unit's service by their names; of one that is given twice the last."""
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str
    unit.read(UNIT)
    return unit["Service"]


@pytest.fixture
def analyze(tmp_path):
    """A call of systemd-analyze on one instance of the unit."""
    program = needed("systemd", "systemd-analyze")
    unit = tmp_path / "llama-api@8001.service"
    unit.write_text(UNIT.read_text())

    def analyze(*options):
        return subprocess.run([program, *options, unit], capture_output=True, text=True)

    return analyze


def test_systemd_has_no_word_to_say_against_the_unit(analyze):
    """Each option is known and has a value that it takes."""
    done = analyze("verify", "--man=no")
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_unit_is_as_closed_as_it_says(analyze):
    """systemd's exposure level is no worse than the unit says."""
    stated = re.search(r"rates the remaining exposure ([0-9.]+)", UNIT.read_text()).group(1)
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={round(float(stated) * 10)}")
    assert done.returncode == 0, done.stdout


def test_the_port_is_the_instances_own(service):
    """Whatever the file of settings contains: two instances cannot get the same port."""
    environment, command = re.fullmatch("(.*?) (/opt/.*)", service["ExecStart"]).groups()
    assert command.endswith("gunicorn wsgi:app")
    done = subprocess.run([*environment.replace("%i", "8001").split(), "printenv", "LLAMA_API_BIND"],
                          env={**os.environ, "LLAMA_API_BIND": "127.0.0.1:9"}, capture_output=True, text=True)
    assert done.stdout == "127.0.0.1:8001\n"


def test_there_are_descriptors_for_all_callers(service):
    """A worker's default number of connections, and one more for the generation of each."""
    printed = subprocess.run([sys.executable, "-m", "gunicorn", "--print-config", "wsgi:app"], cwd=ROOT,
                             env={**os.environ, "LLAMA_API_LOG_FILE": ""}, capture_output=True, text=True).stdout
    connections = int(re.search(r"^worker_connections += (\d+)$", printed, re.MULTILINE).group(1))
    assert int(service["LimitNOFILE"]) > 2 * connections


def test_all_instances_count_slots_in_one_place(service, tmp_path, monkeypatch):
    """In a directory of the unit, not of an instance, that stays when one stops; each has a /tmp of its own."""
    assert service["PrivateTmp"] == service["RuntimeDirectoryPreserve"] == "yes"
    assert re.fullmatch("[a-z-]+", service["RuntimeDirectory"])
    run = tmp_path / service["RuntimeDirectory"]
    run.mkdir()
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(run))
    Slots("http://a:11434", 1).take(0.0)
    assert [path.name for path in run.rglob("slot-*")] == ["slot-0"]


def test_the_log_is_rotated_and_the_last_one_compressed_later(tmp_path):
    """The service may still write one line to the file that was moved away."""
    logrotate = needed("logrotate")
    log, config = tmp_path / "api.log", tmp_path / "logrotate.conf"
    us = f"su {getpass.getuser()} {grp.getgrgid(os.getgid()).gr_name}"
    text = ROTATION.read_text().replace("/var/log/llama-api/api.log", str(log))
    assert str(log) in text
    config.write_text(text.replace("su llama-api llama-api", us))
    tmp_path.chmod(0o755)
    for number in range(2):
        log.write_text(f"line {number}\n")
        subprocess.run([logrotate, "-f", "-s", tmp_path / "state", config], check=True)
    names = {path.name for path in tmp_path.glob("api.log*")}
    assert names == {"api.log.1", "api.log.2.gz"} and (tmp_path / "api.log.1").read_text() == "line 1\n"
