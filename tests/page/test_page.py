"""The page's files: who gets it, how they are cached, its policy and its weight."""

import re

import pytest

from llama_api.page.page import STATIC

HTML = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def api(shared_double, serve):
    """A service with keys, which the page and its files do not want."""
    return serve(shared_double, api_keys="a-key-of-some-length")


def files_of(api):
    """The folder of the page's files."""
    return re.search(r'href="(page/\w+)/style.css"', api.get("/", headers=HTML).body.decode())[1]


@pytest.mark.parametrize("accept", ["text/html", HTML["Accept"], "application/json, text/html;q=0.1", "TEXT/HTML"])
def test_a_browser_gets_the_page(api, accept):
    """A client that accepts text/html gets it, and may cache it until the page changes."""
    page = api.get("/", headers={"Accept": accept})
    assert page.status == 200 and page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Vary"] == "Accept" and "no-cache" in page.headers["Cache-Control"]
    again = api.get("/", headers={**HTML, "If-None-Match": page.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("accept", [None, "*/*", "text/plain", "application/json", "text/html;q=0", "text/*"])
def test_a_client_of_ollama_gets_its_word(api, accept):
    """A client that does not accept text/html gets Ollama's answer, for HEAD as well."""
    for method in ("GET", "HEAD"):
        reply = api.request(method, "/", headers={"Accept": accept} if accept else {})
        assert reply.status == 200 and reply.headers["Content-Type"] == "text/plain; charset=utf-8"
        assert reply.headers["Content-Length"] == "17"
        assert reply.body == (b"Ollama is running" if method == "GET" else b"")


def test_files_are_kept_for_good_under_the_url_of_their_version(api):
    """Each file has its type, an ETag and a year; under any other version or name there is nothing."""
    files = files_of(api)
    kinds = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml"}
    for path in STATIC.iterdir():
        if path.suffix == ".html":
            continue
        found = api.get(f"/{files}/{path.name}")
        assert found.status == 200 and found.body == path.read_bytes()
        assert found.headers["Content-Type"].startswith(kinds[path.suffix])
        assert {"immutable", "max-age=31536000"} <= set(found.headers["Cache-Control"].split(", "))
        again = api.get(f"/{files}/{path.name}", headers={"If-None-Match": found.headers["ETag"]})
        assert (again.status, again.body) == (304, b"")
    for path in (f"{files}/index.html", f"{files}/page.py", f"{files}/../page.py", f"{files}/%2e%2e%2fpage.py",
                 "page/0/main.js", f"{files}/main.js/"):
        assert api.get(f"/{path}").slug == "not-found", path


def test_policy_is_strict_and_nothing_stands_in_line(api):
    """Everything comes from this service, the page cannot be framed, and its markup has no inline script or style."""
    page = api.get("/", headers=HTML)
    policy = dict(part.strip().split(" ", 1) for part in page.headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    text = page.body.decode()
    assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?![^>]+src=)|https?:", text)
    scripts = "".join(path.read_text() for path in STATIC.glob("*.js"))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|catch[^{]*\{\s*\}", scripts)


def test_page_is_light():
    """All files together have at most 60 kB, no module has more than 200 lines."""
    assert sum(path.stat().st_size for path in STATIC.iterdir()) <= 60_000
    for path in STATIC.glob("*.js"):
        assert len(path.read_text().splitlines()) < 200, path.name
