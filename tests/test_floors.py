"""The floors of the house: imports go down only, across wings by their names alone, each library in its place."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "llama_api"
# From the top floor down. A wing imports wings of lower floors, and the modules at the bottom; embedded stands alone.
FLOORS = [{"wsgi", "__main__"}, {"app"}, {"api", "page"}, {"http"}, {"metrics", "commands", "server", "embedded"},
          {"core"}, {"upstreams"}, {"ollama", "cache"}]
BOTTOM = {"settings", "setting_parsers", "logs", "errors", "faults", "model_call", "answer", "trace_context",
          "background", "file_locks", "native", "waiting", "sockets", "strict_json", "model_names"}
FOREIGN = {
    "flask": {"app", "api", "page", "http"}, "werkzeug": {"app", "api", "page", "http"},
    "marshmallow": {"api"}, "apispec": {"api"}, "flask_cors": {"http"}, "flask_limiter": {"http"},
    "flask_caching": {"app", "cache"}, "redis": {"cache"}, "sqlite3": {"cache"}, "psutil": {"metrics"},
    "prometheus_client": {"metrics", "server"}, "opentelemetry": {"metrics"},
    "requests": {"ollama", "commands"}, "urllib3": {"ollama", "commands"},
    "gunicorn": {"server", "http"}, "click": {"app", "commands", "__main__"}, "xllamacpp": {"embedded"}}
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms} | dict.fromkeys(BOTTOM, len(FLOORS))
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports_of(module):
    """Pairs of what ``module`` imports: the dotted path from the package's root, and whether it is ours."""
    for node in ast.walk(ast.parse((PACKAGE / module).read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module, False
        elif isinstance(node, ast.ImportFrom):
            base = module.with_suffix("").parts[:len(module.parts) - node.level]
            path = [*base, *(node.module or "").split(".")] if node.module else list(base)
            yield from ((".".join([*path, alias.name] if not path else path), True) for alias in node.names)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_module_keeps_to_its_floor(module):
    """It imports what lies below, another wing by its front door alone, and no library that is another wing's."""
    room = module.with_suffix("").parts[0]
    if room == "__init__":
        assert not list(imports_of(module)), "importing any submodule runs this: it must stay light"
        return
    for name, ours in imports_of(module):
        there = name.split(".")[0]
        if not ours:
            assert room in FOREIGN.get(there, {room}), f"{there} is not for {room}"
        elif there not in (room, "__version__"):
            assert room != "embedded", "the stand-in is a process of its own"
            assert FLOOR_OF[room] < FLOOR_OF[there] or {room, there} <= BOTTOM, f"{name} is not below {room}"
            assert name == there, f"{name} is inside another wing: import it from {there}"


def test_every_module_has_a_floor():
    """A new wing or module at the top must be given its place here."""
    rooms = {module.with_suffix("").parts[0] for module in MODULES} - {"__init__"}
    assert rooms <= FLOOR_OF.keys(), rooms - FLOOR_OF.keys()
