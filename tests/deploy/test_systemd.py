"""The unit, by systemd's own checks, and the rotation of its log, by logrotate itself."""

import getpass
import grp
import os
import re
import subprocess

import pytest

from tests.support.gunicorn_server import ROOT
from tests.support.programs import needed

UNIT = ROOT / "deploy" / "systemd" / "llama-api@.service"
ROTATION = ROOT / "deploy" / "systemd" / "llama-api.logrotate"


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
    """systemd's exposure level, which the unit states, is no worse."""
    stated = re.search(r"states what is left: ([0-9.]+)", UNIT.read_text()).group(1)
    done = analyze("security", "--offline=true", "--no-pager", f"--threshold={round(float(stated) * 10)}")
    assert done.returncode == 0, done.stdout


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
