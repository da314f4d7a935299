"""What a figure of the page is: plotly's own JSON, without colours of the page (the browser adds those).

Colours of lines are Okabe and Ito's, heat maps are cividis: both are made for colour-blind readers. A line also has its
own marker, so that no figure needs colour at all.
"""

from dataclasses import dataclass, field
from typing import Any

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BASELINE = "#8a8a8a"
DASHES = ("solid", "dash", "dot", "dashdot")


@dataclass(frozen=True)
class Figure:
    """One figure of the page.

    name     id in the page
    title    heading
    caption  what is shown, and how it was obtained: measured, simulated or derived
    text     the same for those who cannot see it, with its main numbers
    choices  label -> matrix (base64 of little-endian uint16, in ten-thousandths) for the figure's menu, if it has one
    """

    name: str
    title: str
    caption: str
    text: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]
    choices: dict[str, str] = field(default_factory=dict)


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
