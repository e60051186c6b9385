"""The page's modules that only compute, each called alone in a real browser."""

import ast
import json
import subprocess

import pytest

HOSTILE = ["it's", "'; touch x; '", "$(touch x) `touch x` $HOME !! \\", 'a "b" \\n',
           "line\nbreak\r\n\ttab\x00\x1b[31m\x7f", "--data @/etc/passwd", "<img src=x onerror=alert(1)>",
           "ünï 漢字 🦙 \u202e\u2028\u200b\ufeff", "\ud800", "''''"]


@pytest.fixture
def call(tab):
    """`call(module, function, *arguments)` returns what an exported function returns."""
    def call(module, function, *arguments):
        return tab.evaluate(f"use('{module}.js').then((m) => m.{function}(...{json.dumps(arguments)}))")
    return call


STREAM = (': waiting, 3 before you, about 8 s\n\ndata: {"response": "ä🦙", "done": false}\r\n\r\n'
          'event: error\ndata: one\ndata:two\nid: 7\n\n\ndata\n\ndata: never ended')
EVENTS = [{"comment": "waiting, 3 before you, about 8 s"},
          {"name": "message", "data": '{"response": "ä🦙", "done": false}'},
          {"name": "error", "data": "one\ntwo"}, {"name": "message", "data": ""}]


def test_a_stream_is_read_alike_wherever_it_is_cut(tab):
    """Events and comments come out whole though the bytes are cut inside characters, line ends and lines."""
    seen = tab.evaluate(f"""use('events.js').then(({{EventReader}}) => {{
      const bytes = new TextEncoder().encode({json.dumps(STREAM)});
      const read = (parts, reader = new EventReader()) => parts.flatMap((part) => reader.feed(part));
      const cuts = [...bytes.keys()].map((cut) => read([bytes.slice(0, cut), bytes.slice(cut)]));
      return [read([...bytes].map((byte) => Uint8Array.of(byte))), ...cuts].map((one) => JSON.stringify(one));
    }})""")
    assert {text for text in seen} == {json.dumps(EVENTS, ensure_ascii=False, separators=(",", ":"))}


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("text", HOSTILE)
def test_the_curl_line_carries_any_text_through_a_shell(call, text, keyed, tmp_path):
    """The shell hands curl the very body, in one visible line, and runs nothing else."""
    body = {"prompt": text, "system": text, "max_tokens": 7, "temperature": 0.5}
    line = call("dialects", "curl", "http://127.0.0.1:1/", body, keyed)
    assert line.isprintable()
    script = f'curl() {{ printf "%s\\0" "$@"; }}\n{line}'
    printed = subprocess.check_output(["sh", "-c", script], cwd=tmp_path, env={"LLAMA_API_KEY": "k"})
    url, *options, sent = printed.decode().rstrip("\0").split("\0")
    assert url == "http://127.0.0.1:1/generate" and json.loads(sent) == body
    assert ("Authorization: Bearer k" in options) == keyed
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("text", HOSTILE)
def test_the_python_lines_carry_any_text(call, text):
    """They compile, and the packages are called with the very prompt and options."""
    body = {"prompt": text, "system": text, "max_tokens": 7, "seed": 3}
    for dialect, wanted in (
            ("openai", {"model": "m", "max_tokens": 7, "seed": 3, "messages": [
                {"role": "system", "content": text}, {"role": "user", "content": text}]}),
            ("ollama", {"model": "m", "prompt": text, "system": text, "options": {"num_predict": 7, "seed": 3}})):
        lines = call("dialects", dialect, "http://127.0.0.1:1/", body, False, "m")
        assert all(line.isprintable() for line in lines.split("\n"))
        calls = [node for node in ast.walk(ast.parse(lines)) if isinstance(node, ast.Call)]
        (made,) = [node for node in calls if {"model"} <= {word.arg for word in node.keywords}]
        assert {word.arg: ast.literal_eval(word.value) for word in made.keywords} == wanted
        assert "LLAMA_API_KEY" in call("dialects", dialect, "http://127.0.0.1:1/", body, True, "m")


@pytest.mark.parametrize("status, age, cached, kind, text", [
    ("llama-api; fwd=miss", None, False, "generated", "generated"),
    ("llama-api; fwd=miss; stored", None, False, "generated", "generated"),
    ("llama-api; fwd=stale; stored", None, False, "generated", "generated"),
    ("llama-api; fwd=bypass", None, False, "generated", "generated"),
    ("llama-api; fwd=miss; collapsed", None, False, "joined", "joined"),
    ("llama-api; hit; ttl=3600", "180", True, "hit", "from the cache, 3 min old"),
    ("front; fwd=miss, llama-api; hit", "5", True, "hit", "from the cache, 5 s old"),
    ("llama-api; fwd=stale; detail=ollama-timeout", "9000", True, "stale", "stale, 3 h old, because of ollama-timeout"),
    (None, None, True, "hit", "from the cache"), (None, None, False, "generated", "generated")])
def test_what_an_answer_was(call, status, age, cached, kind, text):
    """According to Cache-Status and Age, also behind another cache or a proxy that has removed them."""
    assert call("words", "origin", status, age, cached) == {"kind": kind, "text": text}


@pytest.mark.parametrize("comment, text", [
    ("waiting", "Waiting for the model."), ("waiting, 3 before you", "Waiting: 3 before you."),
    ("waiting, 0 before you, about 4 s", "Waiting: next in the queue, about 4 s."),
    ("waiting, about 300 s", "Waiting: about 5 min."), ("anything else", "Waiting for the model.")])
def test_the_wait_in_words(call, comment, text):
    """Position and estimate are said as far as they are known."""
    assert call("words", "waiting", comment) == text


@pytest.mark.parametrize("value, unit, text", [
    (None, "s", "–"), (0, "s", "0 s"), (0.0123, "s", "12.3 ms"), (0.9999, "s", "1 s"), (90, "s", "90 s"),
    (3600, "s", "60 min"), (0, "", "0"), (0.04567, "/s", "0.0457/s"), (12345, "tokens/s", "12.3K tokens/s"),
    (0, "B", "0 B"), (1024, "B", "1 KiB"), (64 * 2**20, "B", "64 MiB"), (5 * 2**30, "B", "5 GiB")])
def test_figures_in_words(call, value, unit, text):
    """A figure has three digits and the unit that suits it."""
    assert call("words", "amount", value, unit) == text


@pytest.mark.parametrize("most, unit, bound", [
    (0, "", 1), (1, "", 1), (1.01, "", 1.5), (7, "", 8), (9.2, "", 10), (0.021, "s", 0.03), (4200, "", 5000),
    (60 * 2**20, "B", 60 * 2**20), (65 * 2**20, "B", 80 * 2**20), (1000 * 2**10, "B", 1000 * 2**10)])
def test_the_top_of_a_plot_is_a_round_number(call, most, unit, bound):
    """It is not below the largest value, and at most half above it."""
    assert call("geometry", "ceiling", most, unit) == pytest.approx(bound)


def test_gaps_and_stacks(call, tab):
    """A gap breaks a line and an area, belongs to its series alone, and a single point is still to be seen."""
    assert call("geometry", "stretches", [None, 1, 2, None, 3]) == [[1, 2], [4, 4]]
    assert call("geometry", "stack", [[1, None, 2], [3, 4, None]]) == [
        {"floor": [0, 0, 0], "top": [1, None, 2]}, {"floor": [1, 0, 2], "top": [4, 4, None]}]

    def drawn(script):
        return tab.evaluate("use('geometry.js').then((m) => ((s) => " + script + ")"
                            "(m.scales({left: 10, top: 0, width: 40, height: 100}, 4, 10)))")

    assert drawn("m.linePath([null, 5, null, 10], s)") == "M20 50L25 50L30 50M40 0L45 0L50 0"
    assert drawn("m.areaPath([0, 0, 0, 0], [null, 5, 10, null], s)") == (
        "M20 50L25 50L35 0L40 0L40 100L35 100L25 100L20 100Z")
    assert drawn("[0, 10, 29, 31, 99].map(s.at)") == [0, 0, 1, 2, 3]
