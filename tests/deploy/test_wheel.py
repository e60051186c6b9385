"""The wheel: all of the package is in it and nothing else, and it serves where there is no checkout."""

import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile

import pytest

import llama_api
from tests.support.gunicorn_server import GUNICORN, ROOT, Server, new_prompt


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
    """Only an installation without a checkout would show that a file is missing."""
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if not name.split("/")[0].endswith(".dist-info")}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "llama_api").rglob("*")
            if path.is_file() and "__pycache__" not in path.parts}
    assert packed == ours


@pytest.fixture(scope="module")
def elsewhere(wheel, tmp_path_factory):
    """The programs of a new environment with the wheel in it; the packages that it asks for are lent from ours."""
    home = tmp_path_factory.mktemp("elsewhere")
    venv.create(home, symlinks=True)
    subprocess.run([sys.executable, "-m", "pip", "--python", home / "bin" / "python", "install", "--quiet", "--no-deps",
                    "--no-index", wheel], check=True)
    packages, = home.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib"))
    first = packages / "llama_api" / "__init__.py"
    # to distinguish it from the checkout's code; its length differs, so that pip's compiled files are not used for it
    first.write_text(first.read_text().replace(llama_api.__version__, "0.0"))
    shutil.copy(GUNICORN, home / "bin")
    return home / "bin"


class Installed(Server):
    """The service as the wheel's own programs start it, away from the checkout."""

    def __init__(self, directory, command, **settings):
        super().__init__(directory, settings)
        self._command = command

    def spawn(self):
        with open(self.directory / "stdout", "ab") as out, open(self.directory / "stderr", "ab") as err:
            self.process = subprocess.Popen(self._command, cwd=self.directory, stdout=out, stderr=err,
                                            env=self.environment, start_new_session=True)


IMAGE = ["python", "gunicorn", "--config", "python:llama_api.server.gunicorn_conf", "llama_api.wsgi:app"]


@pytest.mark.parametrize("command", [["llama-api", "run"], IMAGE], ids=["llama-api run", "as in the image"])
def test_the_wheel_serves_where_there_is_no_checkout(elsewhere, command, double, tmp_path):
    """By its own command, and by the configuration and the entry in the package."""
    programs = [elsewhere / word if (elsewhere / word).exists() else word for word in command]
    server = Installed(tmp_path / "home", programs, ollama_url=double.url)
    try:
        server.start()
        assert server.ask(new_prompt()).status == 200
        assert server.get("/openapi.json").json["info"]["version"] == "0.0"
        assert b"<html" in server.get("/", headers={"Accept": "text/html"}).body
        server.stop()
    finally:
        if server.process is not None:
            server.kill()
    server.assert_clean()


def test_the_command_of_the_wheel_says_what_is_wrong(elsewhere, tmp_path):
    """In one sentence each, with status 1."""
    server = Installed(tmp_path / "home", [elsewhere / "llama-api", "run"], parallel=0)
    server.spawn()
    assert server.process.wait(60) == 1
    assert "LLAMA_API_PARALLEL='0' must be" in server.stderr and "Traceback" not in server.stderr
