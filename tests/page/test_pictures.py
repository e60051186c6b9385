"""Pictures of the page in every state, for a person to look at: the test's folder keeps them (``--basetemp``)."""

import json
import math
from contextlib import ExitStack

import pytest

from tests.support.gunicorn_server import new_prompt
from tests.support.page import PROMPT, STATS, ask, ended, text

VIEWS = [(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")]  # widths, of a phone too, and schemes


@pytest.fixture
def keep(tmp_path):
    """``keep(tab, state)`` saves what a tab shows in each view; nothing may run over the side."""
    def keep(tab, state):
        for width, scheme in VIEWS:
            tab.resize(width, 800, scheme)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width, (state, width)
            tab.screenshot(tmp_path / f"{state}-{width}-{scheme}.png")
        tab.resize(1280, 800)

    return keep


def begin(tab, prompt):
    """Ask without waiting for the answer."""
    tab.evaluate("document.getElementById('prompt').select()")
    tab.type(prompt)
    tab.evaluate("document.getElementById('send').click()")


def stop(tab):
    """End what is under way."""
    tab.evaluate("document.getElementById('stop').click()")
    ended(tab)


def busy(stats):
    """The figures of a service that has had much to do, and no Ollama for a while, in place of those in ``stats``."""
    for number, series in enumerate(stats["series"]):
        points = [(3 + math.sin(at / (5 + number)) + at % 7 / 7) * 1e6 ** (series["unit"] == "B") for at in range(170)]
        away = [float(not 90 < at < 100) for at in range(170)]
        series["points"] = [None] * 10 + (away if series["kind"] == "outage" else points)
    requests = [{**STATS["requests"][0], "status": status} for status in (200, 200, 200, 429, 504)] * 10
    return {**stats, "flights": STATS["flights"], "hosts": STATS["hosts"], "requests": requests}


def test_before_while_and_after_an_answer(double, serve, visit, keep):
    """Nothing yet, a wait with its position, an answer as it comes, one from the cache, and a busy service."""
    double.set(slots=1)
    api = serve(double, heartbeat=0.3)
    tab = visit(api)
    keep(tab, "empty")
    with ExitStack() as stack:
        stack.enter_context(api.open_ask(new_prompt("[[ttft=60]]")))
        double.wait(running=1)
        begin(tab, new_prompt())
        tab.until("document.getElementById('progress').textContent.startsWith('Waiting: ')")
        keep(tab, "waiting")
        stop(tab)
    begin(tab, new_prompt("[[tokens=2000]] [[gap=0.05]]"))
    tab.until("document.getElementById('answer').textContent.length > 100")
    keep(tab, "streaming")
    stop(tab)
    ask(tab)
    ask(tab)
    assert text(tab, "#progress").startswith("from the cache, ")
    keep(tab, "hit")
    played = json.dumps([200, {}, [json.dumps(busy(api.get("/stats").json))]])
    tab.evaluate(f"window.played.stats = {played}; document.dispatchEvent(new Event('key-given'))")
    tab.until("document.querySelectorAll('#requests tr').length === 50")
    keep(tab, "busy")
    tab.call("Page.navigate", url=f"{api.url}/docs")
    tab.until("document.querySelectorAll('.opblock').length > 10")
    keep(tab, "docs")


def test_in_trouble(double, serve, visit, keep):
    """Ollama lacks the model; then the service does not answer."""
    api = serve(double)
    tab = visit(api)
    ask(tab)
    double.remove_model("llama3:8b")
    tab.until("document.body.dataset.state === 'unhealthy'")
    ask(tab, "And now?")
    keep(tab, "model-down")
    api.kill()
    tab.until("document.body.dataset.state === 'down'")
    ask(tab, PROMPT)
    keep(tab, "service-down")
    api.start()
    tab.until("document.body.dataset.state === 'unhealthy'")
