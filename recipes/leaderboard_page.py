"""The leaderboard's page and its rows as JSON, from finished comparisons. Computes nothing but who is first."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from leaderboard_subjects import DISTANCES, Subject

from foregate.comparison import Comparison
from foregate.evaluation import Measure
from foregate.predictors import BASELINES
from foregate.report import numbers
from foregate.spec import MoESpec
from foregate.splits import SAME_PROMPT
from foregate.traces.storage import replacing

HALVES = (
    "**Trained on the first half of each prompt's tokens, tested on the second half of the same prompts: this says "
    "nothing about other prompts.**"
)
DIGITS = 5
DEFAULTS = {f.name: f.default for f in fields(Measure)}


@dataclass
class Board:
    """One trace's comparisons.

    tokens    in the whole trace
    found     component -> what it scored
    left_out  component or predictor -> why it is not here
    """

    subject: Subject
    spec: MoESpec
    tokens: int
    found: dict[str, Comparison] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def budgets(self) -> list[int]:
        """Experts that may be fetched per layer."""
        return sorted({m.budget for one in self.found.values() for m in one.measures if m.budget is not None})

    def cell(self, component: str, metric: str, distance: int | None = 1, budget: int | None = None) -> Measure | None:
        """One number, the mean over layers; None where it was not measured."""
        wanted = (metric, distance, budget, None)
        measures = self.found[component].measures
        return next((m for m in measures if (m.metric, m.distance, m.budget, m.layer) == wanted), None)

    def recall(self, component: str, distance: int = 1) -> Measure:
        """What ranks: the share of the routed set among k guesses."""
        cell = self.cell(component, "recall", distance, self.spec.top_k)
        assert cell is not None, f"{component} was not asked {distance} layers ahead"
        return cell

    @property
    def ranked(self) -> list[str]:
        """Components, the best at distance 1 first."""
        return sorted(self.found, key=lambda c: -self.recall(c).value)

    @property
    def distances(self) -> list[int]:
        """Layers ahead that this model has."""
        return [d for d in DISTANCES if d < self.spec.num_layers]


def write(boards: Sequence[Board], path: Path) -> None:
    """The page, and its numbers beside it."""
    filled = [board for board in boards if board.found]
    with replacing(path) as temporary:
        temporary.write_text(page(filled), encoding="utf-8")
    rows = [short(m) for board in filled for c in board.ranked for m in board.found[c].measures if _shown(m)]
    with replacing(path.with_suffix(".json")) as temporary:
        lines = ",\n".join(json.dumps(row, separators=(",", ":")) for row in rows)
        temporary.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def short(measure: Measure) -> dict[str, Any]:
    """A row for Measure(**row): rounded, without fields that hold their default."""
    row = {k: v for k, v in asdict(measure).items() if v != DEFAULTS[k]}
    return {k: round(v, DIGITS) if isinstance(v, float) else v for k, v in row.items()}


def _shown(measure: Measure) -> bool:
    """Means over layers; coverage stands in every other row."""
    return measure.layer is None and measure.metric not in ("reliability", "coverage")


def page(boards: Sequence[Board]) -> str:
    """The whole page."""
    return HEAD + "\n".join(_section(board) for board in boards)


def _section(board: Board) -> str:
    spec, subject, first = board.spec, board.subject, next(iter(board.found.values()))
    facts = f"{spec.num_layers} mixture layers, {spec.top_k} of {spec.num_experts} experts, {board.tokens:,} tokens; "
    facts += f"{first.prompts} prompt{'s' * (first.prompts > 1)} tested, {_method(subject)}."
    if subject.how in SAME_PROMPT:
        facts += f" {HALVES}"
    if first.duplicates:
        facts += f" {first.duplicates} duplicate prompts were removed first."
    left_out = "".join(f"- `{name}`: {reason}\n" for name, reason in board.left_out.items())
    return "\n".join(
        [
            f"## {subject.title}\n",
            f"{facts} {subject.said}\n",
            f"{won(board)}\n",
            f"One layer ahead:\n\n{_first_table(board)}\n",
            f"Recall@{spec.top_k}, by layers ahead:\n\n{_distance_table(board)}\n",
            f"Not in these tables:\n\n{left_out}" if left_out else "",
        ]
    )


def _method(subject: Subject) -> str:
    method = f"split by {subject.how}" + (f" in {subject.folds} folds, each tested" if subject.folds else "")
    return f"{method}, replayed {'token by token' if subject.as_decode else 'as recorded'}"


def won(board: Board) -> str:
    """Who is first at distance 1, beside the best baseline and the next."""
    k, order = board.spec.top_k, board.ranked
    first = board.recall(order[0])
    text = f"`{order[0]}` is first with a recall@{k} of {_text(first)} %"
    for component in order[1:2]:
        text += f"; the next, `{component}`, has {_text(board.recall(component))} %"
    for component in [c for c in order if c in BASELINES][:1]:
        if component not in order[:2]:
            text += f"; the best baseline, `{component}`, has {_text(board.recall(component))} %"
    if len(order) > 1 and first.low is not None and board.recall(order[1]).value >= first.low:
        text += ". The next lies within the first one's interval"
    return text + "."


def _first_table(board: Board) -> str:
    columns: list[tuple[str, int | None]] = [("recall", b) for b in board.budgets]
    columns += [(m, None) for m in ("top1", "top2") if any(board.cell(c, m) for c in board.found)]
    columns += [("calibration_error", None)]
    costs = ("predict_us", "fit_s", "bytes")
    header = ["predictor", *(numbers.metric_name(*c) for c in columns), "coverage", *map(numbers.metric_name, costs)]
    lines = []
    for component in board.ranked:
        cells = [board.cell(component, metric, budget=budget) for metric, budget in columns]
        prices = [board.cell(component, metric, distance=None) for metric in costs]
        covered = f"{(board.recall(component).coverage or 0) * 100:.0f}"
        lines.append([_named(component), *map(_text, cells), covered, *map(_text, prices)])
    return markdown(header, lines)


def _distance_table(board: Board) -> str:
    rows = [[_named(c), *(_text(board.recall(c, d)) for d in board.distances)] for c in board.ranked]
    return markdown(["predictor", *map(str, board.distances)], rows)


def _named(component: str) -> str:
    return f"`{component}`" + (" (baseline)" if component in BASELINES else "")


def _text(measure: Measure | None) -> str:
    if measure is None:
        return "-"
    shown = numbers.interval(measure) if measure.metric in ("recall", "calibration_error") else ""
    text = numbers.value(measure.metric, measure.value).replace("\u00a0%", "").replace("\u00a0", " ")
    return f"{text} {shown}".strip()


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


HEAD = (
    """# Leaderboard

Written by `recipes/leaderboard.py`; do not edit. The same numbers as rows: [leaderboard.json](leaderboard.json) (a
`foregate.Measure` each, rounded to five digits; fields that hold their default are left out).

    python recipes/leaderboard.py --jobs 2     # goes on where it was stopped

## How to read it
Every number is measured: routing that a real model decided was recorded, predictors were fitted on some of it and
asked about the rest, token by token and layer by layer. Nothing here is derived or simulated, and nothing here is
speed: a hit is not yet a saved wait.

- **recall@b**: share of a token's routed set that is among the predictor's first b guesses; with b = k, the number of
  routed experts, a perfect predictor has 100. **top-1, top-2**: how often the routed expert with the largest gate
  weight is the first guess, or one of the first two; only where the source tells which that is. All in %, the mean
  over the layers that have a routed layer so far before them, with [95 % intervals] bootstrapped over prompts, 1,000
  draws. A single prompt has no interval.
- **calib. error**: the mean gap between how sure a guess is and how often such guesses are right, with its interval.
- **coverage**: share of the answers, in %, that come from the predictor's own mechanism; the rest is its back-off,
  mostly the layer's most used experts. Asked farther ahead than it can look, a predictor backs off on every row.
- **cost, µs**: the median of 100 predictions for one token and one layer. **fit, s**: wall-clock seconds for all four
  distances at once (the median of the folds). **size**: the compressed file. They were taken while other work ran
  beside, and are good for comparing rows, not more.
- **Splits.** "prompt": 80 % of the prompts train, 10 % are for settings and early stopping, 10 % are tested; the seed
  is 0. With folds, what must be judged is judged by held-out training prompts. "half": the first half of each prompt's
  tokens trains, the second half is tested. Nothing leaks there, as a runtime knows the past, but both are of the same
  prompt, and such a table says nothing about other prompts.
- **No setting is chosen on a test prompt**, except where a table says so. Test prompts are reported as they came out;
  a first place by less than its interval is not a finding.
- **Settings** stand in the predictor's name; what is not named has its default, but for the horizon, which is as far as
  the tables go. Some are shorter than the defaults, to save hours: fewer epochs, rounds or held-out rows. All
  of it from nothing, two at a time, took 97 minutes on two cores (176 minutes of processor time) on 2026-11-22.
- The baselines, """
    + ", ".join(f"`{name}`" for name in BASELINES)
    + """, are in every table whose trace can feed them.

"""
)
