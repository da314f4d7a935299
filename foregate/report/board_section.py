"""One comparison of predictors as a part of the page: what its numbers are, a leaderboard a distance, its figures."""

from html import escape

from foregate.evaluation import Measure
from foregate.report import board_figures, numbers
from foregate.report.board import Board, Column
from foregate.report.leaks import leaks
from foregate.report.section import Section
from foregate.report.sortable import EMPTY, LEAK, Cell, Heading, Line, sortable
from foregate.splits import SAME_PROMPT


def board_section(board: Board, number: int, layer_ids: tuple[int, ...] | None = None) -> Section:
    """`number` tells this board's figures from others'; `layer_ids` are the model's own numbers of its layers."""
    figures = [board_figures.by_layer(board, f"layer-{number}", layer_ids)] if board.layers else []
    if len(board.distances) > 1:
        figures.append(board_figures.by_distance(board, f"distance-{number}"))
    if len(board.budgets) > 1:
        figures.append(board_figures.by_budget(board, f"budget-{number}"))
    if any(m.metric == "reliability" for m in board.rows):
        figures.append(board_figures.reliability(board, f"reliability-{number}"))
    if any(m.coverage is not None for m in board.rows):
        figures.append(board_figures.coverage(board, f"coverage-{number}"))
    tables = [_leaderboard(board, distance) for distance in board.distances or [None]]  # type: ignore[list-item]
    split = "" if board.rows[0].split == "prompt" else f", split by {board.rows[0].split}"
    return Section(
        name=f"board-{number}",
        title=f"How well predictors know {board.trace}{split}{' (this split leaks)' if board.leaks else ''}",
        body=f'<p class="soft">{escape(_explanation(board))}</p>{"".join(tables)}',
        figures=tuple(figures),
    )


def _explanation(board: Board) -> str:
    """How a board's numbers were obtained."""
    split = board.rows[0].split
    leak = f"THIS SPLIT LEAKS: {leaks(split)} " if board.leaks else ""
    same = "Trained on the first half of the same prompts: nothing is said of others. " * (split in SAME_PROMPT)
    how = " and ".join(sorted({m.how for m in board.rows})).capitalize()
    return (
        f"{leak}{same}{how}; split by {split}, replayed as {board.rows[0].replay}. Means over layers with "
        "[95 % intervals], bootstrapped over prompts. Cost: one prediction for one token, where it was compared. "
        "Select a heading to sort."
    )


def _leaderboard(board: Board, distance: int | None) -> str:
    """All predictors at one distance, the best first."""
    columns, ranked = board.columns(), board.ranked(distance)
    ahead = "Predictors" if distance is None else f"{distance} layer{'s' if distance > 1 else ''} ahead"
    headings = [
        Heading(numbers.metric_name(*c), lower=c[0] in numbers.LOWER_IS_BETTER, now=c == board.main) for c in columns
    ]
    lines = [_line(board, m.predictor, columns, distance, best=m is ranked[0]) for m in ranked]
    return sortable(f"{ahead}: THIS SPLIT LEAKS" if board.leaks else ahead, "predictor", headings, lines)


def _line(board: Board, predictor: str, columns: list[Column], distance: int | None, *, best: bool) -> Line:
    marks = ("baseline",) * board.is_baseline(predictor) + (LEAK,) * board.leaks
    cells = tuple(_cell(board.cell(predictor, c, distance=distance), c) for c in columns)
    return Line(predictor, cells, marks, best=best and not board.leaks)


def _cell(measure: Measure | None, column: Column) -> Cell:
    if measure is None:
        return EMPTY
    interval = "" if column[0] == "coverage" else numbers.interval(measure)
    return Cell(numbers.value(measure.metric, measure.value), measure.value, interval)
