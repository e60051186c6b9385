"""The ``options`` of Ollama's requests: those sent on, those reserved for the operator, and their types."""

from collections.abc import Mapping
from typing import Any

from ..strict_json import Json
from .ollama_fields import FieldType, refuse

_INTEGERS = frozenset({"num_keep", "seed", "num_predict", "top_k", "repeat_last_n", "mirostat"})
_FRACTIONS = frozenset({"temperature", "top_p", "min_p", "typical_p", "tfs_z", "repeat_penalty", "presence_penalty",
                        "frequency_penalty", "mirostat_tau", "mirostat_eta"})
_BOOLEANS = frozenset({"penalize_newline"})
# Load-time options: a value other than the loaded model's makes Ollama load it again, for all users (issue 6148).
_LOAD_INTEGERS = frozenset({"num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict"})
_LOAD_FRACTIONS = frozenset({"rope_frequency_base", "rope_frequency_scale"})
_LOAD_BOOLEANS = frozenset({"use_mmap", "use_mlock", "numa", "low_vram", "f16_kv", "logits_all", "vocab_only"})
LOAD_TIME = _LOAD_INTEGERS | _LOAD_FRACTIONS | _LOAD_BOOLEANS
KNOWN = {"integer": _INTEGERS | _LOAD_INTEGERS, "float32": _FRACTIONS | _LOAD_FRACTIONS,
         "boolean": _BOOLEANS | _LOAD_BOOLEANS, "array": frozenset({"stop"})}
_KIND_OF = {name: kind for kind, names in KNOWN.items() for name in names}


def _read(path: str, value: Any) -> Json | None:
    if not isinstance(value, Mapping):
        refuse(path, f"json: cannot unmarshal into Go struct field {path} of type map[string]interface {{}}")
    found = {name: _checked(f"{path}.{name}", name, one) for name, one in value.items()
             if name in _KIND_OF and one is not None}
    return {name: one for name, one in found.items() if one != []} or None


def _checked(path: str, name: str, value: Any) -> Any:
    kind = _KIND_OF[name]
    if kind == "array":
        if not isinstance(value, list):
            refuse(path, f'option "{name}" must be of type array')
        if not all(isinstance(item, str) for item in value):
            refuse(path, f'option "{name}" must be of an array of strings')
        return value
    if type(value) not in ((bool,) if kind == "boolean" else (int, float)):
        refuse(path, f'option "{name}" must be of type {kind}')
    if kind == "integer" and not abs(value) < 2 ** 63:
        refuse(path, f'option "{name}" must be an integer of 64 bits')
    return int(value) if kind == "integer" else value  # Ollama truncates fractions


_SCHEMAS: dict[str, Json] = {"integer": {"type": ["integer", "null"]}, "float32": {"type": ["number", "null"]},
                             "boolean": {"type": ["boolean", "null"]},
                             "array": {"type": ["array", "null"], "items": {"type": "string"}}}
# The options that Ollama knows; others are ignored. Unlike field names, their names are case-sensitive.
OPTIONS = FieldType({"type": "object", "properties": {name: _SCHEMAS[kind] for name, kind in _KIND_OF.items()}}, _read)
