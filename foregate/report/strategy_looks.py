"""How strategies look and are named in every figure of one simulated comparison. Draws nothing."""

from collections.abc import Sequence
from typing import Any

from foregate.report import numbers
from foregate.report.figures import BASELINE, COLOURS, DASHES, MARKERS
from foregate.report.simulated import FLOOR, Simulated
from foregate.simulation.rows import Row

SHOWN = 4  # strategies that are drawn at once beside floor and bounds; the others wait in the legend
BOUND = "#6f7c8c"
OBTAINED = "Simulated, not measured."
LEGEND = (
    "Grey: on-demand reading with LRU (the floor) and what knows the future (dashed, the ceiling; nobody can run it). "
    "Select a name in the legend to show or hide its line."
)


def looks_of(found: Simulated) -> dict[str, dict[str, Any]]:
    """How each strategy's line looks, the same in all figures."""
    bounds = {r.strategy for r in found.rows if r.knows_future}
    looks: dict[str, dict[str, Any]] = {}
    place = 0
    for name in found.names:
        if name == FLOOR:
            colour, dash, marker, shown = BASELINE, "solid", "circle", True
        elif name in bounds:
            late = sum(n in bounds for n in looks)
            colour, dash, marker, shown = (
                BOUND,
                ("dash", "dot")[late % 2],
                ("triangle-up", "triangle-down")[late % 2],
                True,
            )
        else:
            colour, dash = COLOURS[place % len(COLOURS)], DASHES[place % len(DASHES)]
            marker, shown = MARKERS[1 + place % (len(MARKERS) - 1)], place < SHOWN
            place += 1
        looks[name] = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": name,
            "line": {"color": colour, "width": 2, "dash": dash},
            "marker": {"symbol": marker, "size": 8},
            "visible": True if shown else "legendonly",
        }
    return looks


def errors(rows: Sequence[Row], colour: str) -> dict[str, Any]:
    """The 95 % intervals; nothing where a row has none."""
    speeds = [(r.tokens_per_second, r.low, r.high) for r in rows]
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if high is None else round(high - v, 4) for v, _, high in speeds],
        "arrayminus": [0 if low is None else round(v - low, 4) for v, low, _ in speeds],
        "color": colour,
        "thickness": 1,
        "width": 4,
    }


def place(found: Simulated, memory: str) -> str:
    """A memory in words."""
    first = found.at(memory, found.batches[0])[0]
    return f"{found.share(first):.0%} of the experts ({numbers.size(first.bytes)})"


def at_once(batch: int | None) -> str:
    """How many sequences, as a sentence; nothing where they ran as recorded."""
    return "" if batch is None else f" {batch} sequence{'s' if batch > 1 else ''} at a time."
