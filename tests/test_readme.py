"""The README: its snippets run, its links lead somewhere, and it names all that there is to name."""

import re
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from llama_api.commands import cli
from llama_api.faults import SLUGS
from llama_api.settings import Settings
from tests.embedded.conftest import server as model  # noqa: F401, the embedded model as a fixture
from tests.support.gunicorn_server import ROOT, until

TEXT = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "deploy" / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.M | re.S)
LANGCHAIN = "langchain_openai"  # is not installed for the tests
PYTHON = [code for language, code in BLOCKS if language == "python" and LANGCHAIN not in code]


def commands(program):
    """The calls of a program that are shown after a prompt, each as long as the shell goes on reading."""
    found = []
    for _, block in BLOCKS:
        lines = iter(block.splitlines())
        for line in lines:
            if line.startswith(f"$ {program} "):
                while open_ended(line):
                    line += "\n" + next(lines)
                found.append(line.removeprefix("$ "))
    return found


def open_ended(line):
    """Whether a line of a shell goes on in the next one."""
    try:
        shlex.split(line)
    except ValueError:
        return True
    return line.endswith("\\")


def anchors(text):
    """The anchors of the headings of a page, as GitHub makes them."""
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall(r"^#+ (.*)$", text, re.M)}


@pytest.fixture(scope="module")
def api(model, serve):  # noqa: F811
    """The service before the embedded model, which answers to the name in the README; answers are short."""
    return serve(ollama_url=f"http://{model}", model="smollm2:135m", model_aliases="llama3:8b=smollm2:135m",
                 max_tokens_limit=40)


@pytest.mark.parametrize("line", commands("curl"))
def test_curl_lines_answer(api, line, tmp_path):
    """Each prints what the service answered with 200."""
    seen = len(answered(api))
    printed = subprocess.check_output(["sh", "-c", here(api, line)], cwd=tmp_path, text=True, timeout=60)
    record = until(lambda: answered(api)[seen:])[0]
    assert record["status"] == 200 and record["output_tokens"] > 0 and printed


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: code.split()[1])
def test_python_snippets_print_an_answer(api, code):
    """Each runs as it stands, and what it prints comes from the cache when it is run again."""
    printed = [subprocess.check_output([sys.executable, "-c", here(api, code)], text=True, timeout=60)
               for _ in range(2)]
    assert printed[0].strip() and printed[0] == printed[1]
    until(lambda: answered(api)[-1]["cache"] == "hit")


def answered(api):
    """The records of all generations and hits so far."""
    return [record for record in api.records if "cache" in record]


def here(api, code):
    """A snippet for this server."""
    assert "localhost:8000" in code
    return code.replace("localhost:8000", f"127.0.0.1:{api.port}")


def test_every_client_has_a_snippet():
    """Python's clients are those that the text promises."""
    shown = {found for language, code in BLOCKS if language == "python"
             for found in re.findall(r"^(?:from|import) (\w+)", code, re.M)}
    assert shown == {"requests", "openai", "ollama", LANGCHAIN}
    assert all(import_module(name) for name in shown - {LANGCHAIN})


def test_settings_are_complete():
    """Each setting has a row with its default, and no row is of something else."""
    rows = dict(re.findall(r"^\| `([A-Z_]+)`(?: \(no prefix\))? \| (.*?) \|", TEXT, re.M))
    shown = {name.removeprefix("LLAMA_API_"): value for name, value in Settings().shown().items()}
    assert rows == {name: told(value) for name, value in shown.items()}


def told(value):
    """A default as the table has it."""
    if value in ("", None):
        return "–"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value:g}`" if isinstance(value, float) \
        else f"`{value}`"


@pytest.mark.parametrize("slug", SLUGS)
def test_problems_are_named(slug):
    """Each slug is in the table, or where the log is described."""
    assert f"`{slug}`" in TEXT


@pytest.mark.parametrize("command", list(cli.commands))
def test_commands_are_named(command):
    """Each command of llama-api is explained."""
    assert re.search(rf"`(llama-api )?{command}\b", TEXT)


def test_endpoints_are_named(api):
    """Each documented URL is in the tables, but for the files of pages and what is refused or says nothing."""
    paths = {re.sub(r"/\{(model|asset)\}", "", path) for path in api.get("/openapi.json").json["paths"]}
    paths -= {"/page/{version}/{name}", "/api/status", "/api/{action}", "/api/{action}/{target}"}
    known = {re.sub(r"<\w+>", "{}", path) for path in re.findall(r"`(?:POST )?(/[\w/<>.]*)`", TEXT)}
    assert {re.sub(r"\{\w+\}", "{}", path) for path in paths} <= known


def test_metrics_are_named(api):
    """The guide lists each metric, and no other."""
    served = re.findall(r"^# TYPE llama_api_(\w+)", api.get("/metrics").body.decode(), re.M)
    table = GUIDE.partition("## Metrics")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?`) \|", table, re.M)
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(served)


@pytest.mark.parametrize("page", ["README.md", "deploy/README.md"])
def test_links_lead_somewhere(page):
    """Each file that is linked to exists, and has the heading."""
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)(.*?)\)", path.read_text()):
        name, _, anchor = target.partition("#")
        there = (path.parent / name).resolve() if name else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there.read_text()), target


def test_the_picture_is_small():
    """It is loaded by everybody who reads the README."""
    assert (ROOT / "docs" / "page.webp").stat().st_size <= 60_000
