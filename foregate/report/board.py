"""Result rows in order: which belong together, which metric leads, who is best. No HTML, no figures."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

from foregate.evaluation import Measure

COLUMNS = ("top1", "top2", "recall", "exact_set", "log_loss", "calibration_error", "coverage")
COSTS = ("predict_us", "bytes", "fit_s")
NOT_A_PREDICTOR = frozenset({"oracle"})

Column = tuple[str, int | None]


@dataclass(frozen=True)
class Board:
    """The rows of one comparison: one model, one split, one kind of replay.

    baselines  names of the predictors that any other must beat
    """

    rows: tuple[Measure, ...]
    baselines: frozenset[str]

    @property
    def trace(self) -> str:
        """The model whose routing was predicted."""
        return self.rows[0].trace

    @property
    def leaks(self) -> bool:
        """Whether the test rows were partly known from training."""
        return any(m.leaks for m in self.rows)

    @property
    def predictors(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(m.predictor for m in self.rows))

    @property
    def distances(self) -> list[int]:
        """Layers ahead, ascending."""
        return sorted({m.distance for m in self.rows if m.distance is not None})

    @property
    def budgets(self) -> list[int]:
        """Budgets of recall, ascending."""
        return sorted({m.budget for m in self.rows if m.budget is not None})

    @property
    def layers(self) -> list[int]:
        """Target layers, ascending."""
        return sorted({m.layer for m in self.rows if m.layer is not None})

    @property
    def main(self) -> Column:
        """The metric that ranks: recall of the routed set at a budget of k; else whatever was measured first."""
        k = self.rows[0].top_k
        if any((m.metric, m.budget) == ("recall", k) for m in self.rows):
            return "recall", k
        metrics = [m.metric for m in self.rows]
        return next((c for c in COLUMNS if c in metrics and c != "recall"), metrics[0]), None

    def columns(self) -> list[Column]:
        """The columns of the table: accuracy first, then what it costs."""
        found = {(m.metric, m.budget) for m in self.rows}
        return sorted(
            (c for c in found if c[0] in (*COLUMNS, *COSTS)),
            key=lambda c: ((*COLUMNS, *COSTS).index(c[0]), c[1] or 0),
        )

    def cell(
        self, predictor: str, column: Column, *, distance: int | None = None, layer: int | None = None
    ) -> Measure | None:
        """One number; what does not depend on the distance (costs) is found at any."""
        at = self._index.get((predictor, *column, layer, distance))
        return at or self._index.get((predictor, *column, layer, None))

    @cached_property
    def _index(self) -> dict[tuple[str, str, int | None, int | None, int | None], Measure]:
        return {(m.predictor, m.metric, m.budget, m.layer, m.distance): m for m in self.rows}

    def reliability(self, predictor: str, distance: int | None) -> list[Measure]:
        """How often guesses of each confidence were right, by confidence."""
        asked = ("reliability", predictor, distance)
        found = [m for m in self.rows if (m.metric, m.predictor, m.distance) == asked]
        return sorted(found, key=lambda m: m.confidence or 0.0)

    def is_baseline(self, predictor: str) -> bool:
        """Whether it is one of those that any other must beat."""
        return predictor.partition(":")[0] in self.baselines

    def ranked(self, distance: int | None) -> list[Measure]:
        """Each predictor's leading number at a distance, the best first."""
        cells = [self.cell(p, self.main, distance=distance) for p in self.predictors]
        return sorted((m for m in cells if m is not None), key=lambda m: -m.value)

    def best(self, distance: int | None, *, baseline: bool) -> Measure | None:
        """The best baseline, or the best of the others (an oracle is neither)."""
        for m in self.ranked(distance):
            if self.is_baseline(m.predictor) == baseline and m.predictor.partition(":")[0] not in NOT_A_PREDICTOR:
                return m
        return None


def boards(measures: Sequence[Measure], baselines: Collection[str]) -> list[Board]:
    """Result rows by what may be compared with each other; those that leak last."""
    groups: dict[tuple[str, str, str], list[Measure]] = {}
    for m in measures:
        groups.setdefault((m.trace, m.split, m.replay), []).append(m)
    found = [Board(tuple(rows), frozenset(baselines)) for rows in groups.values()]
    return sorted(found, key=lambda b: b.leaks)
