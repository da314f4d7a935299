"""A predictor that learns nothing beforehand: it remembers the sequence, and asks who routed like this before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float, Float32, Int, Int64
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import layer_frequency
from foregate.predictors.space import Choice, Range
from foregate.traces.schema import Trace


@final
@dataclass
class Memory(Predictor):
    """Softmax-weighted vote of this sequence's earlier tokens.

    An earlier token votes with its gate weights in the target layer. Its vote counts
    exp(beta * sum over routed layers of decay^(layers back) * overlap + context * mean overlap of the two tokens before
    - recency * log(age)), where the overlap of two routed sets is sum(sqrt(w * w')) over shared experts: 1 for equal
    gates, 0 for disjoint sets. Layer frequency answers for a token with no past, and breaks ties.

    beta     how sharply likeness counts
    decay    how much less each layer further back counts
    context  how much it counts that the tokens before were routed alike, over all layers
    recency  how much nearer tokens count
    prior    weight of layer frequency beside the best vote
    """

    beta: float = 3.0
    decay: float = 0.85
    context: float = 3.0
    recency: float = 0.3
    prior: float = 0.5
    frequency_: Float32 = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = {
        "beta": Range(0.3, 30.0, log=True),
        "decay": Range(0.5, 1.0),
        "context": Range(0.0, 20.0),
        "recency": Range(0.0, 2.0),
        "prior": Range(0.01, 10.0, log=True),
    }

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        return self

    def predict(self, query: Query) -> Float32:
        scores = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        past, k = query.past, query.spec.top_k
        own = (query.routed, _or_equal(query.weights, query.routed, k))
        earlier = (past.experts, _or_equal(past.weights, past.experts, k))
        settings = (self.beta, self.decay, self.context, self.recency, self.prior)
        _vote(own, earlier, (query.seen, query.target), settings, scores)
        return scores

    def covers(self, query: Query) -> Bool:
        return query.seen > 0


def _or_equal(weights: Float | None, experts: Int, k: int) -> Float:
    """The weights, or equal shares where the source has none (a view that takes no memory)."""
    if weights is not None:
        return weights if weights.dtype == np.float32 else weights.astype(np.float32)
    return np.broadcast_to(np.float32(1 / k), experts.shape)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _overlap(gates: Float32, experts: Int, weights: Float, decay: float) -> float:
    """Sum over layers of decay^(layers back) * sum of sqrt(w * w') on shared experts; gates [L, E] hold sqrt(w)."""
    total, worth = 0.0, 1.0
    for back in range(len(gates)):
        layer = len(gates) - 1 - back
        for slot in range(experts.shape[1]):
            expert = experts[layer, slot]
            if expert >= 0 and gates[layer, expert] > 0:
                total += worth * gates[layer, expert] * np.sqrt(weights[layer, slot])
        worth *= decay
    return total


@njit(cache=True)  # type: ignore[untyped-decorator]
def _fill(gates: Float32, experts: Int, weights: Float) -> None:
    gates[:] = 0
    for layer in range(experts.shape[0]):
        for slot in range(experts.shape[1]):
            if experts[layer, slot] >= 0:
                gates[layer, experts[layer, slot]] = np.sqrt(weights[layer, slot])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _vote(
    own_sets: tuple[Int, Float],
    earlier: tuple[Int, Float],
    asked: tuple[Int64, int],
    settings: tuple[float, float, float, float, float],
    scores: Float32,
) -> None:
    """Replace prior scores [N, E] by the vote of each row's past."""
    routed, routed_weights = own_sets
    past, past_weights = earlier
    seen, target = asked
    beta, decay, context, recency, prior = settings
    L, E = past.shape[1], scores.shape[1]
    own = np.zeros((L, E), dtype=np.float32)
    before = np.zeros((L, E), dtype=np.float32)
    votes = np.zeros(E)
    for n in range(len(seen)):
        P = seen[n]
        if P == 0:
            continue
        _fill(own[: routed.shape[1]], routed[n], routed_weights[n])
        _fill(before, past[P - 1], past_weights[P - 1])
        likeness = np.zeros(P)
        for p in range(P):
            likeness[p] = beta * _overlap(own[: routed.shape[1]], past[p], past_weights[p], decay)
            likeness[p] -= recency * np.log(P - p)
            if p > 0 and context > 0:
                likeness[p] += context / L * _overlap(before, past[p - 1], past_weights[p - 1], 1.0)
        best = likeness.max()
        votes[:] = 0
        total = 0.0
        for p in range(P):
            worth = np.exp(likeness[p] - best)
            share = 0.0
            for slot in range(past.shape[2]):
                if past[p, target, slot] >= 0:
                    share += past_weights[p, target, slot]
            if share > 0:
                total += worth
                for slot in range(past.shape[2]):
                    if past[p, target, slot] >= 0:
                        votes[past[p, target, slot]] += worth * past_weights[p, target, slot] / share
        for e in range(E):
            scores[n, e] = (votes[e] + prior * scores[n, e]) / (total + prior)
