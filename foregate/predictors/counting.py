"""Predictors that count, or only look back: the baselines that every table must hold, and co-occurrence."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32, Int
from foregate.cooccurrence import count_pairs
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.space import Choice, Range
from foregate.traces.schema import Trace


def layer_frequency(trace: Trace) -> Float32:
    """[L, E] how often each expert is an answer of its layer, add-one smoothed, as shares."""
    shares = np.ones((trace.spec.num_layers, trace.spec.num_experts))
    for layer in range(trace.spec.num_layers):
        answers = trace.answers_at(layer)
        shares[layer] += np.bincount(answers[answers >= 0], minlength=trace.spec.num_experts)
    frequency: Float32 = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return frequency


def everywhere(query: Query) -> Bool:
    """[N] all rows."""
    return np.ones(query.rows, dtype=np.bool_)


def one_hot(experts: Int, num_experts: int) -> Float32:
    """[N, E] 1 at each of experts [N, k], which may be -1."""
    rows: Float32 = np.zeros((len(experts), num_experts + 1), dtype=np.float32)
    np.put_along_axis(rows, experts.astype(np.int64), 1.0, axis=1)
    return rows[:, :num_experts]


@final
@dataclass
class Chance(Predictor):
    """Every expert alike (ties go to the lower id, so its recall is that of a fixed set)."""

    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        return self

    def predict(self, query: Query) -> Float32:
        experts = query.spec.num_experts
        return np.full((query.rows, experts), 1 / experts, dtype=np.float32)

    def covers(self, query: Query) -> Bool:
        return everywhere(query)


@final
@dataclass
class Popularity(Predictor):
    """The layer's most used experts, whatever the token."""

    frequency_: Float32 = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        return self

    def predict(self, query: Query) -> Float32:
        return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)

    def covers(self, query: Query) -> Bool:
        return everywhere(query)


@final
@dataclass
class Previous(Predictor):
    """The experts that the previous token used in the target layer, then the layer's most used."""

    frequency_: Float32 = field(init=False, repr=False)
    probabilities: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        return self

    def predict(self, query: Query) -> Float32:
        scores = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        before = query.past.experts[np.maximum(query.seen - 1, 0), query.target]
        scores[query.seen > 0] += one_hot(before[query.seen > 0], query.spec.num_experts)
        return scores

    def covers(self, query: Query) -> Bool:
        return query.seen > 0


@final
@dataclass
class Repeat(Predictor):
    """The expert ids of the last routed layer, then the target layer's most used. Ids of two layers are unrelated in
    most models: a baseline that says whether they are here.
    """

    frequency_: Float32 = field(init=False, repr=False)
    probabilities: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        return self

    def predict(self, query: Query) -> Float32:
        scores = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        if query.layer >= 0:
            scores += one_hot(query.routed[:, -1], query.spec.num_experts)
        return scores

    def covers(self, query: Query) -> Bool:
        return everywhere(query) if query.layer >= 0 else ~everywhere(query)


@final
@dataclass
class Cooccur(Predictor):
    """Which experts follow the last routed set: P(next | expert) averaged over the set, smoothed with layer frequency.

    smoothing  pseudo-counts of layer frequency added to each row
    horizon    the largest distance it learns
    """

    smoothing: float = 1.0
    horizon: int = 1
    frequency_: Float32 = field(init=False, repr=False)
    follows_: Float32 = field(init=False, repr=False)  # [horizon, L, E + 1, E]; row E stands for "absent"
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = {"smoothing": Range(0.01, 1000.0, log=True)}

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        spec = trace.spec
        self.frequency_ = layer_frequency(trace)
        shape = (self.horizon, spec.num_layers, spec.num_experts + 1, spec.num_experts)
        self.follows_ = np.zeros(shape, dtype=np.float32)
        self.follows_[:, :, -1] = self.frequency_
        routed = np.ascontiguousarray(trace.experts.swapaxes(0, 1))
        answers = np.stack([trace.answers_at(layer) for layer in range(spec.num_layers)])
        for distance in range(1, min(self.horizon, spec.num_layers - 1) + 1):
            counts = count_pairs(routed[:-distance], answers[distance:], spec.num_experts)
            smoothed = counts + self.smoothing * self.frequency_[distance:, None, :]
            self.follows_[distance - 1, distance:, :-1] = smoothed / smoothed.sum(axis=2, keepdims=True)
        return self

    def predict(self, query: Query) -> Float32:
        if not self._learned(query):
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        scores: Float32 = self.follows_[query.distance - 1, query.target][query.routed[:, -1]].mean(axis=1)
        return scores

    def covers(self, query: Query) -> Bool:
        if not self._learned(query):
            return ~everywhere(query)
        return np.asarray((query.routed[:, -1] >= 0).any(axis=1))

    def _learned(self, query: Query) -> bool:
        return query.layer >= 0 and query.distance <= self.horizon
