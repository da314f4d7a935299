"""What a figure of the page is: plotly's own JSON, without colours of the page (those are in `looks`).

Colours of lines are Okabe and Ito's, heat maps are cividis: both are made for colour-blind readers. A line also has its
own marker, so that no figure needs colour at all.
"""

import base64
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foregate.arrays import Float64

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE = "#8a8a8a"
DASHES = ("solid", "dash", "dot", "dashdot")
MARKERS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross", "pentagon", "hexagon", "bowtie")
Data = list[dict[str, Any]]


@dataclass(frozen=True)
class Figure:
    """One figure of the page.

    name     id in the page, and name of its files
    title    heading
    caption  what is shown, and how it was obtained: measured, simulated or derived
    text     the same for those who cannot see it, with its main numbers
    data     plotly's traces; a heat map's `z` may be `packed`
    views    label -> traces for the figure's menu; `data` is the first of them
    texts    label -> `text` of that view, where it has one of its own
    menu     what the menu chooses; figures of one page with the same labels in `follows` change together
    follows  name of the menu that this figure shares with others; its own where empty
    wide     takes the page's whole width
    script   what the figure's own script draws from (assets/journeys.js); no other figure has any
    """

    name: str
    title: str
    caption: str
    text: str
    data: Data
    layout: dict[str, Any]
    views: dict[str, Data] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    menu: str = "Show"
    follows: str = ""
    wide: bool = False
    script: dict[str, Any] = field(default_factory=dict)


def choices(
    menu: str, views: dict[str, Data], texts: dict[str, str], *, follows: str = "", single: bool = True
) -> dict[str, Any]:
    """The fields of a figure with a menu, its first view shown.

    single  there is a menu also where there is but one view
    """
    kept = single or len(views) > 1
    return {
        "text": next(iter(texts.values())),
        "data": next(iter(views.values())),
        "views": views if kept else {},
        "texts": texts if kept else {},
        "menu": menu,
        "follows": follows,
    }


def packed(matrix: Float64) -> str:
    """A square matrix of shares as base64 of little-endian uint16, in ten-thousandths: a fifth of its JSON."""
    return base64.b64encode(np.round(np.clip(matrix, 0, 1) * 10_000).astype("<u2").tobytes()).decode()


def unpacked(text: str) -> Float64:
    """What `packed` packed."""
    values = np.frombuffer(base64.b64decode(text), dtype="<u2") / 10_000
    side = round(len(values) ** 0.5)
    return values.reshape(side, side)


def packed_size(side: int) -> int:
    """Characters of a packed matrix."""
    return 4 * ((side * side * 2 + 2) // 3)


def axes(
    x: str,
    y: str,
    *,
    percent: bool = False,
    category: bool = False,
    height: int = 400,
    ticks: list[int] | None = None,
) -> dict[str, Any]:
    """A layout with named axes."""
    xaxis: dict[str, Any] = {"title": {"text": x}}
    if category:
        xaxis["type"] = "category"
    if ticks:
        xaxis |= {"tickmode": "array", "tickvals": ticks}
    yaxis = {"title": {"text": y}, "rangemode": "tozero", **({"tickformat": ".0%"} if percent else {})}
    return {"height": height, "xaxis": xaxis, "yaxis": yaxis}
