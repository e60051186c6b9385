"""The page with the embedded model behind the service: a real answer, as it streams."""

import json
import subprocess
import sys

import pytest

pytest.importorskip("xllamacpp", reason="requirements-embedded.txt is not installed")


@pytest.fixture
def model():
    """The URL of an embedded Ollama of this test's own."""
    command = [sys.executable, "-m", "llama_api.embedded", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.kill()


def test_type_and_see_it_stream(model, serve, visit, tmp_path):
    """The answer grows piece by piece, comes from the cache when asked again, and curl gets the same."""
    tab = visit(serve(ollama_url=model, model="smollm2:135m"))
    tab.evaluate("window.lengths = new Set(); const shown = document.getElementById('answer');"
                 "new MutationObserver(() => lengths.add(shown.textContent.length))"
                 ".observe(shown, {subtree: true, childList: true, characterData: true})")
    tab.evaluate("document.getElementById('options').open = true; document.forms.ask.elements.max_tokens.focus()")
    tab.type("16")
    tab.evaluate("document.getElementById('prompt').focus()")
    tab.type("Why is the sky blue?")
    for wanted in ("generated", "from the cache, "):
        tab.evaluate("document.getElementById('send').click()")
        tab.until("document.getElementById('stop').hidden")
        assert tab.evaluate("document.getElementById('progress').textContent").startswith(wanted)
    answer = tab.evaluate("document.getElementById('answer').textContent")
    assert answer and tab.evaluate("lengths.size") > 4
    line = tab.evaluate("document.getElementById('call').textContent")
    printed = json.loads(subprocess.check_output(["sh", "-c", line], cwd=tmp_path, stderr=subprocess.DEVNULL))
    assert printed["response"] == answer and printed["cached"]
