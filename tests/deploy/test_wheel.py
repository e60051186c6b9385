"""The wheel: all of the package is in it and nothing else, and it serves where there is no checkout."""

import shutil
import subprocess
import sys
import zipfile

import pytest

import llama_api
from tests.support.gunicorn_server import ROOT, new_prompt


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built of a copy: what an earlier build has left behind would be packed again."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.cfg", "requirements.in", "requirements-otel.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "llama_api", source / "llama_api", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index",
                    "--wheel-dir", target, source], check=True)
    path, = target.iterdir()
    return path


def test_every_wing_and_file_of_the_package_is_in_the_wheel(wheel):
    """A file that nobody listed would be missed only where there is no checkout."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "llama_api").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    assert packed == ours


def test_the_wheel_serves_where_there_is_no_checkout(wheel, serve, double, tmp_path):
    """As the image has it: by the configuration and the entry in the package."""
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-compile",
                    "--target", tmp_path, wheel], check=True)
    first = tmp_path / "llama_api" / "__init__.py"
    first.write_text(first.read_text().replace(llama_api.__version__, "0.0.0"))  # to be told from the checkout's code
    server = serve(double, start=False)
    server.root, server.application = tmp_path, "llama_api.wsgi:app"
    server.arguments = ["--config", "python:llama_api.server.gunicorn_conf"]
    server.start()
    assert server.ask(new_prompt()).status == 200
    assert server.get("/openapi.json").json["info"]["version"] == "0.0.0"
    assert b"<html" in server.get("/", headers={"Accept": "text/html"}).body
