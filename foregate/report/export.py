"""Figures as files: data as CSV, pictures as SVG and PNG (drawn by a Chromium that is installed, through kaleido)."""

import asyncio
import csv
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np

from foregate.errors import ExtraError, need
from foregate.report import token_journeys
from foregate.report.figures import Data, Figure, unpacked
from foregate.report.looks import MARGIN, looks
from foregate.traces.storage import replacing

WIDTH, WIDE = 900, 1240  # pixels
HEAD = 60  # of a picture, for its title
SCALE = 2  # pixels of a PNG for each of the page
Row = dict[str, Any]
Advance = Callable[[str, float], None]


def write_data(figures: Sequence[Figure], folder: Path) -> list[Path]:
    """NAME.csv for each figure, with every view of its menu. Raises: StorageError."""
    paths = []
    for figure in figures:
        rows = list(_rows(figure))
        columns = list(dict.fromkeys(name for row in rows for name in row))
        text = StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        paths.append(folder / f"{figure.name}.csv")
        with replacing(paths[-1]) as temporary:
            temporary.write_text(text.getvalue(), encoding="utf-8")
    return paths


def write_pictures(figures: Sequence[Figure], folder: Path, advance: Advance = lambda what, share: None) -> list[Path]:
    """NAME.svg and NAME.png for each figure, as it first looks in a light page.

    advance  is told which figure is drawn, and what share of them all it is

    Raises: ExtraError, where kaleido or a browser is missing. StorageError.
    """
    kaleido = need("kaleido", "report")
    missing = need("choreographer.errors", "report").ChromeNotFoundError
    try:
        return asyncio.run(_drawn(kaleido, figures, folder, advance))
    except missing as error:
        raise ExtraError(
            "SVG and PNG files need a Chromium or Chrome to draw them (on Debian: apt install chromium); the page and "
            "the CSV files are written"
        ) from error


async def _drawn(kaleido: Any, figures: Sequence[Figure], folder: Path, advance: Advance) -> list[Path]:
    paths = []
    async with kaleido.Kaleido(mathjax=False) as browser:  # its MathJax would come from the network
        for figure in figures:
            advance(figure.name, 1 / len(figures))
            layout = _layout(figure)
            shown = [_whole(trace) for trace in figure.data if trace.get("visible", True) is True]
            size = {"width": WIDE if figure.wide else WIDTH, "height": layout["height"]}
            for kind, scale in (("svg", 1), ("png", SCALE)):
                opts = {"format": kind, "scale": scale, **size}
                content = await browser.calc_fig({"data": shown, "layout": layout}, opts=opts)
                paths.append(folder / f"{figure.name}.{kind}")
                with replacing(paths[-1]) as temporary:
                    temporary.write_bytes(content)
    return paths


def _layout(figure: Figure) -> dict[str, Any]:
    margin = {**MARGIN, **figure.layout.get("margin", {})}
    return {
        **figure.layout,
        "margin": {**margin, "t": margin["t"] + HEAD, "autoexpand": True},
        "height": figure.layout["height"] + HEAD,
        "title": {
            "text": escape(figure.title, quote=False),
            "subtitle": {"text": _told(figure)},
            "x": 0.02,
            "y": 1,
            "yanchor": "top",
            "pad": {"t": 14},
        },
        "template": looks()["light"],
        "paper_bgcolor": "#ffffff",
    }


def _told(figure: Figure) -> str:
    """What stands in the page around a figure and must not be lost: how it was obtained, and which view it is."""
    how = re.search(r"\b(measured|simulated|derived)\b", figure.caption, re.IGNORECASE)
    assert how, figure.name
    view = figure.script.get("first") or next(iter(figure.views), None)
    return escape(f"{how[0].capitalize()}{'' if view is None else f', {view}'}", quote=False)


def _whole(trace: dict[str, Any]) -> dict[str, Any]:
    return {**trace, "z": unpacked(trace["z"]).tolist()} if isinstance(trace.get("z"), str) else trace


def _rows(figure: Figure) -> Iterator[Row]:
    if figure.script:
        yield from token_journeys.rows(figure.script)
    elif figure.views:
        for label, data in figure.views.items():
            for row in _of_data(figure, data):
                yield {figure.menu.lower(): label, **row}
    else:
        yield from _of_data(figure, figure.data)


def _of_data(figure: Figure, data: Data) -> Iterator[Row]:
    for trace in map(_whole, data):
        if trace["type"] == "sankey":
            yield from _flows(trace)
        elif trace["type"] == "heatmap":
            yield from _cells(figure, trace)
        else:
            yield from _points(figure, trace)


def _flows(trace: dict[str, Any]) -> Iterator[Row]:
    names, link = trace["node"]["label"], trace["link"]
    for source, target, value in zip(link["source"], link["target"], link["value"], strict=True):
        yield {"from": names[source], "to": names[target], "value": value}


def _cells(figure: Figure, trace: dict[str, Any]) -> Iterator[Row]:
    values = trace["z"]
    down = trace.get("y") or range(len(values))
    across = trace.get("x") or range(len(values[0]))
    y, x = _axis(figure, "y"), _axis(figure, "x")
    x = f"other {x}" if x == y else x
    for label, line in zip(down, values, strict=True):
        yield from ({y: label, x: other, "value": value} for other, value in zip(across, line, strict=True))


def _points(figure: Figure, trace: dict[str, Any]) -> Iterator[Row]:
    """A row a point: whatever the trace says of each."""
    names = {"x": _axis(figure, "x"), "y": _axis(figure, "y"), "customdata": "note"}
    count = len(trace["y"] if "y" in trace else trace["x"])
    columns = {}
    for key, values in _flat(trace):
        if isinstance(values, list | tuple | np.ndarray) and len(values) == count:
            columns[names.get(key, key)] = values
    for i in range(count):
        yield {"series": trace.get("name", ""), **{name: values[i] for name, values in columns.items()}}


def _flat(trace: dict[str, Any], within: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in trace.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{within}{key}.")
        else:
            yield within + key, value


def _axis(figure: Figure, axis: str) -> str:
    title = figure.layout.get(f"{axis}axis", {}).get("title", {})
    return str(title.get("text") or axis)
