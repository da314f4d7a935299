"""Figures of one comparison: its leading metric by layer, distance and budget, and coverage."""

from collections.abc import Sequence
from typing import Any

from foregate.evaluation import Measure
from foregate.report import numbers
from foregate.report.board import Board, Column
from foregate.report.figures import BASELINE, COLOURS, DASHES, MARKERS, Figure, axes

SHOWN = 6  # lines that are drawn at once; the others wait in the legend
NAMES_WIDEST = 200  # pixels


def by_layer(board: Board, name: str, layer_ids: tuple[int, ...] | None) -> Figure:
    """The leading metric by target layer, a line a predictor."""
    distance = _nearest(board)
    layers = board.layers
    shown = [str(layer_ids[i]) if layer_ids else str(i) for i in layers]
    lines = []
    for line in _lines(board):
        cells = [board.cell(line["name"], board.main, distance=distance, layer=layer) for layer in layers]
        lines.append(
            {
                **line,
                "x": shown,
                "y": [None if m is None else round(m.value, 4) for m in cells],
                "customdata": ["" if m is None else numbers.interval(m) for m in cells],
                "hovertemplate": "layer %{x}: %{y:"
                + _format(board.main)
                + "} %{customdata}<extra>%{fullData.name}</extra>",
            }
        )
    return Figure(
        name=name,
        title="Accuracy by layer",
        caption=f"{_metric(board)} of each target layer, {_ahead(distance)}.{_before(board, distance)} "
        f"{_obtained(board)} {_LEGEND}",
        text=f"A line for each of {len(lines)} predictors over {len(layers)} layers. {_leader(board, distance)}",
        data=lines,
        layout=axes("target layer", _metric(board), percent=_is_percent(board.main), category=True, height=440),
    )


def reliability(board: Board, name: str) -> Figure:
    """How often guesses were right against how sure they were."""
    distance = _nearest(board)
    lines = []
    for line in _lines(board):
        points = board.reliability(line["name"], distance)
        if points:
            lines.append(
                {
                    **line,
                    "x": [round(m.confidence or 0.0, 4) for m in points],
                    "y": [round(m.value, 4) for m in points],
                    "customdata": [f"{numbers.interval(m)} of {m.n:,} guesses" for m in points],
                    "hovertemplate": "confidence %{x:.1%}: right %{y:.1%} %{customdata}<extra>%{fullData.name}</extra>",
                }
            )
    for line in lines if not any(line["visible"] is True for line in lines) else ():
        line["visible"] = True
    diagonal = {
        "type": "scatter",
        "mode": "lines",
        "name": "as sure as right",
        "x": [0, 1],
        "y": [0, 1],
        "line": {"color": BASELINE, "width": 1, "dash": "longdash"},
        "hoverinfo": "skip",
    }
    layout = axes("confidence: the probability that the expert is routed", "how often it was", percent=True)
    layout["xaxis"] |= {"tickformat": ".0%", "range": [0, 1.02]}
    layout["yaxis"]["range"] = [0, 1.02]
    return Figure(
        name=name,
        title="Reliability",
        caption="How often the k first guesses of a layer were right, by how sure the predictor was of each, "
        f"{_ahead(distance)}; over all layers. Below the diagonal it claims too much, above too little; points of few "
        f"guesses stray. {_obtained(board)} {_LEGEND}",
        text=f"A line for each of {len(lines)} predictors that give probabilities. {_calibrated(board, distance)}",
        data=[diagonal, *lines],
        layout=layout,
    )


def by_distance(board: Board, name: str) -> Figure:
    """The leading metric against how far ahead is looked."""
    return Figure(
        name=name,
        title="Accuracy by distance",
        caption=f"{_metric(board)} as predictions look further ahead; mean over layers, with 95 % intervals. "
        f"{_obtained(board)} {_LEGEND}",
        text=f"A line for each predictor over distances {_list(board.distances)}. "
        + " ".join(_leader(board, d) for d in board.distances),
        data=[
            _points(board, line, [(d, board.main, d) for d in board.distances], "%{x} ahead") for line in _lines(board)
        ],
        layout=axes("layers ahead", _metric(board), percent=_is_percent(board.main), ticks=board.distances),
    )


def by_budget(board: Board, name: str) -> Figure:
    """Recall against how many experts may be fetched."""
    distance = _nearest(board)
    points = [(b, ("recall", b), distance) for b in board.budgets]
    return Figure(
        name=name,
        title="Recall by budget",
        caption="Share of the routed set among the experts that a budget allows to fetch per layer, "
        f"{_ahead(distance)}; mean over layers, with 95 % intervals. {_obtained(board)} {_LEGEND}",
        text=f"A line for each predictor over budgets {_list(board.budgets)}. "
        + " ".join(_leading(board, b, distance) for b in board.budgets),
        data=[_points(board, line, points, "budget %{x}") for line in _lines(board)],
        layout=axes("experts fetched per layer", "recall", percent=True, ticks=board.budgets),
    )


def coverage(board: Board, name: str) -> Figure:
    """How often each predictor's own mechanism answered."""
    distance = _nearest(board)
    ranked = [m for m in reversed(board.ranked(distance)) if m.coverage is not None]
    return Figure(
        name=name,
        title="Coverage",
        caption="Share of rows that the predictor's own mechanism answered; its back-off answered the rest. All other "
        f"numbers count every row. {_obtained(board)}",
        text="Bars: " + ", ".join(f"{m.predictor} {m.coverage:.0%}" for m in reversed(ranked)) + ".",
        data=[
            {
                "type": "bar",
                "orientation": "h",
                "y": [m.predictor for m in ranked],
                "x": [m.coverage for m in ranked],
                "marker": {"color": [BASELINE if board.is_baseline(m.predictor) else COLOURS[0] for m in ranked]},
                "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
            }
        ],
        layout={
            "height": 90 + 24 * len(ranked),
            "margin": {"l": min(NAMES_WIDEST, 16 + 7 * max((len(m.predictor) for m in ranked), default=0))},
            "xaxis": {"tickformat": ".0%", "range": [0, 1.005]},
            "yaxis": {"type": "category"},
        },
    )


_LEGEND = "Grey lines are baselines; select a name in the legend to show or hide its line."


def _lines(board: Board) -> list[dict[str, Any]]:
    """A line's looks for each predictor, the best first; beyond the best few they wait in the legend."""
    lines: list[dict[str, Any]] = []
    places = {True: 0, False: 0}
    for m in board.ranked(_nearest(board)):
        baseline = board.is_baseline(m.predictor)
        place = places[baseline]
        places[baseline] += 1
        colour = BASELINE if baseline else COLOURS[place % len(COLOURS)]
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": m.predictor,
                "line": {"color": colour, "width": 2, "dash": DASHES[(place + 2 * baseline) % len(DASHES)]},
                "marker": {"symbol": MARKERS[(place + 4 * baseline) % len(MARKERS)], "size": 7},
                "visible": True if place < (2 if baseline else SHOWN - 2) else "legendonly",
            }
        )
    return lines


def _points(
    board: Board, line: dict[str, Any], points: Sequence[tuple[int, Column, int | None]], where: str
) -> dict[str, Any]:
    """One line over (x, column, distance) points."""
    cells = [board.cell(line["name"], column, distance=distance) for _, column, distance in points]
    pattern = _format(points[0][1])
    return {
        **line,
        "error_y": _intervals(cells, line["line"]["color"]),
        "x": [x for x, _, _ in points],
        "y": [None if m is None else round(m.value, 4) for m in cells],
        "customdata": ["" if m is None else numbers.interval(m) for m in cells],
        "hovertemplate": where + ": %{y:" + pattern + "} %{customdata}<extra>%{fullData.name}</extra>",
    }


def _intervals(cells: Sequence[Measure | None], colour: str) -> dict[str, Any]:
    """Of 95 %; nothing where a cell has none."""
    above = [0 if m is None or m.high is None else round(m.high - m.value, 4) for m in cells]
    below = [0 if m is None or m.low is None else round(m.value - m.low, 4) for m in cells]
    looks = {"color": colour, "thickness": 1, "width": 3}
    return {"type": "data", "symmetric": False, "array": above, "arrayminus": below, **looks}


def _leading(board: Board, budget: int, distance: int | None) -> str:
    """Who is best at one budget, for the text alternative."""
    cells = [board.cell(p, ("recall", budget), distance=distance) for p in board.predictors]
    known = [m for m in cells if m is not None]
    if not known:
        return ""
    first = max(known, key=lambda m: m.value)
    return f"With {budget}, {first.predictor} leads with {numbers.value('recall', first.value)}."


def _nearest(board: Board) -> int | None:
    return board.distances[0] if board.distances else None


def _metric(board: Board) -> str:
    return numbers.metric_name(*board.main)


def _is_percent(column: Column) -> bool:
    return column[0] in numbers.PERCENT


def _format(column: Column) -> str:
    return ".1%" if _is_percent(column) else ".3f"


def _ahead(distance: int | None) -> str:
    return "" if distance is None else f"{distance} layer{'s' if distance > 1 else ''} ahead"


def _obtained(board: Board) -> str:
    how = sorted({m.how for m in board.rows})
    leak = " THIS SPLIT LEAKS." if board.leaks else ""
    return (
        f"{' and '.join(how).capitalize()}, split by {board.rows[0].split}, replayed as {board.rows[0].replay}.{leak}"
    )


def _leader(board: Board, distance: int | None) -> str:
    ranked = board.ranked(distance)
    if not ranked:
        return ""
    first = ranked[0]
    return f"{_ahead(distance).capitalize()}, {first.predictor} leads with {numbers.value(first.metric, first.value)}."


def _before(board: Board, distance: int | None) -> str:
    if distance is None or not any(layer < distance for layer in board.layers):
        return ""
    return f" Layer {distance - 1} is asked before the forward pass starts and is in no mean."


def _calibrated(board: Board, distance: int | None) -> str:
    """The mean gap between confidence and hit rate, the smallest first."""
    cells = [board.cell(p, ("calibration_error", None), distance=distance) for p in board.predictors]
    known = sorted((m for m in cells if m is not None), key=lambda m: m.value)
    return "Mean gap by layer: " + ", ".join(f"{m.predictor} {m.value:.3f}" for m in known) + "." if known else ""


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))
