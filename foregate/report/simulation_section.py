"""One simulated comparison as a part of the page: what it found, a table a budget, its figures, what was compared."""

from html import escape
from pathlib import Path

from foregate.report import budget_figures, numbers, simulation_figures
from foregate.report.section import Section
from foregate.report.simulated import FLOOR, Simulated
from foregate.report.sortable import LEAK, Cell, Heading, Line, cell, sortable
from foregate.report.tables import pairs_table
from foregate.report.timeline_figures import timeline
from foregate.simulation.rows import Row

ISO_BUDGET = (
    "In each table and at each memory of a figure, every strategy has the same bytes of fast memory and pays for every "
    "read, guesses included. Intervals are 95 %, bootstrapped over prompts. Select a heading to sort."
)
HEADINGS = (
    Heading("tokens/s", now=True),
    Heading("hits"),
    Heading("stalls", lower=True),
    Heading("read per token", lower=True),
    Heading("cold precision"),
    Heading("p50", lower=True),
    Heading("p95", lower=True),
    Heading("p99", lower=True),
    Heading("answer costs", lower=True),
)


def simulation_section(found: Simulated, number: int) -> Section:
    """`number` tells this comparison's figures from others'."""
    moments = timeline(found, number)
    figures = [
        simulation_figures.speed_by_memory(found, number),
        simulation_figures.hits_by_memory(found, number),
        simulation_figures.pareto(found, number),
    ]
    if sum(b is not None for b in found.batches) > 1:
        figures.append(simulation_figures.by_batch(found, number))
    figures += [
        budget_figures.latency(found, number),
        budget_figures.spent(found, number),
        budget_figures.read(found, number),
        budget_figures.waits_by_layer(found, number),
        *([moments] if moments is not None else []),
    ]
    facts = "".join(f"<li>{escape(fact)}</li>" for fact in (*found.facts, *_left(found)))
    tables = [
        _table(found, memory, batch) for batch in found.batches for memory in found.memories if found.at(memory, batch)
    ]
    leaks = " (predictors saw these prompts)" if found.leaks else ""
    return Section(
        name=f"simulation-{number}",
        title=f"{Path(found.trace).name} on {Path(found.profile).name}, simulated{leaks}",
        body=f'<ul class="notes">{facts}</ul><p class="soft">{escape(ISO_BUDGET)}</p>{"".join(tables)}{_about(found)}',
        figures=tuple(figures),
    )


def _table(found: Simulated, memory: str, batch: int | None) -> str:
    rows = found.at(memory, batch)
    best = found.best(memory, batch)
    ranked = sorted(rows, key=lambda r: -r.tokens_per_second)
    together = "" if batch is None else f", {batch} sequence{'s' if batch > 1 else ''} at a time"
    size = numbers.size(rows[0].bytes)
    caption = f"{memory}: {rows[0].slots:,} slots, {size} of experts in fast memory{together} (simulated)"
    return sortable(caption, "strategy", HEADINGS, [_line(found, row, best=row is best) for row in ranked])


def _line(found: Simulated, row: Row, *, best: bool) -> Line:
    marks = ("floor",) * (row.strategy == FLOOR) + ("knows the future",) * row.knows_future + (LEAK,) * found.leaks
    cells = (
        Cell(
            numbers.rate(row.tokens_per_second),
            row.tokens_per_second,
            numbers.rates(row.low, row.high).strip(),
            leaks=found.leaks,
        ),
        cell(numbers.percent, row.hit_rate),
        cell(numbers.percent, row.stall_share),
        cell(numbers.size, row.bytes_per_token),
        cell(numbers.percent, row.cold_precision),
        *(cell(numbers.seconds, t) for t in (row.p50, row.p95, row.p99)),
        cell(numbers.seconds, row.look_seconds or None),
    )
    return Line(row.strategy, cells, marks, best=best)


def _about(found: Simulated) -> str:
    """What each strategy is, where it is from and what its source does otherwise."""
    pairs = []
    for name in found.names:
        strategy = found.strategies[name]
        parts = [f"evicts by {strategy.evict}"]
        if strategy.predictor is not None:
            parts.append(f"asks {strategy.predictor}, reads {strategy.prefetch}, {strategy.distance} layers ahead")
        differs = f" Differs: {strategy.differs}." if strategy.differs else ""
        pairs.append((name, f"{strategy.idea} ({'; '.join(parts)}). After: {strategy.source}.{differs}"))
    return f"<details><summary>What the strategies are</summary>{pairs_table('strategies', pairs)}</details>"


def _left(found: Simulated) -> list[str]:
    return [f"{name} was left out: {reason}" for name, reason in found.left_out.items()]
