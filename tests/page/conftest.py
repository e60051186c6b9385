"""A browser at the page: of a real service, or with answers that a test has made up."""

import json

import pytest

from tests.support.gunicorn_server import until

# Answers in place of the service's: path -> [status, headers, chunks of the body]; `down` lets every call fail.
PLAYED = """
window.played = %s;
window.down = false;
const real = window.fetch;
window.fetch = (path, options) => {
  if (window.down) return Promise.reject(new TypeError("Failed to fetch"));
  if (!(path in window.played)) return real(path, options);
  const [status, headers, chunks] = window.played[path];
  const body = new ReadableStream({start(controller) {
    for (const chunk of chunks) controller.enqueue(new TextEncoder().encode(chunk));
    controller.close();
  }});
  return Promise.resolve(new Response(body, {status, headers}));
};
"""


@pytest.fixture
def visit(browser):
    """A factory: the page of a server, opened; ``played`` maps paths to bodies that replace the server's answers."""
    with browser.tab() as tab:
        def visit(api, **played):
            answers = {path: [200, {}, [json.dumps(body)]] for path, body in played.items()}
            tab.call("Page.addScriptToEvaluateOnNewDocument", source=PLAYED % json.dumps(answers))
            tab.resize(1280, 800)
            tab.call("Page.navigate", url=f"{api.url}/")
            tab.until("document.body?.dataset.state")
            return tab

        yield visit


@pytest.fixture(scope="module")
def shared_api(shared_double, shared_serve):
    return shared_serve(shared_double)


@pytest.fixture
def api(shared_api, double):
    """One service for the tests that leave its settings alone: well, and with nothing stored."""
    until(lambda: shared_api.health()["status"] == "healthy")
    assert shared_api.request("DELETE", "/cache").status == 204
    return shared_api


@pytest.fixture(scope="module")
def tab(serve, browser):
    """A tab at the page of a service without an Ollama, for tests that change nothing there."""
    api = serve(ollama_url="http://127.0.0.1:9")
    with browser.tab() as tab:
        tab.call("Page.navigate", url=f"{api.url}/")
        tab.until("document.body?.dataset.state")
        tab.evaluate("window.use = (name) => import(new URL(name, document.querySelector('script').src).href)")
        yield tab
