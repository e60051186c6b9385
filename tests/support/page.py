"""Helpers of the page's tests: made-up figures, and a user's actions."""

import json

PROMPT = "Why is the sky blue?"
POINTS = [None] * 100 + [2.0] * 40 + [None] * 10 + [4.0] * 30
STATS = {"step": 5, "end": 1_767_225_600, "series": [
    {"name": "eaten", "unit": "/s", "metric": "apples_total", "plot": "Apples", "kind": "area", "points": POINTS},
    {"name": "<b>rotten</b>", "unit": "/s", "metric": "rotten_total", "plot": "Apples", "kind": "area", "tone": "bad",
     "points": [None] * 100 + [1.0] * 80},
    {"name": "basket", "unit": "/s", "metric": "basket", "plot": "Apples", "kind": "limit", "points": [8.0] * 180},
    {"name": "wait p50", "unit": "s", "metric": "wait_seconds", "plot": "Wait", "kind": "line", "points": [0.25] * 12},
    {"name": "no usable Ollama", "unit": "", "metric": "up", "kind": "outage", "points": [1.0] * 160 + [0.0] * 20}],
    "flights": [{"id": "f/1", "age_s": 3.2, "state": "writing", "readers": 7, "tokens": 41, "host": "a:11434"}],
    "hosts": [{"host": "a:11434", "usable": True, "reachable": True, "version": "0.33.0", "model_present": True,
               "loaded": True, "gpu_percent": 72, "context_length": 8192, "digest": "365c0bd3c000", "running": 1,
               "slots": 4, "reason": None},
              {"host": "b:11434", "usable": False, "reachable": False, "version": None, "model_present": None,
               "loaded": None, "gpu_percent": None, "context_length": None, "digest": None, "running": 0, "slots": 1,
               "reason": "run `ollama serve` there"}],
    "requests": [{"time": "2026-01-01T00:00:00Z", "endpoint": "/generate", "status": 504, "cache": "miss",
                  "duration_ms": 1234.5}],
    "settings": {"LLAMA_API_MODEL": "llama3:8b", "LLAMA_API_API_KEYS": "***"}}


def ask(tab, prompt=PROMPT):
    """Type a prompt, press the button, and return the text of the answer once the call is over."""
    tab.evaluate("document.getElementById('prompt').select()")
    tab.type(prompt)
    tab.evaluate("document.getElementById('send').click()")
    return ended(tab)


def ended(tab):
    """The text of the answer, once no call is under way."""
    tab.until("document.getElementById('stop').hidden")
    return tab.evaluate("document.getElementById('answer').textContent")


def text(tab, selector):
    """The text that an element shows."""
    return tab.evaluate(f"document.querySelector({json.dumps(selector)}).innerText")


def assert_untroubled(tab, api):
    """Nothing came from another host, and the browser had nothing to complain of: no error, no breach of the policy."""
    urls = [event["request"]["url"] for event in tab.told("Network.requestWillBeSent")]
    assert urls and all(url.startswith((f"{api.url}/", "data:")) for url in urls)
    assert tab.told("Log.entryAdded") == tab.told("Runtime.exceptionThrown") == []
    assert tab.told("Runtime.consoleAPICalled") == []
    assert tab.evaluate("document.querySelectorAll('[style], script:not([src])').length") == 0
