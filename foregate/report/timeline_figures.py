"""The timeline of a few tokens: what a strategy's worker and link do, moment by moment, beside on-demand reading."""

from collections.abc import Sequence
from typing import Any

from foregate.report import numbers
from foregate.report.figures import COLOURS, Data, Figure, choices
from foregate.report.simulated import FLOOR, Simulated
from foregate.simulation.rows import Row
from foregate.simulation.window import Moment, Window

STRATEGIES = 5  # in the menu: each costs the page some 40 kB
KINDS = (
    ("attention and the rest of a layer", "dense", COLOURS[5], ""),
    ("experts", "compute", COLOURS[0], ""),
    ("the predictor answers", "predictor", COLOURS[4], "x"),
    ("waits for bytes", "stall", COLOURS[1], "/"),
    ("read that is waited for", "read", COLOURS[3], ""),
    ("read ahead, on a guess", "ahead", COLOURS[2], "."),
)
"""Name in the legend, kind (a read ahead apart), colour, pattern."""
LANE = 34  # pixels


def timeline(found: Simulated, number: int) -> Figure | None:
    """A menu of strategies, each below on-demand reading over the same tokens; None where no moments were noted."""
    batch = found.batches[0]
    rows = {r.strategy: r for r in found.at(found.middle, batch) if r.window is not None}
    floor = rows.get(FLOOR)
    chosen = _chosen(list(rows.values()))
    if floor is None or floor.window is None or not chosen:
        return None
    lanes = _lanes_of([floor, *chosen])
    views = {_label(row): _drawn([floor, row], lanes) for row in chosen}
    texts = {_label(row): _told([floor, row]) for row in chosen}
    window = floor.window
    return Figure(
        name=f"timeline-{number}",
        title="A few tokens, moment by moment",
        caption=f"The same {_tokens(window)} in the middle of the run, in {numbers.size(floor.bytes)} of experts: "
        "above on-demand reading with LRU, below the strategy chosen in the menu. One worker computes or waits; reads "
        "run beside it, as many at once as there are lanes. Drag to zoom in. Simulated, not measured.",
        layout=_layout(lanes),
        **choices("Below", views, texts),
        wide=True,
    )


def _chosen(rows: Sequence[Row]) -> list[Row]:
    """The fastest that reads ahead here, the fastest that does not, the best bound, then others by speed."""
    others = sorted((r for r in rows if r.strategy != FLOOR), key=lambda r: -r.tokens_per_second)
    able = [r for r in others if not r.knows_future]
    ahead = [r for r in able if _ahead(r)][:1]
    quiet = [r for r in able if not _ahead(r)][:1]
    bounds = [r for r in others if r.knows_future]
    first = {r.strategy: r for r in (*ahead, *quiet, *bounds[:1], *able, *bounds)}
    return list(first.values())[:STRATEGIES]


def _ahead(row: Row) -> int:
    """Reads of the window that nobody waited for as they began."""
    return 0 if row.window is None else sum(moment[5] for moment in row.window.moments)


def _label(row: Row) -> str:
    return f"{row.strategy} (knows the future)" if row.knows_future else row.strategy


def _drawn(rows: Sequence[Row], lanes: int) -> Data:
    """Bars by kind; the first strategy's lanes are the upper ones."""
    scale, found = 1e3, {kind: _empty() for _, kind, _, _ in KINDS}
    for place, row in enumerate(rows):
        assert row.window is not None
        top = _top(place, lanes)
        for moment, lane in _laned(row.window.moments):
            kind, begin, end, layer, expert, ahead = moment
            bars = found["ahead" if kind == "read" and ahead else kind]
            bars["base"].append(round(begin * scale, 4))
            bars["x"].append(round((end - begin) * scale, 4))
            bars["y"].append(top - lane)
            bars["customdata"].append([layer, expert] if kind in ("read", "stall") else layer)
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            **found[kind],
            "width": 0.82,
            "marker": {"color": colour, "line": {"width": 0}, "pattern": {"shape": pattern, "size": 5}},
            "hovertemplate": f"{name}, "
            + ("layer %{customdata[0]}, expert %{customdata[1]}" if kind in _READS else "layer %{customdata}")
            + ": %{x:.3~r} ms from %{base:.4~r} ms on<extra></extra>",
        }
        for name, kind, colour, pattern in KINDS
    ]


_READS = ("read", "ahead", "stall")


def _laned(moments: Sequence[Moment]) -> list[tuple[Moment, int]]:
    """Lane 0 is the worker's; reads take the first lane that is free, from 1 on."""
    free: list[float] = []
    found = []
    for moment in sorted(moments, key=lambda m: m[1]):
        kind, begin, end = moment[:3]
        lane = 0
        if kind == "read":
            lane = next((i for i, ends in enumerate(free) if ends <= begin + 1e-12), len(free))
            free[lane : lane + 1] = [end]
            lane += 1
        found.append((moment, lane))
    return found


def _lanes_of(rows: Sequence[Row]) -> int:
    """Reads at once, at most."""
    return max(lane for row in rows if row.window is not None for _, lane in [(None, 0), *_laned(row.window.moments)])


def _top(place: int, lanes: int) -> int:
    """The worker's lane of the first or second strategy; a lane stays free between them."""
    return (2 - place) * (lanes + 2) - 1


def _layout(lanes: int) -> dict[str, Any]:
    ticks: dict[int, str] = {}
    for place, whose in enumerate(("on-demand", "chosen")):
        top = _top(place, lanes)
        ticks[top] = whose
        ticks |= {top - lane: f"its reads {lane}" if lanes > 1 else "its reads" for lane in range(1, lanes + 1)}
    return {
        "height": 90 + LANE * 2 * (lanes + 2),
        "barmode": "overlay",
        "bargap": 0,
        "margin": {"l": 84},
        "xaxis": {"title": {"text": "milliseconds"}, "rangemode": "tozero"},
        "yaxis": {"tickmode": "array", "tickvals": list(ticks), "ticktext": list(ticks.values()), "showgrid": False},
    }


def _told(rows: Sequence[Row]) -> str:
    said = []
    for row in rows:
        assert row.window is not None
        spent = {kind: sum(m[2] - m[1] for m in row.window.moments if m[0] == kind) for kind in ("stall", "read")}
        reads = sum(m[0] == "read" for m in row.window.moments)
        said.append(
            f"{_label(row)}: {numbers.seconds(row.window.seconds)}, of which {numbers.seconds(spent['stall'])} "
            f"waiting; {reads} reads, {_ahead(row)} of them ahead on a guess."
        )
    assert rows[0].window is not None
    return f"Bars over time for {_tokens(rows[0].window)}. {' '.join(said)}"


def _tokens(window: Window) -> str:
    return f"{window.tokens} token{'s' if window.tokens != 1 else ''}"


def _empty() -> dict[str, list[Any]]:
    return {"base": [], "x": [], "y": [], "customdata": []}
