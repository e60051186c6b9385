"""The page with the figures of a real service: two workers that share their answers, and a browser that looks."""

import re
from contextlib import ExitStack

import pytest

from tests.page.test_contrast import CONTRAST
from tests.support.gunicorn_server import new_prompt, together, until
from tests.support.page import ask, assert_untroubled, text

PLOTS = ["Requests /s", "Queue", "Wait and first token", "Tokens /s", "Seconds saved and spent s/s", "Cache"]

GROWN = [("Requests", "hit"), ("Requests", "generated"), ("Requests", "failed"), ("Tokens", "generated"),
         ("Tokens", "saved"), ("Seconds saved and spent", "saved"), ("Cache", "stored")]


@pytest.fixture
def pair(double, serve, tmp_path):
    """Two workers with four slots between them."""
    double.set(slots=4)
    return serve(double, workers=2, parallel=4, cache_url=f"sqlite:///{tmp_path}/answers.db")


def figures(tab):
    """The table of the figures: plot and name to metric, unit and the value now, the least and the most."""
    tab.evaluate("document.getElementById('table').open = true")
    rows = tab.evaluate("[...document.querySelectorAll('#figures tr')].map((row) => row.innerText.split('\\t'))")
    return {(plot, name): rest for plot, name, *rest in rows} or dict.fromkeys(GROWN, ["–"])


def test_a_busy_run_is_seen(pair, visit):
    """Six plots draw what happened, of metrics that /metrics has; below are the requests, the Ollama, the settings."""
    tab = visit(pair)
    prompts = [new_prompt() for _ in range(5)]
    together(10, lambda n: pair.ask(prompts[n // 2]))
    together(15, lambda n: pair.ask(prompts[n % 5]))
    pair.ask(new_prompt("[[fault=oom]]"))
    assert ask(tab)
    until(lambda: all(figures(tab)[series][-1] not in ("–", "0", "0 B") for series in GROWN), 30)
    tab.until("document.querySelectorAll('#requests tr').length >= 27")
    assert tab.evaluate("[...document.querySelectorAll('figure h3')].map((h) => h.innerText)") == PLOTS
    drawn = tab.evaluate("[...document.querySelectorAll('figure > svg')].map((svg) => [...svg.querySelectorAll('path')]"
                         ".filter((path) => path.getAttribute('d')).length)")
    assert all(drawn), drawn
    found, metrics = figures(tab), pair.get("/metrics").body.decode()
    assert all(re.search(rf"^{metric}(_bucket)?[ {{]", metrics, re.M) for metric, *_ in found.values())
    assert found[("Queue", "slots")][-1] == "4"
    assert "500" not in text(tab, "#requests") and "502" in text(tab, "#requests") and "hit" in text(tab, "#requests")
    assert "in use" in text(tab, "#hosts") and "WEB_CONCURRENCY\t2" in text(tab, "#settings")
    assert text(tab, "#flights-note") == "Nothing is being generated."
    assert_untroubled(tab, pair)
    before = found["Requests", "hit"][-1]
    tab.call("Page.reload")
    tab.until("document.querySelectorAll('#figures tr').length")
    assert figures(tab)["Requests", "hit"][-1] == before


def test_flights_are_seen_and_ended(pair, double, visit):
    """Each flight of both workers is listed with its readers; Cancel ends it for all, including the page's own."""
    tab = visit(pair)
    shared, mine = new_prompt("[[ttft=60]]"), "Mine? [[tokens=400]] [[gap=0.2]]"
    with ExitStack() as stack:
        readers = [stack.enter_context(pair.open_ask(shared)) for _ in range(5)]
        double.wait(running=1)
        tab.evaluate("document.getElementById('prompt').focus()")
        tab.type(mine)
        tab.evaluate("document.getElementById('send').click()")
        tab.until("document.querySelectorAll('#flights tr').length === 2"
                  " && document.querySelector('#flights tr').cells[2].innerText === '5'")
        rows = tab.evaluate("[...document.querySelectorAll('#flights tr')].map((row) => row.innerText.split('\\t'))")
        assert all(" at 127.0.0.1:" in row[0] for row in rows) and rows[1][2] == "1"
        tab.evaluate("document.querySelectorAll('#flights button').forEach((button) => button.click())")
        tab.until("!document.getElementById('trouble').hidden")
        assert "ended" in text(tab, "#trouble") and text(tab, "#answer")
        tab.until("document.querySelectorAll('#flights tr').length === 0")
        assert all(reader.head.status == 503 and b"/problems/cancelled" in reader.read() for reader in readers)
    double.wait(running=0)
    tab.evaluate("document.querySelector('#trouble a').click()")
    tab.until("document.querySelector('h1')?.innerText === 'An operator ended the generation'")
    assert_untroubled(tab, pair)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_problem_page_can_be_read(api, visit, scheme):
    """Its text stands out as that of the page does, and it fits a phone."""
    tab = visit(api)
    tab.resize(320, 700, scheme)
    tab.call("Page.navigate", url=f"{api.url}/problems/overloaded")
    tab.until("document.querySelector('h1')?.innerText === 'The model is busy'")
    assert min(tab.evaluate(CONTRAST))[0] >= 4.5
    assert tab.evaluate("document.documentElement.scrollWidth") <= 320
    assert_untroubled(tab, api)
