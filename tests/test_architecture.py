"""ARCHITECTURE.md, held against the tree: each file that it names is there, and each wing has its line."""

import re

import pytest

from tests.test_floors import BOTTOM, FLOORS, PACKAGE

ROOT = PACKAGE.parent
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
FILES = sorted(set(re.findall(r"[a-z_/]+/[a-z0-9_]+\.py", TEXT)))
WINGS = sorted(BOTTOM.union(*FLOORS))


@pytest.mark.parametrize("name", FILES)
def test_each_file_that_is_named_is_there(name):
    """Below the root, or below the package."""
    assert (ROOT / name).is_file() or (PACKAGE / name).is_file()


@pytest.mark.parametrize("name", WINGS)
def test_each_wing_is_on_the_map(name):
    """As a floor's heading, or among the modules at the bottom."""
    floors = [line for line in TEXT.splitlines() if line.startswith("| ") and f"`{name}" in line]
    assert any(re.search(rf"`{name}/?`", line) for line in floors)


@pytest.mark.parametrize("name", sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()))
def test_the_lines_of_a_wing_are_about_as_told(name):
    """Within a fifth: the map shows what is large and what is small."""
    told = int(re.search(rf"^\| `{name}/` \| ([\d,]+)", TEXT, re.M)[1].replace(",", ""))
    counted = sum(len(path.read_text().splitlines()) for path in (PACKAGE / name).rglob("*.py"))
    assert 0.8 < told / counted < 1.2, f"{name} has {counted} lines"


def test_tests_are_named_for_all_private_ground():
    """Each row of that table has our module, and a test."""
    rows = TEXT.partition("| library |")[2].partition("\n\n")[0].splitlines()[2:]
    assert rows and all(re.search(r"`\w+/\w+\.py`", row) and re.search(r"`tests/[\w/]+\.py`", row) for row in rows)
