"""Names that the shell completes: those of our registries, read from the source, for importing takes a second."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

PACKAGE = Path(__file__).parent.parent


def keys(file: str, registry: str) -> list[str]:
    """The keys that a dict has in one of our files, in order; a key is text, or the name of a text above it."""
    texts: dict[str, str] = {}
    for node in ast.parse((PACKAGE / file).read_text(encoding="utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if not isinstance(target, ast.Name):
            continue
        if isinstance(value, ast.Constant):
            texts[target.id] = str(value.value)
        if target.id == registry:
            assert isinstance(value, ast.Dict)
            return [texts[key.id] if isinstance(key, ast.Name) else ast.literal_eval(key or "") for key in value.keys]
    raise AssertionError(f"{file} has no {registry}")


Complete = Callable[[str], list[str]]


def _of(*places: tuple[str, str]) -> Complete:
    """Completes a comma-separated list: its last word."""

    def complete(incomplete: str) -> list[str]:
        head, comma, _ = incomplete.rpartition(",")
        return [head + comma + name for place in places for name in keys(*place)]

    return complete


predictors = _of(("predictors/__init__.py", "PREDICTORS"))
evictions = _of(("memory/eviction.py", "EVICTION"))
formats = _of(("traces/importers/__init__.py", "IMPORTERS"))
machines = _of(("hardware/presets.py", "SHEETS"))
models = _of(("simulation/shapes.py", "PUBLISHED"))
strategies = _of(("simulation/strategies.py", "STRATEGIES"))
modes = _of(("predictors/speculation.py", "SPECULATION_MODES"))
prompts = _of(("traces/prompts.py", "KNOWN"))
