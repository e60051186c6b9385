"""What most tests over HTTP share: the server of their module, before its double as it was in the beginning."""

import pytest


@pytest.fixture
def api(server, double):
    return server
