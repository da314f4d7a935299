"""The experts that a run of token ids used before. Known before the forward pass starts, so any layer can be asked at
any distance. `lookup.Tokens` is the same for single tokens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32, Int, Int64
from foregate.errors import ChoiceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import layer_frequency
from foregate.predictors.levels import packed
from foregate.predictors.space import Choice, Range
from foregate.predictors.tables import CountTable
from foregate.traces.schema import Trace


@final
@dataclass
class NGrams(Predictor):
    """The experts that the token used in the target layer after the same tokens before; backs off from `order` tokens
    to the token alone, and to layer frequency for ids never seen.

    order      the longest run, in tokens
    smoothing  pseudo-counts (experts, not tokens) of the shorter run's answer
    least      how often a run of two or more must have been seen to be kept: most occur once, and fill the memory
    """

    order: int = 3
    smoothing: float = 10.0
    least: int = 1
    frequency_: Float32 = field(init=False, repr=False)
    base_: Int64 = field(init=False, repr=False)  # [] one more than the largest known id, and one for "unknown"
    keys_: dict[str, Int64] = field(init=False, repr=False)
    starts_: dict[str, Int64] = field(init=False, repr=False)
    experts_: dict[str, Int] = field(init=False, repr=False)
    counts_: dict[str, Float32] = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"token_id"})
    space: ClassVar[Mapping[str, Choice]] = {
        "order": Range(1, 3),
        "smoothing": Range(0.1, 1000.0, log=True),
        "least": Range(1, 5),
    }

    def __post_init__(self) -> None:
        if self.order < 1 or self.least < 1 or self.smoothing <= 0:
            raise ChoiceError("ngrams takes order=1 or more, least=1 or more and smoothing above 0")

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        self.base_ = np.array(int(trace.token_id.max(initial=0)) + 2, dtype=np.int64)
        self.keys_, self.starts_, self.experts_, self.counts_ = {}, {}, {}, {}
        place = np.concatenate([np.arange(rows.stop - rows.start) for rows in trace.sequences()])
        rows = np.arange(len(trace))
        for order in range(1, self.order + 1):
            runs = self._often(_runs(trace.token_id, trace.token_id, rows, place, order))
            table = CountTable.count(self._observations(runs, trace), trace.spec.num_experts)
            name = str(order)
            self.keys_[name], self.starts_[name] = table.keys, table.starts
            self.experts_[name], self.counts_[name] = table.experts, table.counts
        return self

    def predict(self, query: Query) -> Float32:
        scores = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        for order in range(1, self.order + 1):
            scores = self._table(order).blend(self._contexts(query, order), scores, self.smoothing)
        return scores

    def covers(self, query: Query) -> Bool:
        return self._table(1).seen(self._contexts(query, 1))

    def _observations(self, runs: Int64, trace: Trace) -> Iterator[tuple[Int64, Int]]:
        for target in range(trace.spec.num_layers):
            yield packed(runs, target, int(self.base_)), trace.answers_at(target)

    def _often(self, runs: Int64) -> Int64:
        """The runs, those seen less than `least` times made unknown; single tokens are all kept."""
        if runs.shape[1] == 1 or self.least == 1:
            return runs
        _, place, counts = np.unique(runs, axis=0, return_inverse=True, return_counts=True)
        return np.where((counts[place.reshape(-1)] >= self.least)[:, None], runs, -1)

    def _contexts(self, query: Query, order: int) -> Int64:
        """[N] the run that ends in each row's token, as one integer that also holds the target; -1 = unknown."""
        runs = _runs(query.token_id, query.past.token_id, query.seen, query.seen, order)
        return packed(np.where(runs < self.base_ - 1, runs, -1), query.target, int(self.base_))

    def _table(self, order: int) -> CountTable:
        name = str(order)
        return CountTable(self.keys_[name], self.starts_[name], self.experts_[name], self.counts_[name])


def _runs(own: Int, earlier: Int, end: Int64, seen: Int64, order: int) -> Int64:
    """[N, order] the token ids that end in own [N]: those before stand in `earlier` up to end [N], and `seen` of them
    belong to the sequence; -1 where there is none.
    """
    columns = [np.where(seen >= back, earlier[np.maximum(end - back, 0)], -1) for back in range(order - 1, 0, -1)]
    return np.stack([*columns, own], axis=1).astype(np.int64)
