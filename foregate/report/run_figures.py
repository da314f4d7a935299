"""Figures of one run, layer by layer: what was there when asked for, what is waited for, read and guessed. Measured."""

from collections.abc import Sequence
from typing import Any

from foregate.report import numbers
from foregate.report.figures import BASELINE, COLOURS, Figure, axes
from foregate.report.ran import Ran

Part = tuple[str, str, str]
"""Name in the legend, colour, pattern."""
FOUND: dict[str, Part] = {
    "resident": ("there already", COLOURS[0], ""),
    "in_time": ("read ahead, in time", COLOURS[2], "."),
    "late": ("read ahead, late", COLOURS[4], "x"),
    "missed": ("missed", COLOURS[1], "/"),
}
SPENT: dict[str, Part] = {
    "stall": ("waiting for bytes", COLOURS[1], "/"),
    "compute": ("experts", COLOURS[0], ""),
    "predictor": ("looking ahead", COLOURS[4], "x"),
}
GUESSED: dict[str, Part] = {
    "used": ("used", COLOURS[2], "."),
    "wasted": ("wasted", COLOURS[1], "/"),
    "dropped": ("never read", COLOURS[5], "x"),
    "left": ("still in a slot", BASELINE, ""),
}
WHOLE = "Layers are counted from 0. Measured, over the whole run, prefill included."


def found(ran: Ran, number: int) -> Figure:
    """What each layer found when it asked."""
    shares = {
        name: [_ratio(part, whole) for part, whole in zip(ran.by_layer[name], ran.by_layer["demanded"], strict=True)]
        for name in FOUND
    }
    total = ", ".join(f"{FOUND[name][0]} {numbers.percent(ran.total(name) / ran.total('demanded'))}" for name in FOUND)
    worst = _most(shares["missed"])
    layout = axes("mixture layer", "share of the experts demanded", percent=True, category=True)
    layout["yaxis"] |= {"range": [0, 1.001], "tickvals": [0, 0.25, 0.5, 0.75, 1]}
    return Figure(
        name=f"run-found-{number}",
        title="What was there when it was asked for",
        caption="Share of the experts that each layer's tokens were routed to: in a slot already, read ahead on a "
        f"guess and there, read ahead but not there yet, or neither. Late and missed ones are waited for. {WHOLE}",
        text=f"Of all: {total}. Layer {worst} misses the most, {numbers.percent(shares['missed'][worst])}.",
        data=[_bars(part, shares[name], "%{y:.1%}") for name, part in FOUND.items()],
        layout={**layout, "barmode": "stack"},
    )


def spent(ran: Ran, number: int) -> Figure:
    """Where in the model the time goes."""
    times = {name: [numbers.ms(t) for t in ran.per_token(name)] for name in SPENT}
    total = ", ".join(
        f"{SPENT[name][0]} {1e3 * ran.total(name) / ran.tokens:.3g} ({numbers.percent(ran.total(name) / ran.seconds)})"
        for name in SPENT
    )
    return Figure(
        name=f"run-spent-{number}",
        title="Where in the model the time goes",
        caption="Milliseconds per token that each layer waits for its experts' bytes, computes them, and asks who will "
        f"be needed. What is left of a token's time is attention, the rest of the layers, and the output. {WHOLE}",
        text=f"Milliseconds per token over all layers, and their share of the run: {total}. Layer "
        f"{_most(times['stall'])} waits the longest, {max(times['stall']):.3g} ms.",
        data=[_bars(part, times[name], "%{y:.4~g} ms a token") for name, part in SPENT.items() if any(times[name])],
        layout={**axes("mixture layer", "ms per token", category=True), "barmode": "stack"},
    )


def read(ran: Ran, number: int) -> Figure:
    """What each layer's experts cost the disk."""
    sizes = [round(size) for size in ran.per_token("bytes")]
    layout = axes("mixture layer", "bytes read per token", category=True)
    layout["yaxis"] |= {"exponentformat": "SI", "ticksuffix": "B"}
    of_host = ran.total("from_host")
    host = f" {of_host:,.0f} of {ran.total('read'):,.0f} reads came from host memory." if of_host else ""
    return Figure(
        name=f"run-read-{number}",
        title="What is read",
        caption=f"Bytes read from the disk for each layer's experts per token, on demand or on a guess. {WHOLE}",
        text=f"{numbers.size(ran.total('bytes'))} in all, {numbers.size(sum(sizes))} per token; the most for layer "
        f"{_most(sizes)}, {numbers.size(max(sizes))} per token.{host}",
        data=[_bars(("read", COLOURS[0], ""), sizes, "%{y:.4s}B per token")],
        layout=layout,
    )


def guessed(ran: Ran, number: int) -> Figure | None:
    """What became of the guesses; None where there were none."""
    if not ran.total("guessed"):
        return None
    fates = {name: [round(value) for value in ran.by_layer[name]] for name in ("guessed", "used", "wasted", "dropped")}
    issued = fates.pop("guessed")
    fates["left"] = [max(0, n - sum(parts)) for n, *parts in zip(issued, *fates.values(), strict=True)]
    told = ", ".join(f"{GUESSED[name][0]} {sum(counts):,}" for name, counts in fates.items())
    return Figure(
        name=f"run-guessed-{number}",
        title="What became of the guesses",
        caption="Experts that were to be read ahead for each layer: used (in time or late), thrown out unused, dropped "
        f"before their turn to be read came, or in a slot when the run ended. {WHOLE}",
        text=f"{sum(issued):,} guesses: {told}.",
        data=[_bars(GUESSED[name], counts, "%{y:,}") for name, counts in fates.items()],
        layout={**axes("mixture layer", "guesses", category=True), "barmode": "stack"},
    )


def _bars(part: Part, heights: Sequence[float], hover: str) -> dict[str, Any]:
    name, colour, pattern = part
    return {
        "type": "bar",
        "name": name,
        "x": [str(layer) for layer in range(len(heights))],
        "y": list(heights),
        "marker": {"color": colour, "pattern": {"shape": pattern, "size": 6, "solidity": 0.25}},
        "hovertemplate": f"layer %{{x}}, {name}: {hover}<extra></extra>",
    }


def _ratio(part: float, whole: float) -> float:
    return round(part / whole, 4) if whole else 0.0


def _most(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
