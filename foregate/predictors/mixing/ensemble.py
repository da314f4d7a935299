"""A predictor that averages others, each as sharp and as heavy as held-out prompts say. No network, no gradient."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Float64
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.calibration import LEAN, temperatures
from foregate.predictors.chances import softmax
from foregate.predictors.mixing.members import FLOOR, Hearing, Said, beliefs, covers, needs
from foregate.predictors.space import Choice
from foregate.traces.schema import Trace

ROUNDS = 50


@final
@dataclass
class Ensemble(Predictor):
    """A weighted mean of several predictors' distributions, for each layer and distance: each member's temperature
    first, then the weights under which the mean has the least cross entropy on rows that the members were not fitted on
    (found by expectation maximisation), then the mean's own temperature. Those rows are the validation trace's, or held
    out (see Hearing.hold).

    members  joined by "+", with options in parentheses, or files of fitted predictors: see Blend
    rows     held-out rows that are asked at most, at each distance
    horizon  the largest distance it learns; farther ahead it answers as at that
    seed     of what is held out
    """

    members: str = "memory+tokens+cooccur"
    rows: int = 100_000
    horizon: int = 1
    seed: int = 0
    members_: tuple[Predictor, ...] = field(init=False, repr=False)
    sharpness_: Float32 = field(init=False, repr=False)  # [horizon, L, M] factor of each member's log probabilities
    weights_: Float32 = field(init=False, repr=False)  # [horizon, L, M]
    temper_: Float32 = field(init=False, repr=False)  # [horizon, L] factor of the mean's
    probabilities: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Choice]] = {}

    @property
    def needs(self) -> frozenset[Need]:
        """What its members need."""
        return needs(self.members, vars(self).get("members_", ()))

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        hearing = Hearing(self.members, self.horizon, self.rows, self.seed)
        self.members_, said = hearing.hold(trace, validation)
        shape = (self.horizon, trace.spec.num_layers, len(self.members_))
        self.sharpness_, self.weights_ = np.ones(shape, dtype=np.float32), np.ones(shape, dtype=np.float32)
        self.temper_ = np.ones(shape[:2], dtype=np.float32)
        for at, rows in enumerate(said):
            sharp = [temperatures(b, rows.answers, rows.layer, shape[1]) for b in rows.beliefs]
            self.sharpness_[at] = np.stack(sharp, axis=1)
            shares = np.stack([softmax(b * s[rows.layer, None]) for b, s in zip(rows.beliefs, sharp, strict=True)])
            self.weights_[at] = _weights(shares, rows, shape[1])
            mean = np.einsum("mne,nm->ne", shares, self.weights_[at][rows.layer])
            self.temper_[at] = temperatures(np.log(np.maximum(mean, FLOOR)), rows.answers, rows.layer, shape[1])
        return self

    def predict(self, query: Query) -> Float32:
        at, layer = min(query.distance, self.horizon) - 1, query.target
        scores = np.empty((query.rows, query.spec.num_experts), dtype=np.float32)
        settings = (self.sharpness_[at, layer], self.weights_[at, layer], float(self.temper_[at, layer]))
        _pool(beliefs(self.members_, query), settings, scores)
        return scores

    def covers(self, query: Query) -> Bool:
        return covers(self.members_, query)


def _weights(shares: Float32, said: Said, layers: int) -> Float32:
    """[L, M] mixture weights of members' shares [M, N, E]; each layer's lean on those of all layers."""
    chosen = np.take_along_axis(shares, np.maximum(said.answers, 0)[None], axis=2).astype(np.float64)
    chosen[:, said.answers < 0] = 0
    counts = (said.answers >= 0).sum(axis=1)
    whole = _mixture(chosen, counts, np.full(len(shares), 1 / len(shares)), 1.0)
    found = np.tile(whole, (layers, 1))
    for layer in np.unique(said.layer):
        rows = said.layer == layer
        found[layer] = _mixture(chosen[:, rows], counts[rows], whole, LEAN)
    return found.astype(np.float32)


def _mixture(chosen: Float64, counts: Float64, prior: Float64, lean: float) -> Float64:
    """[M] by expectation maximisation from the members' shares of each row's answers [M, N, k]; `prior` counts as much
    as `lean` rows.
    """
    weights = prior.copy()
    for _ in range(ROUNDS):
        votes = weights[:, None, None] * chosen
        votes /= np.maximum(votes.sum(axis=0), 1e-30)
        weights = (votes.sum(axis=2) / np.maximum(counts, 1)).sum(axis=1) + lean * prior
        weights /= weights.sum()
    return weights


@njit(cache=True)  # type: ignore[untyped-decorator]
def _pool(beliefs: Float32, settings: tuple[Float32, Float32, float], scores: Float32) -> None:
    """The tempered mean of the members' tempered log probabilities [M, N, E]."""
    sharpness, weights, temper = settings
    members, rows, experts = beliefs.shape
    shares = np.empty(experts)
    for n in range(rows):
        scores[n] = 0
        for m in range(members):
            top = beliefs[m, n].max()
            for e in range(experts):
                shares[e] = np.exp(sharpness[m] * (beliefs[m, n, e] - top))
            scores[n] += (weights[m] / shares.sum() * shares).astype(np.float32)
        total = 0.0
        for e in range(experts):
            scores[n, e] = max(scores[n, e], FLOOR) ** temper
            total += scores[n, e]
        scores[n] /= total
