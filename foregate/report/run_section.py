"""One run as a part of the page: how fast it was, what it waited for, its memory, and every layer's numbers."""

from foregate.report import numbers, run_figures
from foregate.report.ran import Phase, Ran
from foregate.report.section import Section
from foregate.report.sortable import Cell, Heading, Line, cell, sortable
from foregate.report.tables import pairs_table

PHASE = (
    Heading("tokens"),
    Heading("tokens/s"),
    Heading("experts demanded"),
    Heading("there already"),
    Heading("read ahead, in time"),
    Heading("read", lower=True),
    Heading("waited", lower=True),
    Heading("share of time waited", lower=True),
)
LAYER = {
    "demanded": Heading("demanded"),
    "resident": Heading("there already"),
    "in_time": Heading("in time"),
    "late": Heading("late", lower=True),
    "missed": Heading("missed", lower=True),
    "bytes": Heading("read", lower=True),
    "guessed": Heading("guessed"),
    "used": Heading("used"),
    "wasted": Heading("wasted", lower=True),
    "stall": Heading("waited", lower=True),
}
"""A field of the runtime's telemetry -> its column."""
WRITTEN = {"bytes": numbers.size, "stall": numbers.seconds}
"""The same -> how its numbers are written; else whole."""


def run_section(ran: Ran, number: int) -> Section:
    """`number` tells this run's figures from others'."""
    drawn = (
        run_figures.found(ran, number),
        run_figures.spent(ran, number),
        run_figures.read(ran, number),
        run_figures.guessed(ran, number),
    )
    phases = [Line(name, _phase(phase)) for name, phase in ran.phases.items()]
    return Section(
        name=f"run-{number}",
        title=f"What ran: {ran.name}",
        body=pairs_table("the run", _facts(ran))
        + sortable("Speed and waits (measured)", "phase", PHASE, phases)
        + _layers(ran),
        figures=tuple(figure for figure in drawn if figure is not None),
    )


def _facts(ran: Ran) -> list[tuple[str, str]]:
    said = [("model", ran.model), ("setting", ran.setting)]
    said += [] if ran.memory is None else ran.memory.rows()
    if ran.total("guessed"):
        fates = ", ".join(f"{ran.total(name):,.0f} {name}" for name in ("used", "late", "wasted", "dropped"))
        cold = "" if ran.cold_precision is None else f"; cold precision {numbers.percent(ran.cold_precision)}"
        said.append(("guesses", f"{ran.total('guessed'):,.0f} issued, {fates}{cold}"))
    return [(name, value) for name, value in said if value]


def _phase(phase: Phase) -> tuple[Cell, ...]:
    return (
        cell("{:,}".format, phase.tokens),
        cell(numbers.rate, phase.tokens_per_second),
        cell("{:,}".format, phase.demanded),
        cell(numbers.percent, phase.resident_share),
        cell(numbers.percent, phase.in_time_share),
        cell(numbers.size, phase.bytes),
        cell(numbers.seconds, phase.stall),
        cell(numbers.percent, phase.stall_share),
    )


def _layers(ran: Ran) -> str:
    lines = [
        Line(
            str(layer),
            tuple(cell(WRITTEN.get(name, "{:,.0f}".format), value) for name, value in zip(LAYER, values, strict=True)),
        )
        for layer, values in enumerate(zip(*(ran.by_layer[name] for name in LAYER), strict=True))
    ]
    table = sortable("Every mixture layer over the whole run (measured)", "layer", tuple(LAYER.values()), lines)
    return f"<details><summary>Layer by layer</summary>{table}</details>"
