"""The page's tables as HTML: facts of a trace, and leaderboards that a click or a key sorts. Escapes all text."""

from html import escape

from foregate.description import Description
from foregate.evaluation import Measure
from foregate.facts import facts
from foregate.report import numbers
from foregate.report.board import Board, Column
from foregate.splits import SAME_PROMPT


def facts_table(described: Description) -> str:
    """Facts, provenance and what must be known about the recording."""
    rows = [_fact(name, value, doubtful=name == "trust" and described.doubtful) for name, value in facts(described)]
    source = described.provenance
    for name, values in (("versions", source.versions), ("settings", source.settings)):
        if values:
            rows.append(_fact(name, ", ".join(f"{key} {value}" for key, value in values.items())))
    notes = "".join(f"<li>{escape(note)}</li>" for note in source.notes)
    listed = f'<h3>Notes on the recording</h3><ul class="notes">{notes}</ul>' if notes else ""
    return _scrolled("facts", f'<table class="facts"><tbody>{"".join(rows)}</tbody></table>') + listed


def explanation(board: Board) -> str:
    """How a board's numbers were obtained."""
    split = board.rows[0].split
    leaks = "THIS SPLIT LEAKS: test rows are partly known from training. " if board.leaks else ""
    same = "Trained on the first half of the same prompts: nothing is said of others. " * (split in SAME_PROMPT)
    how = " and ".join(sorted({m.how for m in board.rows})).capitalize()
    return (
        f"{leaks}{same}{how}; split by {split}, replayed as {board.rows[0].replay}. Means over layers with "
        "[95 % intervals], bootstrapped over prompts. Cost: one prediction for one token, where it was compared. "
        "Select a heading to sort."
    )


def leaderboard(board: Board, distance: int | None) -> str:
    """All predictors at one distance, the best first."""
    columns = board.columns()
    ahead = "Predictors" if distance is None else f"{distance} layer{'s' if distance > 1 else ''} ahead"
    caption = f"{ahead}: THIS SPLIT LEAKS" if board.leaks else ahead
    ranked = board.ranked(distance)
    head = "".join(_heading(c, board.main) for c in columns)
    first = _header("predictor", direction="ascending", sorted_now=False)
    body = "".join(_row(board, m.predictor, columns, distance, best=m is ranked[0]) for m in ranked)
    return _scrolled(
        caption,
        f'<table class="board"><caption>{caption}</caption><thead><tr>{first}{head}</tr></thead>'
        f"<tbody>{body}</tbody></table>",
    )


def _scrolled(label: str, table: str) -> str:
    """A table that may be wider than the page; keys can scroll it."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}">{table}</div>'


def _fact(name: str, value: str, *, doubtful: bool = False) -> str:
    mark = ' class="doubtful"' if doubtful else ""
    return f'<tr{mark}><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'


def _heading(column: Column, main: Column) -> str:
    direction = "ascending" if column[0] in numbers.LOWER_IS_BETTER else "descending"
    return _header(numbers.metric_name(*column), direction=direction, sorted_now=column == main)


def _header(text: str, *, direction: str, sorted_now: bool) -> str:
    """`data-first`: the direction of the first click, so that the best comes first."""
    state = f' aria-sort="{direction}"' if sorted_now else ""
    return f'<th scope="col"{state} data-first="{direction}"><button type="button">{escape(text)}</button></th>'


def _row(board: Board, predictor: str, columns: list[Column], distance: int | None, *, best: bool) -> str:
    marks = ""
    if board.is_baseline(predictor):
        marks += ' <span class="mark">baseline</span>'
    if board.leaks:
        marks += ' <span class="mark leak">leaks</span>'
    cells = "".join(_cell(board.cell(predictor, c, distance=distance), interval=c[0] != "coverage") for c in columns)
    name = f'<th scope="row" data-value="{escape(predictor)}">{escape(predictor)}{marks}</th>'
    return f"<tr{' class=best' if best else ''}>{name}{cells}</tr>"


def _cell(measure: Measure | None, *, interval: bool) -> str:
    if measure is None:
        return '<td data-value="">\u2013</td>'
    shown = numbers.interval(measure) if interval else ""
    small = f" <small>{shown}</small>" if shown else ""
    return f'<td data-value="{measure.value!r}">{numbers.value(measure.metric, measure.value)}{small}</td>'
