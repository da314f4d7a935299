"""Simulated beside measured as a part of the page: how far off the simulator is for every configuration."""

from collections.abc import Sequence
from html import escape

from foregate.report import numbers
from foregate.report.figures import BASELINE, COLOURS, MARKERS, Data, Figure
from foregate.report.section import Section
from foregate.report.sortable import Cell, Heading, Line, cell, sortable
from foregate.report.validation import CLOSE, Case, Validation

HEADINGS = (
    Heading("memory"),
    Heading("measured, tokens/s"),
    Heading("simulated, tokens/s"),
    Heading("error"),
    Heading("size of the error", lower=True, now=True),
    Heading("prompts"),
    Heading("load", lower=True),
)


def validation_section(found: Validation, number: int) -> Section:
    """`number` tells this figure from others'."""
    return Section(
        name=f"validation-{number}",
        title="Does the simulator tell the truth?",
        body=f'<p class="verdict">{escape(_verdict(found))}</p><p class="soft">{escape(_about(found))}</p>'
        + _table(found),
        figures=(_scatter(found, number), _errors(found, number)),
    )


def _verdict(found: Validation) -> str:
    worst = max(found.rows, key=lambda case: abs(case.error))
    return (
        f"Simulated tokens per second are off by {found.median:.1%} (median of {len(found.rows)} configurations, each "
        f"run and simulated on the same routing); {found.close} of {len(found.rows)} are within {CLOSE:.0%}. The "
        f"worst, {worst.name}, is off by {worst.error:+.1%}."
    )


def _about(found: Validation) -> str:
    known = [f"{name} {value}" for name, value in found.machine.items() if name != "load"]
    return (
        "Error: simulated / measured - 1, the median over prompts. Load: processes that wanted to run on the machine "
        f"meanwhile, the model's own included. Machine: {', '.join(known) or 'unknown'}. Select a heading to sort."
    )


def _table(found: Validation) -> str:
    lines = [
        Line(
            f"{case.evict}{'' if case.policy == 'none' else f' + {case.policy}'}",
            (
                cell("{:.0%}".format, case.budget),
                cell(numbers.rate, case.measured),
                cell(numbers.rate, case.simulated),
                Cell(f"{case.error:+.1%}", case.error, _range(case)),
                cell("{:.1%}".format, abs(case.error)),
                cell(str, len(case.errors)),
                cell("{:.1f}".format, case.load),
            ),
            () if abs(case.error) <= CLOSE else (f"off by more than {CLOSE:.0%}",),
        )
        for case in sorted(found.rows, key=lambda case: abs(case.error))
    ]
    return sortable("Measured and simulated", "configuration", HEADINGS, lines)


def _range(case: Case) -> str:
    return f"{min(case.errors):+.1%} to {max(case.errors):+.1%}" if len(case.errors) > 1 else ""


def _scatter(found: Validation, number: int) -> Figure:
    """Simulated against measured."""
    top = 1.08 * max(max(case.measured, case.simulated) for case in found.rows)
    data: Data = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": f"within {CLOSE:.0%}",
            "x": [0, top, top, 0],
            "y": [0, top * (1 + CLOSE), top * (1 - CLOSE), 0],
            "fill": "toself",
            "fillcolor": "rgba(138,138,138,0.22)",
            "line": {"width": 0, "color": BASELINE},
            "hoverinfo": "skip",
        },
        {
            "type": "scatter",
            "mode": "lines",
            "name": "simulated as measured",
            "x": [0, top],
            "y": [0, top],
            "line": {"color": BASELINE, "dash": "longdash", "width": 1},
            "hoverinfo": "skip",
        },
        *(_marks(found, policy, place) for place, policy in enumerate(_policies(found))),
    ]
    return Figure(
        name=f"validation-scatter-{number}",
        title="Simulated against measured speed",
        caption="A mark for each configuration: tokens a second measured in the runtime, and simulated for the same "
        f"routing with this machine's profile. Grey: within {CLOSE:.0%} of the diagonal. Measured (across) and "
        "simulated (upwards).",
        text=f"{len(found.rows)} marks; {found.close} of them within {CLOSE:.0%} of the diagonal; median error "
        f"{found.median:.1%}. "
        + "; ".join(
            f"{c.name}: {numbers.rate(c.measured)} measured, {numbers.rate(c.simulated)} simulated" for c in found.rows
        )
        + ".",
        data=data,
        layout={
            "height": 440,
            "xaxis": {"title": {"text": "measured, tokens/s"}, "range": [0, top]},
            "yaxis": {"title": {"text": "simulated, tokens/s"}, "range": [0, top]},
        },
    )


def _marks(found: Validation, policy: str, place: int) -> dict[str, object]:
    cases = [case for case in found.rows if case.policy == policy]
    return {
        "type": "scatter",
        "mode": "markers",
        "name": "no prefetch" if policy == "none" else policy,
        "x": [round(c.measured, 4) for c in cases],
        "y": [round(c.simulated, 4) for c in cases],
        "text": [f"{c.name}: {c.error:+.1%}" for c in cases],
        "marker": {"symbol": MARKERS[place % len(MARKERS)], "size": 10, "color": COLOURS[place % len(COLOURS)]},
        "hovertemplate": "%{text}<br>measured %{x:.4~g}, simulated %{y:.4~g}<extra></extra>",
    }


def _errors(found: Validation, number: int) -> Figure:
    """The error of each configuration, with its prompts' range."""
    cases = sorted(found.rows, key=lambda case: -case.error)
    names = [case.name for case in cases]
    spans = {
        "type": "scatter",
        "mode": "lines",
        "name": "all prompts",
        "showlegend": False,
        "x": [x for c in cases for x in (round(min(c.errors), 4), round(max(c.errors), 4), None)]
        if _several(found)
        else [],
        "y": [y for name in names for y in (name, name, None)] if _several(found) else [],
        "line": {"color": BASELINE, "width": 2},
        "hoverinfo": "skip",
    }
    marks = {
        "type": "scatter",
        "mode": "markers",
        "name": "median over prompts",
        "showlegend": False,
        "x": [round(c.error, 4) for c in cases],
        "y": names,
        "marker": {
            "size": 9,
            "symbol": ["circle" if abs(c.error) <= CLOSE else "x" for c in cases],
            "color": [COLOURS[0] if abs(c.error) <= CLOSE else COLOURS[1] for c in cases],
        },
        "hovertemplate": "%{y}: %{x:+.1%}<extra></extra>",
    }
    edge = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "line": {"color": BASELINE, "dash": "dot", "width": 1}}
    return Figure(
        name=f"validation-errors-{number}",
        title="Error of each configuration",
        caption="Simulated / measured - 1: a mark for the median over prompts, a line over all of them. Right of zero "
        f"the simulator promises too much. Dotted: {CLOSE:.0%}; crosses are beyond. Derived from measured and "
        "simulated speeds.",
        text="Errors: " + "; ".join(f"{c.name} {c.error:+.1%}" for c in reversed(cases)) + ".",
        data=[spans, marks],
        layout={
            "height": 110 + 22 * len(cases),
            "margin": {"l": min(230, 16 + 7 * max(map(len, names)))},
            "xaxis": {"title": {"text": "error"}, "tickformat": "+.0%"},
            "yaxis": {"type": "category"},
            "shapes": [{**edge, "x0": x, "x1": x} for x in (-CLOSE, CLOSE)],
        },
    )


def _several(found: Validation) -> bool:
    return any(len(case.errors) > 1 for case in found.rows)


def _policies(found: Validation) -> Sequence[str]:
    return list(dict.fromkeys(case.policy for case in found.rows))
