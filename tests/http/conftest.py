"""Fixtures shared by most tests over HTTP: the server of the module, with its double reset."""

import pytest


@pytest.fixture
def api(server, double):
    return server
