"""A plan as a part of the page: the setting to run with, what it should give, what came next, when guesses pay."""

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import final

from foregate.report import decode, numbers
from foregate.report.figures import BASELINE, COLOURS, Data, Figure, axes
from foregate.report.section import Section
from foregate.report.sortable import Heading, Line, cell, sortable
from foregate.report.tables import pairs_table
from foregate.simulation.breakeven import BreakEven
from foregate.simulation.planfile import Plan


@final
@dataclass(frozen=True)
class Tested:
    """A setting on test prompts; see foregate.simulation.rows.Row."""

    strategy: str
    tokens_per_second: float
    low: float | None
    high: float | None
    hit_rate: float
    stall_share: float
    cold_precision: float | None
    knows_future: bool


@final
@dataclass(frozen=True)
class Tried:
    """A setting on validation prompts."""

    evict: str
    predictor: str | None
    prefetch: str
    distance: int
    tokens_per_second: float

    @property
    def name(self) -> str:
        """In words."""
        if self.predictor is None:
            return self.evict
        if self.prefetch == "none":
            return f"{self.evict}, told by {self.predictor}; nothing is read ahead"
        return f"{self.evict} + {self.predictor}, {self.prefetch}, {self.distance} ahead"


@final
@dataclass(frozen=True)
class Found:
    """What a plan's provenance tells of the search; older plans tell less."""

    break_even: BreakEven | None = None
    test_rows: tuple[Tested, ...] = ()
    runners_up: tuple[Tried, ...] = ()
    gain_of_guesses_on_validation: float | None = None
    settings_tried: int | None = None


def plan_section(plan: Plan, number: int) -> Section:
    """`number` tells this plan's figures from others'. Raises: SourceError for a provenance that cannot be."""
    known = decode.known(Found, plan.provenance)
    found: Found = decode.record(Found, known, f"the plan of {plan.model}", "provenance")
    figures = [_rows(plan, found, number)] if found.test_rows else []
    if found.break_even is not None:
        figures.append(_break_even(found.break_even, number))
    doubt = " no" if plan.prefetch == "none" else ""
    return Section(
        name=f"plan-{number}",
        title=f"How to run {Path(plan.model).name} with {plan.memory} of memory",
        body=f'<p class="verdict{doubt}">{escape(_recommendation(plan, found))}</p>'
        + pairs_table("the plan", _facts(plan, found))
        + (_runners_up(plan, found) if found.runners_up else ""),
        figures=tuple(figures),
    )


def _recommendation(plan: Plan, found: Found) -> str:
    expected = plan.expected
    times = f"{numbers.rate(expected.tokens_per_second)} tokens/s{numbers.rates(expected.low, expected.high)} expected"
    gained = f"{expected.tokens_per_second / expected.on_demand:.2f} times on-demand reading with LRU"
    gain = found.gain_of_guesses_on_validation
    if plan.prefetch == "none" and plan.predictor is not None:
        return f"Do not read ahead here; evict by {plan.evict}, told by {plan.predictor}: {times}, {gained}."
    if plan.predictor is not None:
        told = (
            "" if gain is None else f" Guesses gained {gain:.1%} over the best setting without, on validation prompts."
        )
        return f"Evict by {plan.evict} and read ahead ({plan.wish}): {times}, {gained}.{told}"
    if gain is None:
        told = "No predictor could be asked, so reading ahead was not tried."
    elif gain < 0:
        told = f"The best setting that reads ahead was {-gain:.1%} slower on validation prompts."
    else:
        told = f"The best setting that reads ahead gained only {gain:.1%} on validation prompts."
    return f"Do not prefetch here. Evict by {plan.evict}: {times}, {gained}. {told}"


def _facts(plan: Plan, found: Found) -> list[tuple[str, str]]:
    origin, even = plan.provenance, found.break_even
    pairs = [
        ("model", f"{plan.model}, {plan.layers} layers of {plan.experts} experts"),
        ("setting", f"--memory {plan.memory} --evict {plan.evict}" + (f" --prefetch {plan.wish}" if plan.wish else "")),
        (
            "expected",
            f"{numbers.rate(plan.expected.tokens_per_second)} tokens/s"
            f"{numbers.rates(plan.expected.low, plan.expected.high)}, simulated on prompts that took no part in the "
            "choice",
        ),
        ("on demand with LRU", f"{numbers.rate(plan.expected.on_demand)} tokens/s, simulated on the same prompts"),
        ("break-even on this link", "unknown" if even is None else _even(even)),
        ("machine", f"{origin.get('profile', 'unknown')} ({origin.get('basis', 'unknown')})"),
        ("found on", f"{origin.get('source', 'unknown')}, replayed as {origin.get('replay', 'unknown')}"),
    ]
    if plan.read_seconds is not None and plan.window_seconds is not None:
        read, window = numbers.seconds(plan.read_seconds), numbers.seconds(plan.window_seconds)
        hidden = plan.window_seconds / plan.read_seconds
        pairs.insert(
            5, ("reads behind work", f"an expert is read in {read}, a layer works {window}: {hidden:.2g} reads a layer")
        )
    if found.settings_tried is not None:
        pairs.append(("settings tried", f"{found.settings_tried}, by simulation on validation prompts"))
    return pairs


def _even(even: BreakEven) -> str:
    ahead = f"{even.distance} layer{'s' if even.distance > 1 else ''} ahead"
    best = max(speed for _, speed in even.points)
    if even.precision is None:
        return f"not even perfect guesses {ahead} pay ({best:.2f} times on-demand reading)"
    return (
        f"guesses {ahead} pay from a cold precision of {even.precision:.0%} on; perfect ones reach {best:.2f} times "
        "on-demand reading"
    )


def _runners_up(plan: Plan, found: Found) -> str:
    headings = (Heading("tokens/s", now=True),)
    lines = [
        Line(t.name, (cell(numbers.rate, t.tokens_per_second),))
        for t in sorted(found.runners_up, key=lambda t: -t.tokens_per_second)
    ]
    return sortable("Runners-up, on validation prompts (simulated)", "setting", headings, lines)


def _rows(plan: Plan, found: Found, number: int) -> Figure:
    """Speeds on test prompts with their intervals."""
    rows = sorted(found.test_rows, key=lambda r: r.tokens_per_second)
    names = [f"\u2013 {r.strategy} \u2013" if r.knows_future else r.strategy for r in rows]
    data: Data = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": "tokens/s",
            "x": [round(r.tokens_per_second, 4) for r in rows],
            "y": names,
            "error_x": {
                "type": "data",
                "symmetric": False,
                "array": [0 if r.high is None else round(r.high - r.tokens_per_second, 4) for r in rows],
                "arrayminus": [0 if r.low is None else round(r.tokens_per_second - r.low, 4) for r in rows],
                "color": BASELINE,
            },
            "marker": {
                "size": 11,
                "symbol": [_symbol(r) for r in rows],
                "color": [COLOURS[0] if r.strategy == "recommended" else BASELINE for r in rows],
            },
            "hovertemplate": "%{y}: %{x:.4~g} tokens/s<extra></extra>",
        }
    ]
    return Figure(
        name=f"plan-rows-{number}",
        title="The recommended setting beside others",
        caption="Tokens a second on test prompts, which took no part in the choice, with 95 % intervals over prompts; "
        "all in the same fast memory. Dashes around a name: it knows the future, nobody can run it. Simulated.",
        text="; ".join(
            f"{r.strategy} {numbers.rate(r.tokens_per_second)}{numbers.rates(r.low, r.high)}" for r in reversed(rows)
        )
        + ".",
        data=data,
        layout={
            "height": 120 + 30 * len(rows),
            "margin": {"l": 16 + 7 * max(map(len, names))},
            "xaxis": {"title": {"text": "tokens/s"}, "rangemode": "tozero"},
            "yaxis": {"type": "category"},
        },
    )


def _break_even(even: BreakEven, number: int) -> Figure:
    """Speed against how often guesses are right."""
    points = sorted(even.points)
    data: Data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": "reading ahead",
            "x": [round(p, 4) for p, _ in points],
            "y": [round(s, 4) for _, s in points],
            "line": {"color": COLOURS[0], "width": 2},
            "marker": {"size": 8},
            "hovertemplate": "cold precision %{x:.0%}: %{y:.2f} times on demand<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "on demand",
            "x": [0, 1],
            "y": [1, 1],
            "line": {"color": BASELINE, "dash": "dash"},
            "hoverinfo": "skip",
        },
    ]
    if even.precision is not None:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": "break-even",
                "x": [round(even.precision, 4)],
                "y": [1],
                "marker": {"symbol": "star", "size": 15, "color": COLOURS[1]},
                "hovertemplate": "break-even at %{x:.0%}<extra></extra>",
            }
        )
    layout = axes("cold precision of the guesses", "times on-demand reading")
    layout["xaxis"] |= {"tickformat": ".0%", "range": [-0.02, 1.03]}
    return Figure(
        name=f"plan-even-{number}",
        title="When guesses pay on this link",
        caption=f"Guesses of a known quality, {even.distance} layer{'s' if even.distance > 1 else ''} ahead at most, "
        "as many as a layer will use; whoever guesses takes no time; LRU on both sides. Above the dashed line reading "
        "ahead is faster. Simulated on validation prompts.",
        text=f"{_even(even).capitalize()}. "
        + "; ".join(f"cold precision {p:.0%}: {s:.2f} times" for p, s in points)
        + ".",
        data=data,
        layout=layout,
    )


def _symbol(row: Tested) -> str:
    return "star" if row.strategy == "recommended" else "triangle-up-open" if row.knows_future else "circle"
