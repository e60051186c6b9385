"""Parsed bodies are remembered as long as their callers allow: never beyond a purge, nor under no-store."""

import gc
import json

import pytest

from llama_api.api.parsed_bodies import REMEMBERED, REMEMBERED_BYTES, ParsedBodies
from llama_api.app import create_app
from llama_api.model_call import ModelCall
from llama_api.settings import Settings
from tests.support.gunicorn_server import JSON, new_prompt


class Reader:
    """Reads bodies and counts how often."""

    def __init__(self):
        self.calls = 0

    def read(self, body):
        self.calls += 1
        if body == b"bad":
            raise ValueError(body)
        return body.upper()


@pytest.mark.parametrize("body, calls", [
    (b"body", 1), (b"x" * REMEMBERED_BYTES, 1), (b"x" * (REMEMBERED_BYTES + 1), 2)])
def test_a_small_body_is_read_once(body, calls):
    """A large one each time: it would take too much memory."""
    parsed_bodies, reader = ParsedBodies(), Reader()
    assert [parsed_bodies.parse(reader.read, body) for _ in range(2)] == [body.upper()] * 2 and reader.calls == calls


def test_what_is_wrong_is_wrong_each_time():
    """A failure is not remembered, as its cause may be fixed elsewhere."""
    parsed_bodies, reader = ParsedBodies(), Reader()
    for _ in range(2):
        with pytest.raises(ValueError):
            parsed_bodies.parse(reader.read, b"bad")
    assert reader.calls == 2


def test_two_readers_do_not_mix():
    """The same bytes may mean something else at another URL."""
    parsed_bodies = ParsedBodies()
    assert parsed_bodies.parse(Reader().read, b"body") == b"BODY" and parsed_bodies.parse(len, b"body") == 4


def test_the_oldest_goes_first():
    """The number is bounded."""
    parsed_bodies, reader = ParsedBodies(), Reader()
    for number in range(REMEMBERED + 1):
        parsed_bodies.parse(reader.read, b"%d" % number)
    parsed_bodies.parse(reader.read, b"1")
    assert reader.calls == REMEMBERED + 1
    parsed_bodies.parse(reader.read, b"0")
    assert reader.calls == REMEMBERED + 2


@pytest.fixture
def client(double, tmp_path):
    """A client of an application in this process."""
    return create_app(Settings.from_env({
        "LLAMA_API_OLLAMA_URL": double.url, "LLAMA_API_LOG_FILE": str(tmp_path / "api.log")})).test_client()


def bodies(prompt):
    """A body with ``prompt`` for each URL whose bodies are remembered."""
    model = {"model": "llama3:8b"}
    return {"/generate": {"prompt": prompt}, "/v1/completions": {**model, "prompt": prompt},
            "/v1/chat/completions": {**model, "messages": [{"role": "user", "content": prompt}]},
            "/api/generate": {**model, "prompt": prompt, "stream": False},
            "/api/chat": {**model, "messages": [{"role": "user", "content": prompt}], "stream": False}}


def held(word):
    """The number of remembered calls that contain ``word``."""
    gc.collect()
    return sum(word in str(thing.body) for thing in gc.get_objects() if type(thing) is ModelCall)


@pytest.mark.parametrize("headers, kept", [({}, 5), ({"Cache-Control": "max-age=60"}, 5),
                                           ({"Cache-Control": "no-store"}, 0)])
def test_no_prompt_outlasts_a_purge(client, headers, kept):
    """DELETE /cache leaves none in the process, and one sent with no-store does not stay in the first place."""
    prompt = new_prompt("Remember me.")
    for url, body in bodies(prompt).items():
        assert client.post(url, data=json.dumps(body), headers={**JSON, **headers}).status_code == 200
    assert held(prompt) == kept
    assert client.delete("/cache").status_code == 204
    assert held(prompt) == 0
