"""One model under several splits: the same predictors side by side, and what those splits give away that leak."""

from collections.abc import Sequence
from html import escape

from foregate.report import numbers
from foregate.report.board import Board
from foregate.report.figures import COLOURS, MARKERS, Data, Figure
from foregate.report.leaks import leaks
from foregate.report.section import Section
from foregate.report.sortable import EMPTY, LEAK, Cell, Heading, Line, sortable
from foregate.splits import SAME_PROMPT

NAMES_WIDEST = 200  # pixels


def split_section(boards: Sequence[Board], number: int) -> Section:
    """Boards of one trace and one replay; the splits that do not leak come first."""
    assert len(boards) > 1
    first = boards[0]
    said = [_sentence(board) for board in boards]
    items = "".join(f"<li>{escape(text)}</li>" for text in [*said, *_gains(boards)])
    return Section(
        name=f"splits-{number}",
        title=f"What the split does to the numbers of {first.trace}",
        body=f'<ul class="notes">{items}</ul>{_table(boards)}',
        figures=(_figure(boards, number),),
    )


def _sentence(board: Board) -> str:
    split = board.rows[0].split
    if board.leaks:
        return f"{split} LEAKS: {leaks(split)}"
    if split in SAME_PROMPT:
        return f"{split}: trained on the first half of the same prompts; nothing is said of other prompts."
    apart = (
        "test: tested on a trace of its own" if split == "test" else f"{split}: no test row's {split} is in training"
    )
    return f"{apart}; what is reached here holds elsewhere."


def _gains(boards: Sequence[Board]) -> list[str]:
    """Who gains most from each split that leaks."""
    honest = next((b for b in boards if not b.leaks), None)
    found = []
    for board in boards:
        if honest is None or not board.leaks or board.main != honest.main:
            continue
        pairs = {
            p: (before, after)
            for p in honest.predictors
            if (before := _value(honest, p)) is not None and (after := _value(board, p)) is not None
        }
        if pairs:
            most = max(pairs, key=lambda p: pairs[p][1] - pairs[p][0])
            rise = " to ".join(numbers.value(honest.main[0], value) for value in pairs[most])
            found.append(
                f"From {honest.rows[0].split} to {board.rows[0].split}, {most} seems to rise the most: from {rise}. "
                "That is the leak, and chance, not knowledge of new prompts."
            )
    return found


def _table(boards: Sequence[Board]) -> str:
    metric = numbers.metric_name(*boards[0].main)
    headings = [
        Heading(f"{metric}, by {b.rows[0].split}", now=i == 0, mark=LEAK if b.leaks else "")
        for i, b in enumerate(boards)
    ]
    lines = []
    for i, name in enumerate(_names(boards)):
        marks = ("baseline",) * boards[0].is_baseline(name)
        cells = tuple(_cell(board, name) for board in boards)
        lines.append(Line(name, cells, marks, best=i == 0 and not boards[0].leaks))
    return sortable("The same predictors under each split", "predictor", headings, lines)


def _cell(board: Board, predictor: str) -> Cell:
    found = board.cell(predictor, board.main, distance=_nearest(board))
    if found is None:
        return EMPTY
    return Cell(numbers.value(found.metric, found.value), found.value, numbers.interval(found), leaks=board.leaks)


def _figure(boards: Sequence[Board], number: int) -> Figure:
    """A mark a split for each predictor; leaking ones are hollow and say so in the legend."""
    names = list(reversed(_names(boards)))
    metric, percent = boards[0].main, boards[0].main[0] in numbers.PERCENT
    data: Data = []
    for place, board in enumerate(boards):
        known = [(name, v) for name in names if (v := _value(board, name)) is not None]
        symbol = MARKERS[place % len(MARKERS)]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"by {board.rows[0].split}{' (LEAKS)' if board.leaks else ''}",
                "x": [round(v, 4) for _, v in known],
                "y": [name for name, _ in known],
                "marker": {
                    "symbol": f"{symbol}-open" if board.leaks else symbol,
                    "color": COLOURS[place % len(COLOURS)],
                    "size": 11,
                    "line": {"width": 2, "color": COLOURS[place % len(COLOURS)]},
                },
                "hovertemplate": "%{y}: %{x:" + (".1%" if percent else ".3f") + "}<extra>%{fullData.name}</extra>",
            }
        )
    told = "; ".join(
        f"by {b.rows[0].split}{' (leaks)' if b.leaks else ''}: "
        + ", ".join(f"{n} {numbers.value(metric[0], v)}" for n in reversed(names) if (v := _value(b, n)) is not None)
        for b in boards
    )
    how = " and ".join(sorted({m.how for b in boards for m in b.rows})).capitalize()
    return Figure(
        name=f"splits-figure-{number}",
        title="The same predictors, other splits",
        caption=f"{numbers.metric_name(*metric)} of each predictor under each split, replayed as "
        f"{boards[0].rows[0].replay}. {how}. Hollow marks are of splits that leak: where they stand right of the full "
        "one, that is no knowledge of other prompts.",
        text=f"{told}.",
        data=data,
        layout={
            "height": 110 + 26 * len(names),
            "margin": {"l": min(NAMES_WIDEST, 16 + 7 * max(map(len, names)))},
            "xaxis": {
                "title": {"text": numbers.metric_name(*metric)},
                "rangemode": "tozero",
                **({"tickformat": ".0%"} if percent else {}),
            },
            "yaxis": {"type": "category", "categoryorder": "array", "categoryarray": names},
        },
        wide=True,
    )


def _names(boards: Sequence[Board]) -> list[str]:
    """The best first, by the first board; then whom only others know."""
    first = [m.predictor for m in boards[0].ranked(_nearest(boards[0]))]
    return list(dict.fromkeys([*first, *(p for b in boards for p in b.predictors)]))


def _value(board: Board, predictor: str) -> float | None:
    found = board.cell(predictor, board.main, distance=_nearest(board))
    return None if found is None else found.value


def _nearest(board: Board) -> int | None:
    return board.distances[0] if board.distances else None
