"""Result files of foregate's commands, each known by its content. Draws nothing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foregate.errors import SourceError
from foregate.evaluation import Measure
from foregate.hardware import storage as profiles
from foregate.report import decode
from foregate.report.ran import ran
from foregate.report.results import Results
from foregate.report.simulated import simulated
from foregate.report.transfer import transfer
from foregate.report.validation import validation
from foregate.simulation import planfile

TAKEN = (
    "files of compare, simulate and run --json, plan and profile -o, benchmarks/{sim_vs_run,memory_transfer}.py --json"
)


def read_results(paths: Sequence[Path]) -> Results:
    """All of them.

    Raises: SourceError that names the file, and what in it is wrong.
    """
    found: dict[str, list[Any]] = {}
    for path in paths:
        kind, value = read_result(path)
        found.setdefault(kind, []).extend(value if kind == "measures" else [value])
    return Results(**found)


def read_result(path: Path) -> tuple[str, Any]:
    """What one file holds: the field of Results that it belongs to, and its value.

    Raises: SourceError.
    """
    values = _json(path)
    for kind, fits, read in KINDS:
        if fits(values):
            return kind, read(values, path)
    raise SourceError(f"{path} is none of the results that a report shows; it takes {TAKEN}")


def _json(path: Path) -> Any:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if content.startswith(b"PAR1"):
        raise SourceError(f"{path} is a trace; give it as --trace {path}")
    try:
        return json.loads(content)
    except ValueError as error:
        raise SourceError(f"{path} is no JSON ({error}); a report takes {TAKEN}") from error


def _measures(values: Any, path: Path) -> list[Measure]:
    return [decode.record(Measure, row, str(path), f"row {i + 1}") for i, row in enumerate(values)]


def _rows(values: Any) -> list[Any]:
    """An object's rows, or the list itself; nothing where there are none."""
    rows = values.get("rows") if isinstance(values, dict) else values
    return rows if isinstance(rows, list) and all(isinstance(row, dict) for row in rows) else []


def _has(values: Any, *names: str) -> bool:
    return isinstance(values, dict) and set(names) <= values.keys()


KINDS: tuple[tuple[str, Callable[[Any], bool], Callable[[Any, Path], Any]], ...] = (
    (
        "measures",
        lambda v: isinstance(v, list) and any(_has(row, "predictor", "metric") for row in _rows(v)),
        _measures,
    ),
    ("simulations", lambda v: _has(v, "rows", "strategies", "profile"), lambda v, path: simulated(v, str(path))),
    ("plans", lambda v: _has(v, "format", "evict", "expected"), lambda v, path: planfile.read(path)),
    ("runs", lambda v: _has(v, "text", "memory", "stats"), lambda v, path: ran(v, str(path))),
    ("profiles", lambda v: _has(v, "format", "timings"), lambda v, path: profiles.from_json(v, str(path))),
    (
        "validations",
        lambda v: any(_has(row, "measured", "simulated") for row in _rows(v)),
        lambda v, path: validation(v, str(path)),
    ),
    ("transfers", lambda v: any(_has(row, "way", "break_even") for row in _rows(v)), lambda v, p: transfer(v, str(p))),
)
"""Field of Results, what its files look like, what reads them."""
