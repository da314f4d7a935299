"""The whole page: sections in one HTML file, which loads nothing from elsewhere (its own policy forbids)."""

import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from foregate.errors import need
from foregate.report.figures import Figure
from foregate.report.looks import MARGIN, looks
from foregate.report.section import Section

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
STYLES = ("page.css", "tables.css")
SCRIPTS = ("page.js", "journeys.js", "tables.js")


def build_page(
    sections: Sequence[Section], *, title: str, summary: Sequence[str], doubts: Sequence[str] = (), theme: str = ""
) -> str:
    """One self-contained HTML page.

    summary  what was found, a sentence or two each
    doubts   what must be known before any of it is believed
    theme    light or dark; the reader's own where empty

    Raises: ExtraError where plotly is not installed.
    """
    plotly: str = need("plotly.offline", "report").get_plotlyjs()
    names = [s.name for s in sections] + [f.name for s in sections for f in s.figures]
    assert len(names) == len(set(names)), "a name stands twice in the page"
    lines = [f'<p class="summary">{escape(s)}</p>' for s in summary]
    lines += [f'<p class="doubtful" role="note">{escape(s)}</p>' for s in doubts]
    assets = files("foregate.report") / "assets"
    styles, scripts = ([(assets / n).read_text(encoding="utf-8") for n in names] for names in (STYLES, SCRIPTS))
    data = {"looks": looks(), "margin": MARGIN, "figures": {f.name: _values(f) for s in sections for f in s.figures}}
    return f"""<!doctype html>
<html lang="en"{f' data-theme="{theme}"' if theme else ""}>
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{"".join(styles)}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
{_contents(sections)}
<main id="content" tabindex="-1">
<header><h1>{escape(title)}</h1>{"".join(lines)}</header>
{"".join(map(_section, sections))}
</main>
<noscript><p>Tables can be read without scripts; figures need them.</p></noscript>
<script type="application/json" id="figures">{_script_json(data)}</script>
<script>{plotly}</script>
{"".join(f"<script>{chr(10)}{script}</script>{chr(10)}" for script in scripts)}</body>
</html>
"""


def commands_section(commands: Sequence[str]) -> list[Section]:
    """The commands that made a page, for whoever wants to make it again; nothing where there are none."""
    text = escape("\n".join(commands))
    return [Section("again", "Get this again", f'<pre tabindex="0">{text}</pre>')] if commands else []


def _contents(sections: Sequence[Section]) -> str:
    items = "".join(f'<li><a href="#{s.name}">{escape(s.title)}</a></li>' for s in sections)
    return (
        '<nav aria-label="Contents"><button type="button" id="theme" hidden>Dark</button>'
        f'<h2 id="contents">Contents</h2><ol>{items}</ol></nav>'
    )


def _section(section: Section) -> str:
    return (
        f'<section id="{section.name}" aria-labelledby="{section.name}-heading">'
        f'<h2 id="{section.name}-heading">{escape(section.title)}</h2>{section.body}'
        f"{_grid(section.figures)}</section>\n"
    )


def _grid(figures: Sequence[Figure]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(map(_figure, figures))}</div>' if figures else ""


def _figure(figure: Figure) -> str:
    text = f"{figure.title}. {figure.text}"
    wide = ' class="wide"' if figure.wide else ""
    return (
        f'<figure{wide}><h3 id="{figure.name}-title">{escape(figure.title)}</h3>{_menu(figure)}'
        f'<div class="plot" id="{figure.name}" role="img" aria-label="{escape(text)}" '
        f'style="min-height:{figure.layout["height"]}px"></div><figcaption>{escape(figure.caption)}</figcaption></figure>'
    )


def _menu(figure: Figure) -> str:
    if figure.script:
        return f'<div class="menus" data-script="{figure.name}"></div>'
    if not figure.views:
        return ""
    options = "".join(f"<option>{escape(label)}</option>" for label in figure.views)
    return (
        f'<div class="menus"><label class="menu">{escape(figure.menu)} <select data-figure="{figure.name}" '
        f'data-menu="{figure.follows or figure.name}">{options}</select></label></div>'
    )


def _values(figure: Figure) -> dict[str, object]:
    """What the page's scripts draw a figure from; what a menu holds is not said twice."""
    values = {
        "title": figure.title,
        "data": [] if figure.views else figure.data,
        "layout": figure.layout,
        "views": figure.views,
        "texts": figure.texts,
        "script": figure.script,
    }
    return {name: value for name, value in values.items() if value or name in ("data", "layout")}


def _script_json(values: object) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
