"""How figures look on paper that is light or dark: plotly templates. The page's own colours are in assets/page.css."""

from typing import Any

FONT = 'system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif'
# Fixed: plotly's own expansion of margins goes back and forth in narrow figures, and gives up with a warning.
MARGIN = {"l": 62, "r": 12, "t": 26, "b": 52, "autoexpand": False}


def looks() -> dict[str, dict[str, Any]]:
    """Templates by theme."""
    return {
        "light": _template(ink="#1b1f24", line="#d5dae0", panel="#ffffff", soft="#8a939c"),
        "dark": _template(ink="#e7eaee", line="#363d46", panel="#1d2127", soft="#7d8791"),
    }


def _template(*, ink: str, line: str, panel: str, soft: str) -> dict[str, Any]:
    clear = "rgba(0,0,0,0)"
    axis = {"gridcolor": line, "linecolor": line, "zerolinecolor": line}
    return {
        "layout": {
            "paper_bgcolor": clear,
            "plot_bgcolor": clear,
            "font": {"color": ink, "family": FONT, "size": 12},
            "xaxis": axis,
            "yaxis": axis,
            "hoverlabel": {"bgcolor": panel, "bordercolor": line, "font": {"color": ink}},
            "modebar": {"bgcolor": clear, "color": soft, "activecolor": ink},
        }
    }
