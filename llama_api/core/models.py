"""The served models, their names and their abilities."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import ModelMissing, ModelNotServed, OllamaError
from ..model_names import is_cloud, normal
from ..upstreams import Fleet

EVERYTHING = "*"


class _Shown(NamedTuple):
    """The known facts about a build: its capabilities, and its largest context window."""

    capabilities: frozenset[str] | None  # None if Ollama does not report them (before 0.6.4)
    window: int | None

    @classmethod
    def of(cls, shown: dict[str, Any]) -> "_Shown":
        info = shown.get("model_info")
        sizes = [size for name, size in info.items() if name.endswith(".context_length")
                 and type(size) is int and size > 0] if isinstance(info, dict) else []
        told = shown.get("capabilities")
        return cls(frozenset(map(str, told)) if isinstance(told, list) else None, min(sizes, default=None))


class Models:
    """The served models: ``default``, ``further`` ones (``*`` for all that Ollama has) and their ``aliases``."""

    def __init__(self, fleet: Fleet, default: str, further: Sequence[str] = (),
                 aliases: Sequence[tuple[str, str]] = ()):
        self._fleet, self.default = fleet, default
        self._everything = EVERYTHING in further
        configured = [default, *(name for name in further if name != EVERYTHING)]
        self._configured = {normal(name): name for name in reversed(configured)}
        self._aliases = {normal(alias): (alias, model) for alias, model in aliases}
        self._shown: dict[str, tuple[str | None, _Shown]] = {}  # by model: its build and the facts about that

    @property
    def served(self) -> list[str]:
        """The names of the served models, the default first; with ``*`` all that Ollama lists."""
        names = dict.fromkeys(reversed(self._configured.values()))
        if self._everything:
            for model in self._fleet.inventory():
                if normal(name := str(model["name"])) not in self._configured and not is_cloud(name):
                    names[name] = None
        return list(names)

    @property
    def names(self) -> list[str] | None:
        """The served names and aliases, None when they depend on Ollama's list."""
        return None if self._everything else [*self.served, *(alias for alias, _ in self.aliases)]

    @property
    def aliases(self) -> list[tuple[str, str]]:
        """Pairs of an alias and the name of its model."""
        return [(alias, name) for alias, model in self._aliases.values() if (name := self._named(normal(model)))]

    def resolve(self, name: str) -> str | None:
        """The configured name of the model with the caller's ``name``; None when it is not served."""
        wanted = normal(name)
        if wanted in self._aliases:
            wanted = normal(self._aliases[wanted][1])
        return self._named(wanted)

    def can(self, model: str, ability: str) -> bool:
        """Whether ``model`` has the ``ability`` (``tools``, ``embedding``, ...), asked once per build.

        True if Ollama does not report abilities: it will refuse the call itself.
        """
        try:
            known = self._capabilities_of(model).capabilities
        except OllamaError:
            return True
        return known is None or ability in known

    def digest(self, model: str) -> str | None:
        """The build of ``model`` as of the newest probe, or None."""
        wanted = normal(model)
        return next((str(entry["digest"]) for entry in self._fleet.inventory()
                     if normal(str(entry.get("name"))) == wanted and entry.get("digest")), None)

    def listing(self) -> list[tuple[str, dict[str, Any]]]:
        """The names that callers may use, aliases last, each with its model's entry of /api/tags.

        Models that Ollama lacks are omitted; while no Ollama can be reached, all are listed with empty entries.
        """
        unknown = not self._fleet.state().ollama["reachable"]
        entries = {normal(str(entry.get("name"))): entry for entry in self._fleet.inventory()}
        names = [*((name, name) for name in self.served), *self.aliases]
        return [(name, entries.get(normal(model), {})) for name, model in names if unknown or normal(model) in entries]

    def window(self, model: str) -> int | None:
        """The context window of a served ``model`` in tokens: as loaded, else its largest; None when unknown."""
        if (loaded := self._fleet.window(model)) is not None or self.digest(model) is None:
            return loaded
        try:
            return self._capabilities_of(model).window
        except OllamaError:
            return None

    def loaded(self) -> list[dict[str, Any]]:
        """The entries of /api/ps of the served models. Raises OllamaError."""
        return [model for model in self._fleet.loaded() if self._named(normal(str(model.get("name"))))]

    def inventory(self) -> list[dict[str, Any]]:
        """The entries of /api/tags of the served models that Ollama has, as of the newest probes."""
        return [model for model in self._fleet.inventory() if self._named(normal(str(model["name"])))]

    def listed(self, name: str) -> tuple[str, dict[str, Any]]:
        """The item of the listing for ``name``. Raises ModelNotServed or ModelMissing."""
        for item in self.listing():
            if normal(item[0]) == normal(name):
                return item
        if (model := self.resolve(name)) is not None:
            raise ModelMissing(name, str(self._fleet.not_found_error(model)))
        raise ModelNotServed(name, self.served)

    def _capabilities_of(self, model: str) -> "_Shown":
        """The facts from /api/show about the build of ``model``, asked once. Raises OllamaError."""
        known = self._shown.get(model)
        if known is None or self._fleet.stale_since(model, known[0]) is not None:
            digest = self.digest(model)
            known = self._shown[model] = (digest, _Shown.of(self._fleet.show(model)))
        return known[1]

    def _named(self, wanted: str) -> str | None:
        if wanted in self._configured:
            return self._configured[wanted]
        if not self._everything or is_cloud(wanted):
            return None
        return next((str(model["name"]) for model in self._fleet.inventory()
                     if normal(str(model["name"])) == wanted), None)
