"""A double for all tests of a module, as new for each."""

import pytest

from tests.support.double import OllamaDouble


@pytest.fixture(scope='module')
def one_double():
    with OllamaDouble(slots=4) as double:
        yield double


@pytest.fixture
def double(one_double):
    one_double.start()
    one_double.reset()
    return one_double
