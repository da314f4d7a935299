"""A table that a click or a key sorts (assets/tables.js does it). Escapes all text; knows no subject."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, final

LEAK = "leaks"
"""A mark that also hatches its cells."""


@final
@dataclass(frozen=True)
class Heading:
    """Of a column.

    lower  the lowest value is the best: the first click shows it first
    now    the rows stand in this column's order, the best first
    mark   a word in a box, beside the text
    """

    text: str
    lower: bool = False
    now: bool = False
    mark: str = ""


@final
@dataclass(frozen=True)
class Cell:
    """Of a row.

    value  what it sorts by; None: it stays last
    note   below the text, small: an interval
    leaks  hatched
    """

    text: str
    value: float | str | None = None
    note: str = ""
    leaks: bool = False


EMPTY = Cell("\u2013")


def cell(write: Callable[[Any], str], value: float | None) -> Cell:
    """A number as `write` puts it; empty where there is none."""
    return EMPTY if value is None else Cell(write(value), float(value))


@final
@dataclass(frozen=True)
class Line:
    """A row: what it is of, words in boxes beside that, its cells; `best` lifts it out."""

    name: str
    cells: tuple[Cell, ...]
    marks: tuple[str, ...] = ()
    best: bool = False


def sortable(caption: str, first: str, headings: Sequence[Heading], lines: Sequence[Line]) -> str:
    """HTML; `first` heads the rows' names. Keys can scroll it where it is wider than the page."""
    assert all(len(line.cells) == len(headings) for line in lines)
    head = "".join(map(_heading, [Heading(first, lower=True), *headings]))
    body = "".join(map(_line, lines))
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(caption)}"><table class="board">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _heading(heading: Heading) -> str:
    """`data-first`: the direction of the first click, so that the best comes first."""
    direction = "ascending" if heading.lower else "descending"
    state = f' aria-sort="{direction}"' if heading.now else ""
    text = f'<button type="button">{escape(heading.text)}</button>{_mark(heading.mark) if heading.mark else ""}'
    return f'<th scope="col"{state} data-first="{direction}">{text}</th>'


def _line(line: Line) -> str:
    marks = "".join(map(_mark, line.marks))
    name = f'<th scope="row" data-value="{escape(line.name)}">{escape(line.name)}{marks}</th>'
    return f"<tr{' class=best' if line.best else ''}>{name}{''.join(map(_cell, line.cells))}</tr>"


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else escape(cell.value) if isinstance(cell.value, str) else repr(cell.value)
    note = f" <small>{escape(cell.note)}</small>" if cell.note else ""
    return f'<td{" class=leak" if cell.leaks else ""} data-value="{value}">{escape(cell.text)}{note}</td>'


def _mark(text: str) -> str:
    return f' <span class="mark{" leak" if text == LEAK else ""}">{escape(text)}</span>'
