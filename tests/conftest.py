"""The fixtures of the tests that need the service as it is run: a double of Ollama, a gunicorn, a Redis."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

from tests.support.chromium import chromium
from tests.support.double import OllamaDouble
from tests.support.gunicorn_server import servers
from tests.support.redis_server import RedisServer

# A shell that runs the tests in the background has them ignore Ctrl-C, and so would all that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Time is no measure of an example on a machine that does other things as well.
hypothesis.settings.register_profile("any machine", deadline=None,
                                     suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("any machine")

# The tests start hundreds of processes, and each would compile our modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

LONG = ("page", "http", "commands", "deploy", "embedded", "api", "server", "metrics", "chaos", "upstreams")


def pytest_configure(config):
    """Have xdist keep the order of the files; by itself it takes first those with the most tests, which are short."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    """Begin with the folders whose files take long, so that none of these runs alone at the end."""
    def rank(item):
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return LONG.index(folder) if folder in LONG else len(LONG)

    items.sort(key=rank)


@pytest.fixture
def own_double():
    """A double of this test alone, which may change what a service remembers of it."""
    with OllamaDouble() as double:
        yield double


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """A factory: ``serve(double, **settings)`` starts gunicorn, see gunicorn_server.Server.

    All stop at the end of the module, for stopping them at once takes no longer than stopping one.
    """
    with servers(tmp_path_factory.mktemp("servers")) as serve:
        yield serve


@pytest.fixture(scope="module")
def shared_double():
    """A double for all tests of a module."""
    with OllamaDouble() as double:
        yield double


@pytest.fixture
def double(shared_double):
    """The double of the module, as it was in the beginning."""
    shared_double.start()
    shared_double.reset()
    return shared_double


@pytest.fixture(scope="module")
def shared_serve(serve):
    """``serve``, by the name that says that tests share what they get from it."""
    return serve


@pytest.fixture
def redis_server(tmp_path):
    """A real Redis of this test alone."""
    with RedisServer(tmp_path) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A browser for all tests of a module; each has a tab of its own."""
    with chromium(tmp_path_factory.mktemp("browser")) as browser:
        yield browser
