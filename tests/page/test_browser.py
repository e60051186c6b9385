"""The page in a real browser, at the service as it is run: what a person can do there, and what it says in trouble."""

import json
import subprocess

from tests.support.chromium import CTRL, SHIFT
from tests.support.double import answer_for
from tests.support.page import PROMPT, STATS, ask, assert_untroubled, ended, text

KEY = "a-key-of-some-length"
HOSTILE = "<img src=x onerror=\"hit=1\"><script>window.hit=1</script>'; $(touch hit) `touch hit` \\ \u202e\x1b[2J"
FAILED = "!document.getElementById('trouble').hidden"
TROUBLE = "document.getElementById('trouble').innerText"
STATE = "document.getElementById('state').innerText"


def test_ask_and_ask_again(api, double, visit, tmp_path):
    """The answer comes as it is generated, the second one from the cache; the curl line gets the same."""
    tab = visit(api)
    assert ask(tab) == answer_for(PROMPT)
    assert text(tab, "#progress") == "generated"
    assert {"llama3:8b", "stop"} <= set(text(tab, "#outcome").split("\n"))
    assert ask(tab) == answer_for(PROMPT)
    assert text(tab, "#progress").startswith("from the cache, ") and double.generations[PROMPT] == 1
    printed = subprocess.check_output(["sh", "-c", text(tab, "#call")], cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert json.loads(printed)["response"] == answer_for(PROMPT) and json.loads(printed)["cached"]
    for dialect in ("openai", "ollama"):
        tab.evaluate(f"document.querySelector('[value={dialect}]').click()")
        assert f"from {dialect} import" in text(tab, "#call")
    assert_untroubled(tab, api)


def test_the_line_is_copied(api, visit):
    """The Copy button puts the line shown into the clipboard, and says so."""
    tab = visit(api)
    tab.call("Browser.grantPermissions", origin=api.url, browserContextId=tab.context,
             permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    ask(tab)
    tab.evaluate("document.getElementById('copy').click()")
    tab.until("document.getElementById('copy').textContent === 'Copied'")
    assert tab.evaluate("navigator.clipboard.readText()") == text(tab, "#call")


def test_the_wait_and_the_pieces_are_shown(api, double, visit):
    """Before the first piece the page waits, then the answer grows; Stop ends the generation and keeps the pieces."""
    tab = visit(api)
    tab.evaluate("document.getElementById('prompt').focus()")
    tab.type("Tell me much. [[tokens=400]] [[gap=0.05]]")
    tab.evaluate("document.getElementById('send').click()")
    assert tab.evaluate("document.getElementById('answer').getAttribute('aria-busy')") == "true"
    tab.until("document.getElementById('answer').textContent.length > 20")
    assert text(tab, "#progress") == "Writing."
    tab.evaluate("document.getElementById('stop').click()")
    shown = ended(tab)
    assert answer_for("Tell me much. [[tokens=400]] [[gap=0.05]]").startswith(shown) and len(shown) > 20
    assert text(tab, "#progress") == "Stopped."
    double.wait(running=0)


def test_position_and_estimate_are_shown(api, visit):
    """The page shows the service's report of the wait in place of the answer."""
    tab = visit(api)
    tab.evaluate("window.played.generate = [200, {}, [': waiting, 3 before you, about 8 s\\n\\n']]; window.seen = [];"
                 "new MutationObserver(() => seen.push(document.getElementById('progress').textContent))"
                 ".observe(document.getElementById('progress'), {childList: true})")
    ask(tab)
    assert tab.evaluate("seen.includes('Waiting: 3 before you, about 8 s.')")
    assert "broke off" in tab.evaluate(TROUBLE)  # for it ended before its last event


def test_keyboard_alone(api, visit):
    """Tab reaches everything in its order; Ctrl+Enter asks; the plots are read with the arrows."""
    tab = visit(api, stats=STATS)
    focused = "document.activeElement.id || document.activeElement.textContent.trim()"
    reached = []
    for _ in range(9):
        tab.press("Tab")
        reached.append(tab.evaluate(focused))
        assert tab.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached
    assert reached == ["API", "Metrics", "prompt", "Options", "send", "answer", "moment", "The figures as a table",
                       "Cancel"]
    for _ in range(2):
        tab.press("Tab", SHIFT)
    now = text(tab, "#clock")
    assert "eaten 4" in text(tab, ".legend")
    tab.press("Home")
    assert "eaten –" in text(tab, ".legend") and text(tab, "#clock") != now
    tab.press("End")
    assert text(tab, "#clock") == now
    tab.evaluate("document.getElementById('prompt').focus()")
    tab.type(PROMPT)
    tab.press("Enter", CTRL)
    tab.until("!document.getElementById('outcome').hidden")
    assert text(tab, "#answer") == answer_for(PROMPT)


def test_hostile_text_is_text(api, visit, tmp_path):
    """Markup in a prompt, an answer or a figure is shown as it is; in the curl line it stays one word of the shell."""
    tab = visit(api, stats=STATS)
    assert ask(tab, HOSTILE) == answer_for(HOSTILE)
    line = text(tab, "#call")
    printed = subprocess.check_output(["sh", "-c", line], cwd=tmp_path, stderr=subprocess.DEVNULL)
    assert json.loads(printed)["cached"] and not any(tmp_path.glob("hit"))
    pieces = [f"data: {json.dumps({'response': piece, 'done': False})}\n\n" for piece in (HOSTILE, "\n<b>bold</b>")]
    tab.evaluate(f"window.played.generate = {json.dumps([200, {}, pieces])}")
    assert ask(tab) == f"{HOSTILE}\n<b>bold</b>"
    assert "<b>rotten</b>" in text(tab, ".legend")
    assert tab.evaluate("window.hit === undefined && !document.querySelector('#answer *, .legend img, main img')")
    assert_untroubled(tab, api)


def test_a_key_is_asked_for_and_kept_for_the_tab(double, serve, visit):
    """The call that was refused is made again with the key; it goes with every call and is not in the curl line."""
    api = serve(double, api_keys=KEY)
    tab = visit(api)
    assert ask(tab) == ""
    assert "API key" in tab.evaluate(TROUBLE)
    for key, accepted in (("wrong", False), (KEY, True)):
        tab.until("!document.getElementById('key-form').hidden")
        tab.evaluate("document.getElementById('key').focus()")
        tab.type(key)
        tab.press("Enter")
        tab.until("!document.getElementById('outcome').hidden" if accepted else
                  "document.getElementById('key-note').textContent.includes('did not accept')")
    assert ended(tab) == answer_for(PROMPT)
    assert KEY not in text(tab, "#call") and "Bearer $LLAMA_API_KEY" in text(tab, "#call")
    assert tab.evaluate("[localStorage.length, document.cookie, document.getElementById('key').value]") == [0, "", ""]
    tab.call("Page.reload")
    tab.until("document.body?.dataset.state")
    assert ask(tab, "Another one?") == answer_for("Another one?")


def test_trouble_is_told_in_the_words_of_the_service(api, double, visit):
    """A missing model, a field that is wrong and an answer that breaks off each say what to do."""
    tab = visit(api)
    ask(tab, "Why? [[fault=eof]] [[after=3]]")
    tab.until(FAILED)
    assert "Ollama" in tab.evaluate(TROUBLE) and text(tab, "#answer")
    tab.evaluate("document.forms.ask.elements.system.value = 'Be brief.'")
    ask(tab, "   ")
    assert "prompt" in tab.evaluate(TROUBLE)
    double.remove_model("llama3:8b")
    tab.until("document.body.dataset.state === 'unhealthy'")
    assert "ollama pull llama3:8b" in tab.evaluate(STATE)
    ask(tab, "And now?")
    assert "ollama pull llama3:8b" in tab.evaluate(TROUBLE)
    assert tab.evaluate("document.querySelector('#trouble a').getAttribute('href')") == "problems/model-not-found"


def test_the_service_dies_and_comes_back(double, serve, visit):
    """The page says so, keeps what it has, and finds the service again by itself."""
    api = serve(double)
    tab = visit(api, stats=STATS)
    answer = ask(tab)
    api.kill()
    tab.evaluate("window.down = true")  # what is played goes down with it
    tab.until("document.body.dataset.state === 'down'")
    assert "does not answer" in tab.evaluate(STATE) and text(tab, "#answer") == answer
    assert text(tab, "#figures-note").startswith("These figures are from ") and "eaten 4" in text(tab, ".legend")
    assert ask(tab, "Anybody?") == "" and "does not answer" in tab.evaluate(TROUBLE)
    api.start()
    tab.evaluate("window.down = false")
    tab.until("document.body.dataset.state === 'healthy'")
    assert text(tab, "#figures-note") == "" and ask(tab) == answer


def test_a_proxy_that_answers_in_its_place(api, visit):
    """An HTML page in place of the service's own answer is reported as such."""
    tab = visit(api)
    tab.evaluate("for (const path of ['generate', 'health', 'stats']) "
                 "window.played[path] = [502, {'Content-Type': 'text/html'}, ['<html>']]")
    ask(tab)
    assert "Status 502" in tab.evaluate(TROUBLE) and "proxy" in tab.evaluate(TROUBLE)
    tab.until("document.body.dataset.state === 'down'")
    assert tab.told("Runtime.exceptionThrown") == []


def test_plots_are_what_stats_describes(api, visit):
    """Series of unknown metrics are drawn as described, with their gaps; outages are bands in every plot."""
    tab = visit(api, stats=STATS)
    assert tab.evaluate("[...document.querySelectorAll('figure h3')].map((h) => h.innerText)") == ["Apples /s", "Wait"]
    paths = tab.evaluate("[...document.querySelectorAll('figure > svg')].map((svg) => [...svg.querySelectorAll('path')]"
                         ".map((path) => path.getAttribute('d').split('M').length - 1))")
    assert paths == [[2, 1, 1], [1]]
    assert tab.evaluate("[...document.querySelectorAll('figure > svg')].map((svg) => "
                        "svg.querySelectorAll('.outage').length)") == [1, 1]
    label = tab.evaluate("document.querySelector('figure > svg').getAttribute('aria-label')")
    assert label.startswith("Apples. eaten: now 4/s, at most 4/s; ") and "no usable Ollama" in label
    tab.evaluate("document.getElementById('table').open = true")
    rows = tab.evaluate("[...document.querySelectorAll('#figures tr')].map((row) => row.innerText.split('\\t'))")
    assert rows[0] == ["Apples", "eaten", "apples_total", "/s", "4", "2", "4"]
    assert rows[3] == ["Wait", "wait p50", "wait_seconds", "s", "250 ms", "250 ms", "250 ms"]
    box = tab.evaluate("(({x, y}) => [x, y])(document.querySelector('figure > svg').getBoundingClientRect())")
    tab.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0] + 60, y=box[1] + 20)
    tab.until("document.querySelector('.legend').innerText.includes('eaten –')")
    assert "wait p50 –" in tab.evaluate("document.querySelectorAll('.legend')[1].innerText")


def test_the_service_at_a_glance(api, visit):
    """Flights with their readers, Ollamas with the cure of what ails them, requests and settings."""
    tab = visit(api, stats=STATS)
    assert text(tab, "#flights").split("\t") == ["writing at a:11434", "3 s", "7", "41", "Cancel"]
    assert "1 of 4" in text(tab, "#hosts") and "72 %" in text(tab, "#hosts") and "8,192" in text(tab, "#hosts")
    assert "run ollama serve there" in text(tab, "#hosts") and "504" in text(tab, "#requests")
    assert "LLAMA_API_API_KEYS\t***" in text(tab, "#settings")
    without = json.dumps(json.dumps({**STATS, "flights": []}))
    tab.evaluate(f"window.played['flights/f%2F1'] = [204, {{}}, []]; window.played.stats[2] = [{without}];"
                 "document.querySelector('#flights button').focus()")
    tab.press("Enter")
    tab.until("document.getElementById('flights-note').innerText === 'Nothing is being generated.'")
    assert tab.evaluate("document.activeElement.id") == "flights-title"


def test_one_call_brings_figures_and_state(api, visit):
    """If /stats contains the health as well, the page shows it without asking for it."""
    ailing = {"status": "degraded", "reason": "the queue is full", "model": "llama3:8b"}
    tab = visit(api, stats={**STATS, "health": ailing})
    assert tab.evaluate(STATE) == "Degraded: the queue is full"
    asked = [event["request"]["url"] for event in tab.told("Network.requestWillBeSent")]
    assert asked and not any(url.endswith("/health") for url in asked)


def test_without_figures_the_page_still_asks(api, visit):
    """A service that has none is said to have none, once; the rest works."""
    tab = visit(api)
    tab.evaluate("window.played.stats = [404, {}, ['{}']]; document.dispatchEvent(new Event('key-given'))")
    tab.until("document.getElementById('figures-note').innerText.startsWith('Figures are not available')")
    assert ask(tab) == answer_for(PROMPT)
