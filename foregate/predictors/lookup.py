"""Predictors that look a context up in a table, backing off where it was never seen: token ids, chains of primaries."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32, Int, Int64
from foregate.errors import ChoiceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import everywhere, layer_frequency
from foregate.predictors.levels import context, leading, named, packed
from foregate.predictors.space import Choice, Range
from foregate.predictors.tables import CountTable
from foregate.predictors.votes import Votes
from foregate.traces.schema import Trace

PINCH = 1e-3
"""Pseudo-counts of a prior that fills the places of experts without a vote and never outvotes one."""


@final
@dataclass
class Tokens(Predictor):
    """The experts that this token id used before, in the target layer; layer frequency for ids never seen.

    smoothing  pseudo-counts of layer frequency
    """

    smoothing: float = 1.0
    frequency_: Float32 = field(init=False, repr=False)
    keys_: Int64 = field(init=False, repr=False)
    starts_: Int64 = field(init=False, repr=False)
    experts_: Int = field(init=False, repr=False)
    counts_: Float32 = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"token_id"})
    space: ClassVar[Mapping[str, Choice]] = {"smoothing": Range(0.01, 1000.0, log=True)}

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        layers = trace.spec.num_layers
        self.frequency_ = layer_frequency(trace)
        observations = ((self._keys(trace.token_id, t, layers), trace.answers_at(t)) for t in range(layers))
        table = CountTable.count(observations, trace.spec.num_experts)
        self.keys_, self.starts_, self.experts_, self.counts_ = table.keys, table.starts, table.experts, table.counts
        return self

    def predict(self, query: Query) -> Float32:
        prior = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        keys = self._keys(query.token_id, query.target, query.spec.num_layers)
        return self._table().blend(keys, prior, self.smoothing)

    def covers(self, query: Query) -> Bool:
        return self._table().seen(self._keys(query.token_id, query.target, query.spec.num_layers))

    def _table(self) -> CountTable:
        return CountTable(self.keys_, self.starts_, self.experts_, self.counts_)

    @staticmethod
    def _keys(token_id: Int, target: int, layers: int) -> Int64:
        return np.where(token_id < 0, -1, token_id.astype(np.int64) * layers + target)


@final
@dataclass
class Rules(Predictor):
    """Lookup rules on primaries: (layer, primaries of the last `order` layers) -> next primary, with back-off from the
    longest context that was seen to shorter ones, at last to layer frequency.

    order      longest context, in layers
    smoothing  pseudo-counts of the shorter context's answer; 0 = a plain majority vote, as published
    horizon    the largest distance it learns

    Source: "Cross-Layer Routing Patterns for MoE Optimization", levels 1 to 3; the back-off is what it recommends.
    """

    order: int = 3
    smoothing: float = 1.0
    horizon: int = 1
    frequency_: Float32 = field(init=False, repr=False)
    keys_: dict[str, Int64] = field(init=False, repr=False)
    starts_: dict[str, Int64] = field(init=False, repr=False)
    experts_: dict[str, Int] = field(init=False, repr=False)
    counts_: dict[str, Float32] = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"ranked"})
    space: ClassVar[Mapping[str, Choice]] = {
        "order": Range(1, 5),
        "smoothing": Range(0.01, 1000.0, log=True),
    }

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        assert trace.primary is not None
        primary = trace.primary
        answers = primary if trace.answers is None else np.where(trace.answers, primary, -1)
        self.frequency_ = _primary_frequency(answers, trace.spec.num_experts)
        self.keys_, self.starts_, self.experts_, self.counts_ = {}, {}, {}, {}
        for order in range(1, self.order + 1):
            table = CountTable.count(self._observations(primary, answers, order, trace), trace.spec.num_experts)
            name = str(order)
            self.keys_[name], self.starts_[name] = table.keys, table.starts
            self.experts_[name], self.counts_[name] = table.experts, table.counts
        return self

    def predict(self, query: Query) -> Float32:
        scores = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        primaries = leading(query.routed, query.weights)[:, :, 0]
        for order in range(1, self.order + 1):
            contexts = self._contexts(primaries, query.layer, query.target, order, query.spec.num_experts)
            if contexts is not None:
                scores = self._table(order).blend(contexts, scores, self._strength())
        return scores

    def covers(self, query: Query) -> Bool:
        primaries = leading(query.routed, query.weights)[:, :, 0]
        contexts = self._contexts(primaries, query.layer, query.target, 1, query.spec.num_experts)
        return ~everywhere(query) if contexts is None else self._table(1).seen(contexts)

    def _strength(self) -> float:
        # A pinch of the shorter context keeps every expert's probability above zero without changing a majority.
        return self.smoothing or PINCH

    def _table(self, order: int) -> CountTable:
        name = str(order)
        return CountTable(self.keys_[name], self.starts_[name], self.experts_[name], self.counts_[name])

    def _observations(self, primary: Int, answers: Int, order: int, trace: Trace) -> Iterator[tuple[Int64, Int]]:
        for distance in range(1, self.horizon + 1):
            for target in range(distance, trace.spec.num_layers):
                layer = target - distance
                contexts = self._contexts(primary[:, : layer + 1], layer, target, order, trace.spec.num_experts)
                if contexts is not None:
                    yield contexts, answers[:, target, None]

    def _contexts(self, primaries: Int, layer: int, target: int, order: int, num_experts: int) -> Int64 | None:
        """[N] the last `order` primaries as one integer that also holds target and distance."""
        if order > layer + 1 or target - layer > self.horizon:
            return None
        place = target * self.horizon + target - layer - 1
        return packed(primaries[:, layer + 1 - order : layer + 1], place, num_experts + 1)


@final
@dataclass
class Hybrid(Predictor):
    """The study's rules as published: plain majority votes, ties to the first seen; the first of `levels` that has a
    rule for the context answers alone. All other experts follow by how often they are the target layer's primary.

    levels   which rules, the best first, joined by "-": 1, 2, 3, 4, path (see `levels`), or "mode" for none at all;
             "3" alone is the study's level 3 with uncovered rows filled by layer frequency
    horizon  the largest distance it learns; level 1 at distance 2, 4, 8 is the study's level 5

    Source: "Cross-Layer Routing Patterns for MoE Optimization", which recommends 3-2-1 and does not measure it.
    """

    levels: str = "3-2-1"
    horizon: int = 1
    frequency_: Float32 = field(init=False, repr=False)
    keys_: dict[str, Int64] = field(init=False, repr=False)
    starts_: dict[str, Int64] = field(init=False, repr=False)
    experts_: dict[str, Int] = field(init=False, repr=False)
    counts_: dict[str, Float32] = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"ranked"})

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        ranked = leading(trace.experts, trace.weights)
        answers = ranked[:, :, 0] if trace.answers is None else np.where(trace.answers, ranked[:, :, 0], -1)
        self.frequency_ = _primary_frequency(answers, trace.spec.num_experts)
        self.keys_, self.starts_, self.experts_, self.counts_ = {}, {}, {}, {}
        for level in self._order():
            if level == "4" and trace.spec.top_k < 2:
                raise ChoiceError(f"level 4 needs a secondary expert; {trace.spec.model} routes to one")
            table = self._count(level, ranked, answers, trace.spec.num_experts)
            self.keys_[level], self.starts_[level] = table.keys, table.starts
            self.experts_[level], self.counts_[level] = table.experts, table.counts
        return self

    def predict(self, query: Query) -> Float32:
        prior = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        scores = prior.copy()
        open_rows = everywhere(query)
        for level, contexts in self._contexts(query):
            table = self._table(level)
            answered = open_rows & table.seen(contexts)
            scores[answered] = table.blend(contexts[answered], prior[answered], PINCH)
            open_rows &= ~answered
        return scores

    def covers(self, query: Query) -> Bool:
        if self.levels == "mode":
            return everywhere(query)
        seen = ~everywhere(query)
        for level, contexts in self._contexts(query):
            seen |= self._table(level).seen(contexts)
        return seen

    def _order(self) -> list[str]:
        return [] if self.levels == "mode" else [named(level) for level in self.levels.split("-")]

    def _count(self, level: str, ranked: Int, answers: Int, num_experts: int) -> CountTable:
        """Votes as counts; of equal ones the first seen gets a fraction more, so that it leads."""
        keys, follow = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)]
        for target in range(1, ranked.shape[1]):
            for layer in range(max(0, target - self.horizon), target):
                ids = context(level, ranked[:, : layer + 1])
                if ids is not None:
                    keys.append(packed(ids, self._place(layer, target), num_experts + 1))
                    follow.append(answers[:, target].astype(np.int64))
        votes = Votes.count(np.concatenate(keys), np.concatenate(follow), num_experts)
        lead = 0.5 * (1 - votes.places() / num_experts)
        counts = (votes.counts + lead).astype(np.float32)
        return CountTable(votes.keys, votes.starts, votes.answers.astype(np.min_scalar_type(num_experts)), counts)

    def _contexts(self, query: Query) -> Iterator[tuple[str, Int64]]:
        """The levels that have a context for this query, the best first, and each row's."""
        if query.distance > self.horizon:
            return
        ranked = leading(query.routed, query.weights)
        for level in self._order():
            ids = context(level, ranked)
            if ids is not None:
                yield level, packed(ids, self._place(query.layer, query.target), query.spec.num_experts + 1)

    def _place(self, layer: int, target: int) -> int:
        return target * self.horizon + target - layer - 1

    def _table(self, level: str) -> CountTable:
        return CountTable(self.keys_[level], self.starts_[level], self.experts_[level], self.counts_[level])


def _primary_frequency(primary: Int, num_experts: int) -> Float32:
    shares = np.stack([np.bincount(p[p >= 0], minlength=num_experts) + 1.0 for p in primary.T])
    frequency: Float32 = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return frequency
