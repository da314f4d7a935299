"""Figures of one simulated comparison over all its memories and batches: speed, hits, the front of what is best.

At each memory every row has the same bytes. What one memory is like stands in budget_figures.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

from foregate.report import numbers
from foregate.report.figures import BASELINE, COLOURS, Figure, axes
from foregate.report.simulated import Simulated
from foregate.report.strategy_looks import BOUND, LEGEND, OBTAINED, at_once, errors, looks_of, place
from foregate.simulation.rows import Row


def speed_by_memory(found: Simulated, number: int) -> Figure:
    """Tokens a second against the share of the experts that fit."""
    return _by_memory(
        found,
        f"speed-{number}",
        title="Speed by memory",
        what="tokens/s",
        told="Tokens a second, with 95 % intervals over prompts",
        value=lambda row: row.tokens_per_second,
        interval=True,
    )


def hits_by_memory(found: Simulated, number: int) -> Figure:
    """Hit rate against the share of the experts that fit."""
    return _by_memory(
        found,
        f"hits-{number}",
        title="Hit rate by memory",
        what="hit rate",
        told="Share of the experts that were there when the router asked for them, guessed or not,",
        value=lambda row: row.hit_rate,
        percent=True,
    )


def pareto(found: Simulated, number: int) -> Figure:
    """Speed against bytes: which strategies nobody beats in the same or less memory, and the oracle's front."""
    batch = found.batches[0]
    able = [row for m in found.memories for row in found.at(m, batch) if not row.knows_future]
    front = _front(able)
    ceiling = _front([row for m in found.memories for row in found.at(m, batch)])
    quoted = "; ".join(f"{numbers.size(r.bytes)}: {r.strategy}, {numbers.rate(r.tokens_per_second)}" for r in front)
    others = [row for row in able if row not in front]
    hover = "%{text}, %{x:.3s}B: %{y:.4s} tokens/s<extra></extra>"
    return Figure(
        name=f"pareto-{number}",
        title="Pareto front of speed and memory",
        caption="Each point is a strategy in so much fast memory; on the line are those that nothing which can be run "
        f"beats in as little. The dashed line is the same front with the bounds. {OBTAINED}{at_once(batch)}",
        text=f"The front, as memory for experts: strategy, tokens a second. {quoted}.",
        data=[
            {
                **_points([r.bytes for r in others], others),
                "mode": "markers",
                "name": "beaten",
                "marker": {"color": BASELINE, "symbol": "circle-open", "size": 7},
                "hovertemplate": hover,
            },
            {
                **_points([r.bytes for r in ceiling], ceiling),
                "mode": "lines+markers",
                "name": "front, with what knows the future",
                "line": {"color": BOUND, "dash": "dash", "shape": "hv"},
                "marker": {"symbol": "triangle-up-open", "size": 8, "color": BOUND},
                "hovertemplate": hover,
            },
            {
                **_points([r.bytes for r in front], front),
                "mode": "lines+markers+text",
                "name": "front",
                "line": {"color": COLOURS[0], "width": 3, "shape": "hv"},
                "marker": {"symbol": "square", "size": 9, "color": COLOURS[0]},
                "textposition": "bottom right",
                "cliponaxis": False,
                "error_y": errors(front, COLOURS[0]),
                "hovertemplate": hover,
            },
        ],
        layout=_sized(axes("bytes of experts in fast memory", "tokens/s"), [r.bytes for r in able]),
    )


def by_batch(found: Simulated, number: int) -> Figure:
    """Tokens a second against sequences at a time, in the memory in the middle."""
    looks, data = looks_of(found), []
    batches = [b for b in found.batches if b is not None]
    for strategy in found.names:
        rows = [r for b in batches if (r := found.find(strategy, found.middle, b)) is not None]
        data.append(
            {
                **looks[strategy],
                "x": [r.batch for r in rows],
                "y": [round(r.tokens_per_second, 4) for r in rows],
                "error_y": errors(rows, looks[strategy]["line"]["color"]),
                "hovertemplate": "%{x} at a time: %{y:.4s} tokens/s<extra>%{fullData.name}</extra>",
            }
        )
    best = [found.best(found.middle, b) for b in batches]
    return Figure(
        name=f"batch-{number}",
        title="Speed by batch",
        caption=f"Tokens a second over all sequences that run at once, in {place(found, found.middle)}; an expert that "
        f"several of them need in a layer is read once. {OBTAINED} {LEGEND}",
        text="The fastest that can be run: "
        + "; ".join(f"{r.batch} at a time {r.strategy}, {numbers.rate(r.tokens_per_second)}" for r in best if r)
        + ".",
        data=data,
        layout=axes("sequences at a time", "tokens/s", ticks=batches),
    )


def _by_memory(
    found: Simulated,
    name: str,
    *,
    title: str,
    what: str,
    told: str,
    value: Callable[[Row], float],
    percent: bool = False,
    interval: bool = False,
) -> Figure:
    """A line a strategy over the memories."""
    batch, looks, data = found.batches[0], looks_of(found), []
    for strategy in found.names:
        rows = [r for m in found.memories if (r := found.find(strategy, m, batch)) is not None]
        line = {
            **looks[strategy],
            "x": [round(found.share(r), 4) for r in rows],
            "y": [round(value(r), 6) for r in rows],
            "customdata": [numbers.size(r.bytes) for r in rows],
            "hovertemplate": "%{x:.1%} (%{customdata}): %{y:"
            + (".1%" if percent else ".4s")
            + "}<extra>%{fullData.name}</extra>",
        }
        data.append({**line, "error_y": errors(rows, line["line"]["color"])} if interval else line)
    layout = axes("share of the experts in fast memory", what, percent=percent, height=420)
    layout["xaxis"] |= {"tickformat": ".0%", "tickvals": sorted({x for line in data for x in line["x"]})}
    return Figure(
        name=name,
        title=title,
        caption=f"{told} against fast memory; at each memory all have the same bytes. "
        f"{OBTAINED}{at_once(batch)} {LEGEND}",
        text=" ".join(_said(found, memory, value, percent=percent) for memory in found.memories),
        data=data,
        layout=layout,
    )


def _said(found: Simulated, memory: str, value: Callable[[Row], float], *, percent: bool) -> str:
    """The main numbers of one memory, for the text alternative."""
    write = numbers.percent if percent else numbers.rate
    rows = sorted(found.at(memory, found.batches[0]), key=lambda r: -value(r))
    return f"{place(found, memory)}: {', '.join(f'{r.strategy} {write(value(r))}' for r in rows)}."


def _front(rows: Sequence[Row]) -> list[Row]:
    """Those that no other is at least as fast as in as little memory, the smallest memory first."""
    kept: list[Row] = []
    for row in sorted(rows, key=lambda r: (r.bytes, -r.tokens_per_second)):
        if not kept or row.tokens_per_second > kept[-1].tokens_per_second:
            kept.append(row)
    return kept


def _points(x: Sequence[float], rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "x": list(x),
        "y": [round(r.tokens_per_second, 4) for r in rows],
        "text": [r.strategy for r in rows],
    }


def _sized(layout: dict[str, Any], sizes: Sequence[int]) -> dict[str, Any]:
    """With bytes below, and room at the right for names."""
    layout["xaxis"] |= {
        "exponentformat": "SI",
        "ticksuffix": "B",
        "rangemode": "tozero",
        "range": [0, max(sizes) * 1.25],
    }
    return layout
