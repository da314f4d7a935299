"""Figures of one memory budget of a simulated comparison: latency, where the time goes, what is read, who waits.

One menu chooses the memory of all of them, where several were simulated. The timeline stands in timeline_figures.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

from foregate.report import numbers
from foregate.report.figures import BASELINE, COLOURS, Data, Figure, axes, choices
from foregate.report.simulated import Simulated
from foregate.report.strategy_looks import LEGEND, OBTAINED, at_once, looks_of, place
from foregate.simulation.rows import Row

NAMES_WIDEST = 190  # pixels
PERCENTILES = (("p50", "circle", COLOURS[0]), ("p95", "square", COLOURS[4]), ("p99", "diamond", COLOURS[1]))
PARTS = (
    ("waiting for bytes", "stall_share", COLOURS[1], "/"),
    ("experts", "expert_share", COLOURS[0], ""),
    ("attention and the rest of the layers", "dense_share", COLOURS[5], "."),
    ("the predictor", "predictor_share", COLOURS[4], "x"),
)
"""Where the time goes: name, field, colour, pattern."""
FUTURE = "Dashes around a name: it knows the future."


def latency(found: Simulated, number: int) -> Figure:
    """p50, p95 and p99 of a pass for each strategy."""

    def drawn(rows: Sequence[Row]) -> Data:
        rows = _upwards(rows, key=lambda r: -r.p50)
        names = [_named(r) for r in rows]
        spans = {
            "type": "scatter",
            "mode": "lines",
            "name": "p50 to p99",
            "showlegend": False,
            "x": [x for r in rows for x in (numbers.ms(r.p50), numbers.ms(r.p99), None)],
            "y": [y for n in names for y in (n, n, None)],
            "line": {"color": BASELINE, "width": 2},
            "hoverinfo": "skip",
        }
        return [spans, *(_percentile(rows, names, *looks) for looks in PERCENTILES)]

    layout = _across(found, "milliseconds of a pass (log scale)")
    layout["xaxis"] |= {"type": "log", "tickmode": "array", **_log_ticks(found)}
    return _figure(
        found,
        number,
        "latency",
        title="How long a token takes",
        caption=f"Median, 95th and 99th percentile of a pass, which is the time that a token takes. {FUTURE}",
        told=lambda rows: (
            "milliseconds at p50, p95 and p99: "
            + "; ".join(f"{r.strategy} {' / '.join(f'{1e3 * t:.3g}' for t in (r.p50, r.p95, r.p99))}" for r in rows)
        ),
        drawn=drawn,
        layout=layout,
    )


def spent(found: Simulated, number: int) -> Figure:
    """Share of the time in stalls, experts, the rest of the layers, the predictor."""

    def drawn(rows: Sequence[Row]) -> Data:
        rows = _upwards(rows, key=lambda r: r.tokens_per_second)
        names = [_named(r) for r in rows]
        bars = [
            _bar(part, names, [getattr(r, field) for r in rows], colour, pattern)
            for part, field, colour, pattern in PARTS
        ]
        return [*bars, _bar("beside the layers", names, [beside(r) for r in rows], BASELINE, "")]

    layout = _across(found, "share of the time")
    layout["xaxis"] |= {"tickformat": ".0%", "range": [0, 1.02], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    return _figure(
        found,
        number,
        "spent",
        title="Where the time goes",
        caption="Share of the time that each strategy waits for bytes and works, the fastest on top. Beside the "
        f"layers: embedding and output. {FUTURE}",
        told=lambda rows: (
            "share of the time spent waiting, and in the predictor: "
            + "; ".join(f"{r.strategy} {r.stall_share:.0%}, {r.predictor_share:.0%}" for r in rows)
        ),
        drawn=drawn,
        layout={**layout, "barmode": "stack"},
    )


def read(found: Simulated, number: int) -> Figure:
    """Bytes read per token, and how many guesses were worth it."""

    def drawn(rows: Sequence[Row]) -> Data:
        rows = _upwards(rows, key=lambda r: -r.bytes_per_token)
        guessed = [r for r in rows if r.cold_precision is not None]
        return [
            {
                "type": "bar",
                "orientation": "h",
                "name": "read per token",
                "y": [_named(r) for r in rows],
                "x": [round(r.bytes_per_token) for r in rows],
                "marker": {"color": COLOURS[0]},
                "hovertemplate": "%{y}: %{x:.4s}B per token<extra></extra>",
            },
            {
                "type": "scatter",
                "mode": "markers",
                "name": "cold precision",
                "y": [_named(r) for r in guessed],
                "x": [round(r.cold_precision or 0.0, 4) for r in guessed],
                "xaxis": "x2",
                "marker": {"color": COLOURS[1], "symbol": "diamond", "size": 10},
                "hovertemplate": "%{y}: %{x:.1%} of the guesses read were used<extra></extra>",
            },
        ]

    layout = _across(found, "bytes read per token")
    layout["xaxis"] |= {"domain": [0, 0.58], "exponentformat": "SI", "ticksuffix": "B", "nticks": 5}
    layout["xaxis2"] = {
        "title": {"text": "cold precision"},
        "domain": [0.64, 1],
        "range": [-0.06, 1.06],
        "tickformat": ".0%",
        "tickvals": [0, 0.5, 1],
    }
    return _figure(
        found,
        number,
        "read",
        title="What is read",
        caption="Left: bytes read into fast memory per token, guesses included. Right: cold precision, the share of "
        f"the guesses read that were used before they left (no mark: nothing is guessed). {FUTURE}",
        told=lambda rows: (
            "bytes per token and cold precision: "
            + "; ".join(f"{r.strategy} {numbers.size(r.bytes_per_token)}{_cold(r)}" for r in rows)
        ),
        drawn=drawn,
        layout=layout,
    )


def waits_by_layer(found: Simulated, number: int) -> Figure:
    """Where in the model it waits."""
    looks = looks_of(found)

    def drawn(rows: Sequence[Row]) -> Data:
        return [
            {
                **looks[r.strategy],
                "x": [str(i) for i in range(len(r.layer_stalls))],
                "y": [numbers.ms(s) for s in r.layer_stalls],
                "customdata": [f"{h:.1%}" for h in r.layer_hits],
                "hovertemplate": "layer %{x}: %{y:.4~g} ms a token, %{customdata} hits<extra>%{fullData.name}</extra>",
            }
            for r in rows
        ]

    return _figure(
        found,
        number,
        "waits",
        title="Which layers it waits for",
        caption="Milliseconds waited for each mixture layer's experts, per token of the whole run, prefills included. "
        f"Layers are counted from 0. {LEGEND}",
        told=lambda rows: (
            "milliseconds over all layers, and the layer waited for the most: "
            + "; ".join(f"{r.strategy} {1e3 * sum(r.layer_stalls):.3g}, layer {_worst(r)}" for r in rows)
        ),
        drawn=drawn,
        layout=axes("mixture layer", "ms waited per token", category=True),
    )


def beside(row: Row) -> float:
    """Share of the time that is spent neither waiting nor in a mixture layer nor in the predictor."""
    return max(0.0, 1 - row.stall_share - row.expert_share - row.dense_share - row.predictor_share)


def _figure(
    found: Simulated,
    number: int,
    kind: str,
    *,
    title: str,
    caption: str,
    told: Callable[[Sequence[Row]], str],
    drawn: Callable[[Sequence[Row]], Data],
    layout: dict[str, Any],
) -> Figure:
    """With a view for each memory, the middle one first; none where there is but one."""
    batch = found.batches[0]
    memories = sorted(found.memories, key=lambda m: m != found.middle)
    rows = {place(found, memory): found.at(memory, batch) for memory in memories}
    texts = {label: f"With {label}, {told(of)}." for label, of in rows.items()}
    views = {label: drawn(of) for label, of in rows.items()}
    return Figure(
        name=f"{kind}-{number}",
        title=title,
        caption=f"{caption} {OBTAINED}{at_once(batch)}",
        layout=layout,
        **choices("Memory", views, texts, follows=f"memory-{number}", single=False),
    )


def _percentile(rows: Sequence[Row], names: list[str], label: str, symbol: str, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label,
        "y": names,
        "x": [numbers.ms(getattr(r, label)) for r in rows],
        "marker": {"symbol": symbol, "color": colour, "size": 9},
        "hovertemplate": "%{y}, " + label + ": %{x:.4~g} ms<extra></extra>",
    }


def _bar(part: str, names: list[str], shares: list[float], colour: str, pattern: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": part,
        "y": names,
        "x": [round(s, 4) for s in shares],
        "marker": {"color": colour, "pattern": {"shape": pattern, "size": 6, "solidity": 0.25}},
        "hovertemplate": "%{y}, " + part + ": %{x:.1%}<extra></extra>",
    }


def _log_ticks(found: Simulated) -> dict[str, list[Any]]:
    """Some of each decade, written out: plotly writes the digit alone."""
    low, high = min(r.p50 for r in found.rows) * 1e3, max(r.p99 for r in found.rows) * 1e3
    steps = (1, 1.5, 2, 3, 5, 7) if high < 20 * low else (1, 2, 5) if high < 1000 * low else (1,)
    kept = [t for e in range(-6, 7) for m in steps if low / 2 <= (t := float(f"{m}e{e}")) <= high * 2]
    return {"tickvals": kept, "ticktext": [f"{t:g}" for t in kept]}


def _worst(row: Row) -> int:
    return max(range(len(row.layer_stalls)), key=row.layer_stalls.__getitem__)


def _cold(row: Row) -> str:
    return "" if row.cold_precision is None else f", {row.cold_precision:.0%}"


def _named(row: Row) -> str:
    return f"\u2013 {row.strategy} \u2013" if row.knows_future else row.strategy


def _upwards(rows: Sequence[Row], key: Callable[[Row], float]) -> list[Row]:
    """For an axis that begins below: what knows the future first, then by the key."""
    return sorted(rows, key=lambda r: (not r.knows_future, key(r)))


def _across(found: Simulated, x: str) -> dict[str, Any]:
    """A layout with a strategy a line."""
    longest = max(len(_named(r)) for r in found.rows)
    return {
        "height": 110 + 26 * len(found.names),
        "margin": {"l": min(NAMES_WIDEST, 16 + 7 * longest)},
        "xaxis": {"title": {"text": x}},
        "yaxis": {"type": "category"},
    }
