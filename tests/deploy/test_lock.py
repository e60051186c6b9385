"""The lock: what `make setup` and the image install, and that it is what was asked for."""

import re

import pytest

from tests.support.gunicorn_server import ROOT

ASKED = sorted(ROOT.glob("requirements*.in"))


def entries(path):
    """The requirements of a file, each with its hashes in one line; without comments, options and blank lines."""
    lines = re.sub(r" *#.*|\\\n", "", path.read_text()).split("\n")
    return [line for line in lines if line.strip() and not line.startswith("-c ")]


def name(requirement):
    """The package that a requirement is for."""
    return re.match(r"[\w.-]+", requirement)[0]


@pytest.mark.parametrize("asked", ASKED, ids=lambda path: path.stem)
def test_every_package_is_pinned_by_version_and_hash(asked):
    """Every package in a .in file is in the .txt of that name, where every package has hashes."""
    locked = entries(asked.with_suffix(".txt"))
    assert all(re.search(r"==\S+ .*--hash=sha256:[0-9a-f]{64}", line) for line in locked), locked
    assert {name(line) for line in entries(asked)} <= {name(line) for line in locked}
