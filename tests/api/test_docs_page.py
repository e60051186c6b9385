"""The page at /docs in a real browser: whole, from this service alone, and good to try every endpoint with."""

import json
import shutil
from pathlib import Path

import pytest

from llama_api.api import docs
from llama_api.api.docs import ASSETS, INITIALIZER
from llama_api.app import create_app
from llama_api.settings import Settings
from tests.support.double import answer_for

KEY = "a-key-of-some-length"
PROMPT = "Why is the sky blue?"  # of the document's example


@pytest.fixture(scope="module")
def api(shared_double, shared_serve):
    return shared_serve(shared_double)


@pytest.fixture(scope="module")
def locked(shared_double, shared_serve):
    """A service that wants a key."""
    return shared_serve(shared_double, api_keys=KEY)


@pytest.fixture
def visit(browser):
    """A factory: the page of a server, opened and rendered."""
    with browser.tab() as page:
        def visit(api):
            page.call("Page.navigate", url=f"{api.url}/docs")
            page.until("document.querySelectorAll('.opblock').length > 0")
            return page

        yield visit


def click(page, selector):
    """Click on an element as soon as it is there and can be."""
    element = f"document.querySelector({json.dumps(selector)})"
    page.until(f"!!{element} && !{element}.disabled")
    page.evaluate(f"{element}.click()")


def execute(page, operation):
    """Open an operation, try it out, and return the status and the body that the page shows."""
    block = f"#operations-{operation}"
    click(page, f"{block} .opblock-summary-control")
    click(page, f"{block} .try-out__btn")
    click(page, f"{block} .execute")
    live = f"{block} .live-responses-table .response"
    shown = f"document.querySelector({json.dumps(live)})"
    page.until(f"!!{shown} && !!{shown}.querySelector('.microlight, .highlight-code')")
    status = page.evaluate(f"{shown}.querySelector('.response-col_status').innerText")
    body = page.evaluate(f"{shown}.querySelector('.highlight-code code').textContent")
    return int(status), json.loads(body)


def assert_untroubled(page, api):
    """Nothing came from another host, and the browser had nothing to complain of: no error, no breach of the policy."""
    urls = [event["request"]["url"] for event in page.told("Network.requestWillBeSent")]
    assert f"{api.url}/openapi.json" in urls
    assert [url for url in urls if not url.startswith((f"{api.url}/", "data:"))] == []
    assert page.told("Network.loadingFailed") == []
    assert page.told("Log.entryAdded") == [] and page.told("Runtime.exceptionThrown") == []
    assert [event for event in page.told("Runtime.consoleAPICalled") if event["type"] in ("error", "warning")] == []


def test_page_shows_and_tries_every_operation(api, visit):
    """All operations of the document are there; POST /generate and GET /livez can be tried out on the spot."""
    page = visit(api)
    document = api.get("/openapi.json").json
    described = sorted((method.upper(), path) for path, item in document["paths"].items() for method in item)
    shown = page.evaluate("[...document.querySelectorAll('.opblock')].map(block => ["
                          "block.querySelector('.opblock-summary-method').innerText,"
                          "block.querySelector('.opblock-summary-path').dataset.path])")
    assert sorted(map(tuple, shown)) == described
    status, body = execute(page, "generation-generate")
    assert status == 200 and body["response"] == answer_for(PROMPT)
    assert execute(page, "health-livez") == (200, {"status": "alive"})
    assert_untroubled(page, api)


def test_page_tries_with_a_key(locked, visit):
    """The page itself wants no key; what is tried from it carries the one given to its Authorize button."""
    page = visit(locked)
    click(page, ".btn.authorize")
    page.until("!!document.querySelector('.auth-container input')")
    page.evaluate("document.querySelector('.auth-container input').focus()")
    page.call("Input.insertText", text=KEY)
    click(page, ".auth-container .authorize")
    page.until("document.querySelector('.auth-container').innerText.includes('Authorized')")
    click(page, ".dialog-ux .close-modal")
    status, body = execute(page, "generation-generate")
    assert status == 200 and body["response"] == answer_for(PROMPT)
    assert_untroubled(page, locked)


def test_assets_are_a_closed_list_with_types_and_caching(locked):
    """Each asset has its type and lasts; no other file of the package or the machine can be had."""
    for asset in (*ASSETS, INITIALIZER):
        kind = {".js": "text/javascript", ".css": "text/css", ".png": "image/png"}[Path(asset).suffix]
        found = locked.get(f"/docs/{asset}")
        assert found.status == 200 and found.headers["Content-Type"].partition(";")[0] == kind
        assert "max-age=3600" in found.headers["Cache-Control"]
        again = locked.get(f"/docs/{asset}", headers={"If-None-Match": found.headers["ETag"]})
        assert (again.status, again.body) == (304, b"")
        part = locked.get(f"/docs/{asset}", headers={"Range": "bytes=9999999-"})
        assert (part.status, part.body) == (200, found.body)  # no parts, so no error about them either
    for path in ("LICENSE", "swagger-ui.js", "../static/LICENSE", "..%2f__init__.py", "%2e%2e/%2e%2e/flask/app.py",
                 "/etc/passwd", "%2fetc%2fpasswd", "swagger-ui.css/", "swagger-ui.css%00"):
        assert locked.get(f"/docs/{path}").slug == "not-found", path


def test_page_has_a_strict_policy(api):
    """Scripts come only from files of this service, the page cannot be framed, and nothing is inline."""
    page = api.get("/docs")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["script-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert b"//" not in page.body.replace(b"<!doctype html>", b"") and b"<script>" not in page.body


def test_an_asset_is_read_once(double, tmp_path, monkeypatch):
    """However often an asset is requested, the service reads and hashes it once."""
    for asset in ASSETS:
        shutil.copy(docs.STATIC / asset, tmp_path)
    monkeypatch.setattr(docs, "STATIC", tmp_path)
    app = create_app(Settings.from_env({"LLAMA_API_OLLAMA_URL": double.url, "LLAMA_API_LOG_FILE": ""}))
    client = app.test_client()
    first = {asset: client.get(f"/docs/{asset}") for asset in ASSETS}
    for asset in ASSETS:
        (tmp_path / asset).unlink()
    for asset, reply in first.items():
        again = client.get(f"/docs/{asset}")
        assert (again.status_code, again.data, again.headers["ETag"]) == (200, reply.data, reply.headers["ETag"])
