"""One self-contained HTML page of a learning curve: what training lost and what judged it, epoch by epoch."""

from collections.abc import Sequence

from foregate.predictors.session import Point
from foregate.report.figures import COLOURS, Figure, axes
from foregate.report.page import build_page, commands_section
from foregate.report.section import Section


def build_curve_page(curve: Sequence[Point], *, title: str, commands: Sequence[str]) -> str:
    """One self-contained HTML page.

    commands  what to type to get these results again

    Raises: ExtraError where plotly is not installed.
    """
    best = max(curve, key=lambda point: point.score)
    text = (
        f"{len(curve)} epochs; the best on what judges, {best.score:.4f}, came after epoch {best.epoch} and was kept."
    )
    figures = (
        _figure("score", "Score on what judges", curve, [p.score for p in curve], COLOURS[0]),
        _figure("loss", "Loss on what is trained on", curve, [p.loss for p in curve], COLOURS[1]),
        _figure("rate", "Learning rate", curve, [p.rate for p in curve], COLOURS[2]),
    )
    sections = [Section("curve", "Learning curve", "", figures), *commands_section(commands)]
    return build_page(sections, title=title, summary=[text])


def _figure(name: str, title: str, curve: Sequence[Point], values: Sequence[float], colour: str) -> Figure:
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [point.epoch for point in curve],
        "y": list(values),
        "line": {"color": colour, "width": 2},
        "hovertemplate": "epoch %{x}: %{y:.5g}<extra></extra>",
    }
    layout = axes("epoch", title.lower())
    layout["yaxis"]["rangemode"] = "normal"
    return Figure(
        name=name,
        title=title,
        caption=f"{title}, measured after each epoch.",
        text=f"From {values[0]:.5g} after the first epoch to {values[-1]:.5g} after the last.",
        data=[line],
        layout=layout,
    )
