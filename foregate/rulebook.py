"""The Mixtral study's lookup rules as tables: counted from journeys, tried on others. Arrays only; files are
`rulefiles`' business, and predictors that back off from one level to another are `predictors.lookup`'s.

A rule says: after this context, that expert is the primary of a later layer. Majority vote, ties to the first seen;
accuracy is over the rows that a rule covers, as published, so coverage stands beside it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foregate.arrays import Bool, Int, Int64
from foregate.errors import ChoiceError
from foregate.journeys import Journeys
from foregate.predictors.levels import context
from foregate.predictors.votes import Votes

Z = 1.959963984540054  # of a 95 % interval


@dataclass(frozen=True)
class Level:
    """One level of the study.

    name         as results name it
    label        as the summary table names it
    description  as rule files describe it
    looks_up     which context (see `predictors.levels`)
    ahead        how many layers ahead it answers
    """

    name: str
    label: str
    description: str
    looks_up: str
    ahead: int = 1


SKIPS = (2, 4, 8)
SKIP = "(Layer, Expert) -> Expert at Layer+K"
LEVELS = (
    Level("level1", "Level 1 (Layer, E)", "(Layer, Expert) -> Next Expert", "1"),
    Level("level2", "Level 2 (Layer, Prev, Curr)", "(Layer, Prev, Curr) -> Next Expert", "2"),
    Level("level3", "Level 3 (Layer, E-2, E-1, E)", "(Layer, E-2, E-1, E) -> Next Expert", "3"),
    Level("level4", "Level 4 (Layer, P, S)", "(Layer, Primary, Secondary) -> Next Primary", "4"),
    *(Level(f"level5_skip{k}", f"Level 5 (Skip {k})", SKIP, "1", k) for k in SKIPS),
    Level("full_path", "Full path (Layer, Path)", "(Layer, Full Path) -> Next Expert", "path"),
)
FULL_PATH = LEVELS[-1]


@dataclass(frozen=True, eq=False)
class LevelRules:
    """One level's rules, C of them, in first-seen order.

    contexts     [C, c]   layer, then the experts; a path that is shorter than the longest is filled with -1
    predictions  [C]
    votes        None where only predictions matter (read from a file); `owners` [C] are its contexts
    """

    level: Level
    contexts: Int
    predictions: Int64
    votes: Votes | None = None
    owners: Int64 | None = None


@dataclass(frozen=True)
class Rulebook:
    """Rules of some levels, what they were made from, and the shape of the model."""

    model: str
    num_layers: int
    num_experts: int
    training_files: tuple[str, ...]
    rules: tuple[LevelRules, ...]


@dataclass(frozen=True)
class Score:
    """How a level did. `total` rows were covered of `rows` that exist: all (token, layer) with a target layer."""

    level: Level
    correct: int
    total: int
    rows: int
    num_experts: int

    @property
    def accuracy(self) -> float | None:
        """Share of covered rows that were right; None where none was covered."""
        return self.correct / self.total if self.total else None

    @property
    def vs_random(self) -> float | None:
        """How many times better than a blind guess."""
        return None if self.accuracy is None else self.accuracy * self.num_experts

    @property
    def coverage(self) -> float:
        """Share of rows that a rule covered."""
        return self.total / self.rows if self.rows else 0.0

    @property
    def interval(self) -> tuple[float, float] | None:
        """Wilson's 95 % interval of the accuracy. It takes rows as independent, which one token's rows are not."""
        return wilson(self.correct, self.total) if self.total else None


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % interval of a share: 21 of 24 is 0.69 to 0.96."""
    share, spread = correct / total, Z * Z / total
    half = Z * math.sqrt(share * (1 - share) / total + spread / total / 4)
    return (share + spread / 2 - half) / (1 + spread), (share + spread / 2 + half) / (1 + spread)


def chosen(text: str | None, *, full_path: bool) -> tuple[Level, ...]:
    """The levels that "1,2,5" names (5 is all skips; default: 1 to 5), with the full path if asked.

    Raises: ChoiceError for an unknown level.
    """
    wanted = [part.strip() for part in (text or "1,2,3,4,5").split(",")]
    unknown = next((part for part in wanted if part not in ("1", "2", "3", "4", "5")), None)
    if unknown is not None:
        raise ChoiceError(f"there is no level {unknown!r}; choose among 1,2,3,4,5, and add --full-path for full paths")
    levels = [level for level in LEVELS if level.name.removeprefix("level")[:1] in wanted]
    return (*levels, *([FULL_PATH] if full_path else []))


def create(journeys: Journeys, levels: Sequence[Level]) -> Rulebook:
    """Count the rules of these levels.

    Raises: ChoiceError for level 4 of a model that routes to one expert.
    """
    if journeys.ranked.shape[2] < 2 and any(level.looks_up == "4" for level in levels):
        raise ChoiceError("level 4 needs a secondary expert, and this model routes to one; leave it out with --levels")
    rules = tuple(_count(journeys, level) for level in levels)
    return Rulebook(journeys.model, journeys.num_layers, journeys.num_experts, journeys.files, rules)


def evaluate(book: Rulebook, journeys: Journeys) -> list[Score]:
    """Try every level's rules on other journeys of the same model.

    Raises: ChoiceError where these have other layers or experts than the rules.
    """
    if (journeys.num_layers, journeys.num_experts) != (book.num_layers, book.num_experts):
        raise ChoiceError(
            f"the rules are of {book.model} with {book.num_layers} layers x {book.num_experts} experts, but the test "
            f"files have {journeys.num_layers} x {journeys.num_experts}; test rules on the model they were made from"
        )
    return [_score(rules, journeys) for rules in book.rules]


def _count(journeys: Journeys, level: Level) -> LevelRules:
    contexts, answers = _rows(journeys, level)
    votes = Votes.count(_codes(contexts, journeys.num_experts), answers, journeys.num_experts)
    seen = votes.first[votes.starts[:-1]]
    order = np.argsort(seen)
    return LevelRules(level, contexts[seen[order]], votes.winners()[order], votes, order)


def _score(rules: LevelRules, journeys: Journeys) -> Score:
    contexts, answers = _rows(journeys, rules.level)
    rows = len(journeys.ranked) * max(journeys.num_layers - rules.level.ahead, 0)
    # A level that looks further ahead than the model is deep has no contexts, of no width of their own.
    both = [held for held in (rules.contexts, contexts) if len(held)] or [contexts]
    codes = _codes(np.concatenate(both), journeys.num_experts)
    known, asked = codes[: len(rules.contexts)], codes[len(rules.contexts) :]
    order = np.argsort(known)
    place = np.searchsorted(known, asked, sorter=order)
    rule = order[np.minimum(place, len(known) - 1)] if len(known) else np.zeros(len(asked), dtype=np.int64)
    covered: Bool = known[rule] == asked if len(known) else np.zeros(len(asked), dtype=np.bool_)
    correct = int((rules.predictions[rule[covered]] == answers[covered]).sum())
    return Score(rules.level, correct, int(covered.sum()), rows, journeys.num_experts)


def _rows(journeys: Journeys, level: Level) -> tuple[Int, Int]:
    """[N, c] contexts (layer first) and [N] answers of every token and layer that have both; token by token."""
    T, L, _ = journeys.ranked.shape
    found = {layer: context(level.looks_up, journeys.ranked[:, : layer + 1]) for layer in range(L - level.ahead)}
    there = {layer: ids for layer, ids in found.items() if ids is not None}
    width = max((ids.shape[1] for ids in there.values()), default=0)
    contexts = np.full((T, len(there), 1 + width), -1, dtype=np.int16)
    answers = np.empty((T, len(there)), dtype=np.int16)
    for column, (layer, ids) in enumerate(there.items()):
        contexts[:, column, 0] = layer
        contexts[:, column, 1 : 1 + ids.shape[1]] = ids
        answers[:, column] = journeys.ranked[:, layer + level.ahead, 0]
    return contexts.reshape(-1, 1 + width), answers.reshape(-1)


def _codes(contexts: Int, num_experts: int) -> Int64:
    """[N] one integer for each different row of contexts [N, c]; equal rows of one call, and only they, are equal."""
    base = max(num_experts + 1, int(contexts[:, 0].max(initial=0)) + 2)
    room = (1 << 62) // num_experts  # `Votes` packs an answer beside it
    codes = np.zeros(len(contexts), dtype=np.int64)
    top = 1
    for column in contexts.T:
        if top * base >= room:
            kept, codes = np.unique(codes, return_inverse=True)
            top = len(kept)
        codes = codes * base + (column + np.int64(1))
        top *= base
    return codes
