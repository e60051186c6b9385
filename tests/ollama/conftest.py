"""Fixtures of the client's tests: an Ollama without a socket."""

import pytest
import responses


@pytest.fixture
def upstream():
    """An Ollama by way of ``responses``, for whatever needs no socket."""
    with responses.RequestsMock(assert_all_requests_are_fired=False) as mock:
        mock.add_passthru("http://127.0.0.1:")  # where the probes of other tests' applications go on forever
        yield mock
