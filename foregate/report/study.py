"""One self-contained HTML page of a tuning study: its trials, when the best came, which options mattered."""

import warnings
from collections.abc import Sequence
from html import escape

from foregate.errors import need
from foregate.report import numbers
from foregate.report.figures import BASELINE, COLOURS, Figure, axes
from foregate.report.page import build_page, commands_section
from foregate.report.section import Section
from foregate.report.tables import scrolled
from foregate.tuning import Tuned

ENOUGH = 8  # finished trials before importances mean anything
LINES = 40  # trials whose course is drawn


def build_study_page(tuned: Tuned, *, title: str, commands: Sequence[str]) -> str:
    """One self-contained HTML page.

    commands  what to type to get these results again

    Raises: ExtraError where plotly is not installed.
    """
    figures = (_history(tuned), *_course(tuned), *_importances(tuned))
    sections = [
        Section("search", "How the search went", "", figures),
        Section("trials", "Trials", _table(tuned)),
        *commands_section(commands),
    ]
    return build_page(sections, title=title, summary=[summary(tuned)])


def summary(tuned: Tuned) -> str:
    """What the study found, in two sentences."""
    question = tuned.question
    stopped = sum(a.score is None for a in tuned.attempts)
    text = f"{len(tuned.attempts)} trials, {stopped} of them stopped early. Best: {_scored(tuned, tuned.best.score)}"
    if tuned.default is not None:
        text += f"; as it comes: {_scored(tuned, tuned.default.score)}"
    return (
        f"{text}, by {_metric(tuned)} on {prompts(tuned)} (split by {question.how}, seed "
        f"{question.seed}), on which the best was chosen: expect less on others."
    )


def prompts(tuned: Tuned) -> str:
    """How many were asked, in words."""
    return f"{tuned.prompts} validation prompt{'s' if tuned.prompts > 1 else ''}"


def _history(tuned: Tuned) -> Figure:
    whole = [a for a in tuned.attempts if a.score is not None]
    best: list[float] = []
    for attempt in whole:
        assert attempt.score is not None
        better = max if tuned.question.maximize else min
        best.append(better(attempt.score, best[-1]) if best else attempt.score)
    points = {
        "type": "scatter",
        "mode": "markers",
        "name": "trial",
        "x": [a.number for a in whole],
        "y": [a.score for a in whole],
        "text": [a.component for a in whole],
        "marker": {"color": [COLOURS[1] if a.default else COLOURS[0] for a in whole], "size": 8},
        "hovertemplate": "%{text}<br>%{y:.4f}<extra>trial %{x}</extra>",
    }
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "best so far",
        "x": [a.number for a in whole],
        "y": best,
        "line": {"color": BASELINE, "shape": "hv", "width": 2},
        "hoverinfo": "skip",
    }
    return Figure(
        name="history",
        title="Score of each trial",
        caption=f"{_metric(tuned)} on the validation prompts, measured; trials that were stopped early are left out. "
        "Orange: the predictor as it comes.",
        text=summary(tuned),
        data=[points, line],
        layout=_axes("trial", _metric(tuned), tuned),
    )


def _course(tuned: Tuned) -> list[Figure]:
    """What trials reported on their way; nothing if none did."""
    told = [t for t in tuned.study.get_trials(deepcopy=False) if len(t.intermediate_values) > 0]
    lines = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"trial {t.number}{' (stopped)' if t.state.name == 'PRUNED' else ''}",
            "x": list(t.intermediate_values),
            "y": list(t.intermediate_values.values()),
            "line": {"color": BASELINE if t.state.name == "PRUNED" else COLOURS[0], "width": 1},
            "marker": {"size": 4},
        }
        for t in told[:LINES]
    ]
    stopped = sum(t.state.name == "PRUNED" for t in told)
    figure = Figure(
        name="course",
        title="What trials reported on their way",
        caption="Validation score after each epoch (by the measure that the predictor learns by), or of that many % of "
        "the validation prompts; grey trials fell behind the median and were stopped. Measured. The first "
        f"{len(lines)} trials.",
        text=f"A line for each of {len(lines)} trials; {stopped} were stopped.",
        data=lines,
        layout=_axes("epoch, or % of the prompts", "validation score", tuned),
    )
    return [figure] if lines else []


def _importances(tuned: Tuned) -> list[Figure]:
    """How much each option mattered; nothing while too few trials finished."""
    if sum(a.score is not None for a in tuned.attempts) < ENOUGH:
        return []
    optuna = need("optuna", "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found: dict[str, float] = optuna.importance.get_param_importances(tuned.study)
    names = list(reversed(found))
    figure = Figure(
        name="importance",
        title="Which options mattered",
        caption="Share of the difference between good and other trials that each option accounts for (PED-ANOVA, "
        "derived from the finished trials); few trials make it a rough guess.",
        text="Bars: " + ", ".join(f"{name} {share:.0%}" for name, share in found.items()) + ".",
        data=[
            {
                "type": "bar",
                "orientation": "h",
                "y": names,
                "x": [round(found[name], 4) for name in names],
                "marker": {"color": COLOURS[0]},
                "hovertemplate": "%{y}: %{x:.0%}<extra></extra>",
            }
        ],
        layout={
            "height": 120 + 28 * len(names),
            "margin": {"l": 16 + 8 * max(map(len, names))},
            "xaxis": {"tickformat": ".0%", "rangemode": "tozero"},
            "yaxis": {"type": "category"},
        },
    )
    return [figure]


def _table(tuned: Tuned) -> str:
    sign = -1 if tuned.question.maximize else 1
    ranked = sorted(tuned.attempts, key=lambda a: (a.score is None, sign * (a.score or 0)))
    rows = "".join(
        f"<tr><th scope='row'>{a.number}</th><td>{escape(a.component)}{' (as it comes)' if a.default else ''}</td>"
        f"<td>{'stopped' if a.score is None else numbers.value(tuned.question.metric, a.score)}</td>"
        f"<td>{a.seconds:.1f}</td></tr>"
        for a in ranked
    )
    head = f"<tr><th>trial</th><th>tried</th><th>{escape(_metric(tuned))}</th><th>s</th></tr>"
    return scrolled("trials", f'<table class="facts"><thead>{head}</thead><tbody>{rows}</tbody></table>')


def _metric(tuned: Tuned) -> str:
    question = tuned.question
    return numbers.metric_name(question.metric, question.budget if question.metric == "recall" else None)


def _scored(tuned: Tuned, score: float | None) -> str:
    return "stopped" if score is None else numbers.value(tuned.question.metric, score)


def _axes(x: str, y: str, tuned: Tuned) -> dict[str, object]:
    layout = axes(x, y, percent=tuned.question.metric in numbers.PERCENT)
    layout["yaxis"].pop("rangemode")  # trials differ by little
    if "tickformat" in layout["yaxis"]:
        layout["yaxis"]["tickformat"] = ".1%"
    return layout
