"""Programs that some tests need besides Python packages. CI must have them all; elsewhere such a test is skipped."""

import os
import shutil

import pytest

PATHS = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])


def find(*names):
    """The path of the first of ``names`` that is installed, else None."""
    return next((path for name in names if (path := shutil.which(name, path=PATHS))), None)


def needed(package, *names):
    """The path of a program; ``package`` of Debian has it. Without it the test fails in CI and is skipped elsewhere."""
    if path := find(*(names or (package,))):
        return path
    tell = pytest.fail if os.environ.get("CI") else pytest.skip
    return tell(f"this needs {package}; on Debian: apt-get install {package}")
