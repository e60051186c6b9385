"""/problems/<slug>: a short page on each problem, from the table of errors and the one of advice."""

import re
from html import unescape

import pytest

from llama_api.faults import PROBLEMS
from llama_api.page.problem_texts import ADVICE
from llama_api.settings import Settings

NOTHING = "Nothing."


@pytest.fixture(scope="module")
def api(shared_double, serve):
    """A service with keys and a limit, which these pages do not want."""
    return serve(shared_double, api_keys="a-key-of-some-length", rate_limit="1/day")


def test_each_problem_has_advice_and_nothing_else_does():
    """The two tables agree."""
    assert ADVICE.keys() == PROBLEMS.keys()


@pytest.mark.parametrize("slug", sorted(ADVICE))
def test_advice_is_of_whole_sentences(slug):
    """Each text ends as a sentence does, has its code in pairs of backticks, and names settings that there are."""
    variables = Settings().shown().keys()
    for text in ADVICE[slug]:
        assert (text[0].isupper() or text[0] == "`") and text.endswith(".") and text.count("`") % 2 == 0
        assert set(re.findall(r"LLAMA_API_\w+", text)) <= variables
    assert ADVICE[slug].meaning != NOTHING


@pytest.mark.parametrize("slug", sorted(ADVICE))
def test_a_page_on_each_problem(api, slug):
    """It has the problem's title and status and the advice, as text; also for programs, as JSON."""
    page = api.get(f"/problems/{slug}")
    assert page.status == 200 and page.headers["Content-Type"] == "text/html; charset=utf-8"
    shown = unescape(re.sub(r"<[^>]+>", "", page.body.decode()))
    status, title = PROBLEMS[slug]
    assert all(text.replace("`", "") in shown for text in (title, f"Status {status}, {slug}", *ADVICE[slug]))
    told = api.get(f"/problems/{slug}", headers={"Accept": "application/json"})
    assert told.json == {"type": f"/problems/{slug}", "title": title, "status": status, **ADVICE[slug]._asdict()}


def test_pages_are_strict_and_have_the_style_of_the_page(api):
    """Nothing is inline; the style sheet is the page's own, found under any path of a proxy."""
    page = api.get("/problems/overloaded", headers={"Accept": "text/html"})
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    text = page.body.decode()
    assert not re.search(r"<script|<style|\sstyle=|\son\w+=|https?:", text)
    links = re.findall(r'(?:href|src)="([^"]+)"', text)
    assert links and all(link.startswith("../") for link in links)
    assert api.get(links[1].removeprefix("..")).headers["Content-Type"].startswith("text/css")
    again = api.get("/problems/overloaded", headers={"Accept": "text/html", "If-None-Match": page.headers["ETag"]})
    assert (again.status, again.body) == (304, b"")


@pytest.mark.parametrize("slug", ["none", "Overloaded", "%2e%2e", "<b>", "overloaded/"])
def test_others_are_unknown(api, slug):
    """There is nothing but what is in the table."""
    assert api.get(f"/problems/{slug}").slug == "not-found"


def test_every_problem_links_to_a_page(api):
    """The type of a problem is the URL of a page, also if the request never reached the application."""
    for reply in (api.get("/stats"), api.get("/problems/none"), api.ask("x")):
        assert api.get(reply.json["type"]).status == 200
    with api.send_raw(b"no HTTP\r\n\r\n") as client:
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    assert api.get(re.search(rb'"type":"([^"]+)"', answer)[1].decode()).status == 200
