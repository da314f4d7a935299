"""The whole page: one HTML file with everything in it, which loads nothing from elsewhere (its own policy forbids)."""

import json
from collections.abc import Collection, Sequence
from html import escape
from importlib.resources import files

from foregate.description import Description
from foregate.errors import need
from foregate.evaluation import Measure
from foregate.predictors import BASELINES
from foregate.report import board_figures, numbers, routing_figures
from foregate.report.board import Board, boards
from foregate.report.figures import Figure
from foregate.report.tables import explanation, facts_table, leaderboard

ROOM = 2_500_000  # bytes for transition matrices; plotly itself takes 4.8 MB of the 8 that a page may have
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def build_page(
    descriptions: Sequence[Description],
    measures: Sequence[Measure],
    *,
    title: str,
    commands: Sequence[str],
    baselines: Collection[str] = BASELINES,
) -> str:
    """One self-contained HTML page.

    commands   what to type to get these results again
    baselines  names of the predictors that any other must beat

    Raises: ExtraError where plotly is not installed.
    """
    plotly: str = need("plotly.offline", "report").get_plotlyjs()
    compared = boards(measures, baselines)
    shown: list[Figure] = []
    body = [_header(title, descriptions, compared)]
    ids = {d.spec.model: d.spec.layer_ids for d in descriptions}
    body += [_board(board, i, ids.get(board.trace), shown) for i, board in enumerate(compared)]
    body += [_described(d, i, ROOM // len(descriptions), shown) for i, d in enumerate(descriptions)]
    body.append(command_list(commands))
    return document(title, "\n".join(body), shown, plotly)


def summary(board: Board) -> str:
    """What a comparison found, in a sentence or two."""
    place = f"{board.trace}, split by {board.rows[0].split}, replayed as {board.rows[0].replay}"
    if board.leaks:
        return f"On {place}: this split leaks, so no predictor can be called best from it."
    distance = board.distances[0] if board.distances else None
    best, baseline = board.best(distance, baseline=False), board.best(distance, baseline=True)
    metric = numbers.metric_name(*board.main)
    ahead = "" if distance is None else f" {distance} layer{'s' if distance > 1 else ''} ahead"
    if best is None or baseline is None:
        alone = best or baseline
        if alone is None:
            return f"On {place}: nothing was measured by {metric}."
        return f"On {place}: {_scored(alone)} at {metric}{ahead}; there is nothing to compare it with."
    if best.value <= baseline.value:
        return f"On {place}: no predictor beats the best baseline, {_scored(baseline)} at {metric}{ahead}."
    return (
        f"On {place}: the best predictor{ahead} is {_scored(best)} at {metric}, {_gain(best, baseline)} over the best "
        f"baseline, {_scored(baseline)}.{_overlap(best, baseline)}"
    )


def _scored(measure: Measure) -> str:
    return (
        f"{measure.predictor} with {numbers.value(measure.metric, measure.value)} {numbers.interval(measure)}".rstrip()
    )


def _gain(best: Measure, baseline: Measure) -> str:
    gain = best.value - baseline.value
    return f"{gain * 100:.1f} points" if best.metric in numbers.PERCENT else f"{gain:.3f}"


def _overlap(best: Measure, baseline: Measure) -> str:
    if best.low is None or baseline.high is None or best.low > baseline.high:
        return ""
    return " Their 95 % intervals overlap."


def _header(title: str, descriptions: Sequence[Description], compared: Sequence[Board]) -> str:
    sentences = [summary(board) for board in compared] or [_routing(d) for d in descriptions]
    doubts = [
        f"{d.spec.model}: {d.trust()}; re-running the routers gave other experts." for d in descriptions if d.doubtful
    ]
    lines = [f'<p class="summary">{escape(s)}</p>' for s in sentences]
    lines += [f'<p class="doubtful" role="note">{escape(s)}</p>' for s in doubts]
    return f"<header><h1>{escape(title)}</h1>{''.join(lines)}</header>"


def _routing(described: Description) -> str:
    spec = described.spec
    return (
        f"{spec.model}: {described.tokens:,} tokens through {spec.num_layers} mixture layers, {spec.top_k} of "
        f"{spec.num_experts} experts each; nothing was compared."
    )


def command_list(commands: Sequence[str]) -> str:
    """The commands that made a page, for whoever wants to make it again."""
    if not commands:
        return ""
    return f'<section><h2>Get this again</h2><pre tabindex="0">{escape(chr(10).join(commands))}</pre></section>'


def _board(board: Board, number: int, layer_ids: tuple[int, ...] | None, shown: list[Figure]) -> str:
    tables = [leaderboard(board, distance) for distance in board.distances or [None]]  # type: ignore[list-item]
    drawn = [board_figures.by_layer(board, f"layer-{number}", layer_ids)] if board.layers else []
    if len(board.distances) > 1:
        drawn.append(board_figures.by_distance(board, f"distance-{number}"))
    if len(board.budgets) > 1:
        drawn.append(board_figures.by_budget(board, f"budget-{number}"))
    if any(m.metric == "reliability" for m in board.rows):
        drawn.append(board_figures.reliability(board, f"reliability-{number}"))
    if any(m.coverage is not None for m in board.rows):
        drawn.append(board_figures.coverage(board, f"coverage-{number}"))
    shown += drawn
    leaks = ' <span class="mark leak">leaks</span>' if board.leaks else ""
    return (
        f"<section><h2>How well predictors know {escape(board.trace)}{leaks}</h2>"
        f'<p class="soft">{escape(explanation(board))}</p>{"".join(tables)}{grid(drawn)}</section>'
    )


def _described(described: Description, number: int, room: int, shown: list[Figure]) -> str:
    drawn = [routing_figures.load(described, f"load-{number}"), routing_figures.entropy(described, f"entropy-{number}")]
    if described.spec.num_layers > 1:
        drawn.append(routing_figures.transition(described, f"transition-{number}", room))
        drawn.append(routing_figures.information(described, f"information-{number}"))
    drawn.append(routing_figures.reuse(described, f"reuse-{number}"))
    shown += drawn
    heading = f"<h2>The routing of {escape(described.spec.model)}</h2>"
    return f"<section>{heading}{facts_table(described)}{grid(drawn)}</section>"


def grid(drawn: Sequence[Figure]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="figures">{"".join(map(_figure, drawn))}</div>'


def _figure(figure: Figure) -> str:
    height = figure.layout["height"]
    return (
        f'<figure><h3 id="{figure.name}-title">{escape(figure.title)}</h3>{_menu(figure)}'
        f'<div class="plot" id="{figure.name}" role="img" aria-label="{escape(figure.title + ". " + figure.text)}" '
        f'style="min-height:{height}px"></div><figcaption>{escape(figure.caption)}</figcaption></figure>'
    )


def _menu(figure: Figure) -> str:
    if not figure.choices:
        return ""
    options = "".join(f"<option>{escape(label)}</option>" for label in figure.choices)
    return f'<label class="menu">Show <select data-figure="{figure.name}">{options}</select></label>'


def document(title: str, body: str, shown: Sequence[Figure], plotly: str) -> str:
    """A whole self-contained page."""
    assets = files("foregate.report") / "assets"
    style, script = ((assets / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    data = {f.name: {"data": f.data, "layout": f.layout, "choices": f.choices} for f in shown}
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
<noscript><p>Tables can be read without scripts; figures need them.</p></noscript>
<script type="application/json" id="figures">{_script_json(data)}</script>
<script>{plotly}</script>
<script>
{script}</script>
</body>
</html>
"""


def _script_json(values: object) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(values, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
