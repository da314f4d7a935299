"""The leaderboard as tables in the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from foregate.cli.terminal import STYLE, file_size

if TYPE_CHECKING:
    from foregate.evaluation import Measure

    Cells = dict[tuple[str, str, int | None], Measure]

PERCENT = ("top1", "top2", "recall", "exact_set", "coverage")
Column = tuple[str, int | None]


def leaderboards(measures: Sequence[Measure]) -> Iterator[Table]:
    """For each distance: how often each predictor is right, and how sure and how dear it is; the best recall first."""
    for distance in sorted({m.distance for m in measures if m.distance is not None}):
        cells = {
            (m.predictor, m.metric, m.budget): m for m in measures if m.layer is None and m.distance in (None, distance)
        }
        main = _main_budget(list(cells.values()))
        names = sorted({key[0] for key in cells}, key=lambda name: -cells[name, "recall", main].value)
        budgets = sorted({key[2] for key in cells if key[2] is not None})
        leaks = " - LEAKS" if measures[0].leaks else ""
        title = f"{_ahead(distance)}: how often right, in % (measured{leaks})"
        right: list[Column] = [
            ("top1", None),
            ("top2", None),
            *(("recall", b) for b in budgets),
            ("exact_set", None),
        ]
        yield _table(title, names, right, cells, interval=("recall", main))
        cost: list[Column] = [
            (m, None) for m in ("coverage", "log_loss", "calibration_error", "predict_us", "fit_s", "bytes")
        ]
        yield _table("how sure, and at what cost", names, cost, cells, interval=("log_loss", None))


def splits_table(measures: Sequence[Measure]) -> Iterator[Table]:
    """For each distance: the same predictors under several splits, side by side; the best by prompt first."""
    splits = list(dict.fromkeys(m.split for m in measures))
    for distance in sorted({m.distance for m in measures if m.distance is not None}):
        cells = {
            (m.split, m.predictor, m.metric, m.budget): m
            for m in measures
            if m.layer is None and m.distance == distance
        }
        recall: Column = ("recall", measures[0].top_k)
        ranked = any(key[2] == "top1" for key in cells)
        columns: list[Column] = [("top1", None), ("top2", None)] if ranked else [recall]
        table = Table(title=f"{_ahead(distance)}, by split, in % (measured)", title_justify="left", **STYLE)
        table.add_column("predictor", max_width=18, overflow="fold")
        for how in splits:
            leaks = " LEAKS" if any(m.leaks for m in measures if m.split == how) else ""
            for column in columns:
                table.add_column(f"{how}{leaks}\n{_heading(*column)}", justify="right")
        names = dict.fromkeys(key[1] for key in cells)
        for name in sorted(names, key=lambda n: -cells[splits[0], n, *recall].value):
            table.add_row(
                name, *(_text(cells.get((how, name, *c)), with_interval=False) for how in splits for c in columns)
            )
        yield table


def _table(title: str, names: list[str], columns: list[Column], cells: Cells, *, interval: Column) -> Table:
    columns = [c for c in columns if any((name, *c) in cells for name in names)]
    table = Table(title=title, title_justify="left", **STYLE)
    table.add_column("predictor", max_width=18, overflow="fold")
    for column in columns:
        table.add_column(_heading(*column), justify="right", no_wrap=True)
    for name in names:
        values = [_text(cells.get((name, *c)), with_interval=c == interval) for c in columns]
        leaks = next(cells[key].leaks for key in cells if key[0] == name)
        table.add_row(name + (" (leaks)" if leaks else ""), *values)
    return table


def _main_budget(measures: list[Measure]) -> int | None:
    """The budget that is asked for in every comparison, k: the one whose interval is shown."""
    recall = [m for m in measures if m.metric == "recall"]
    return recall[0].top_k if recall else None


def _ahead(distance: int) -> str:
    return f"{distance} layer{'s' if distance > 1 else ''} ahead"


def _heading(metric: str, budget: int | None) -> str:
    names = {
        "top1": "top-1",
        "top2": "top-2",
        "recall": f"recall@{budget}",
        "exact_set": "exact",
        "log_loss": "log-loss",
        "calibration_error": "calib.",
        "coverage": "cover",
        "predict_us": "us",
        "fit_s": "fit s",
        "bytes": "size",
    }
    return names[metric]


def _text(measure: Measure | None, *, with_interval: bool) -> str:
    if measure is None:
        return "-"
    if measure.metric == "bytes":
        return file_size(int(measure.value))
    if measure.metric == "predict_us":
        return f"{measure.value:.0f}"
    scale, digits = (100, 1) if measure.metric in PERCENT else (1, 3 if measure.metric != "fit_s" else 1)
    text = f"{measure.value * scale:.{digits}f}"
    if with_interval and measure.low is not None and measure.high is not None:
        text += f" [{measure.low * scale:.{digits}f}, {measure.high * scale:.{digits}f}]"
    return text
