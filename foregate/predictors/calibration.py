"""Making confidence mean what it says: the probability that an expert is routed. Functions on scores and answers that
any predictor's `fit` can call; which scores those are, and of which prompts, is the caller's business.

Confidence is min(1, k * score). All fits are per layer; a layer with few rows leans on all layers together.
"""

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Float64, Int64
from foregate.predictors.chances import drawn

LEAN = 200
"""A layer's own fit counts as much as that of all layers together when it has so many rows."""
FACTORS = np.geomspace(0.2, 5, 49).astype(np.float32)
KNOTS = 64
"""Points of an isotonic curve: confidences between them are interpolated."""


def temperatures(logits: Float32, answers: Int64, layers: Int64, num_layers: int) -> Float32:
    """[L] what to multiply each layer's logits (or log probabilities) by, so that their softmax spreads the routed set
    best: it has the least cross entropy.

    logits [N, E], answers [N, k] routed ids (-1 = absent), layers [N]
    """
    centred = np.ascontiguousarray(logits - logits.max(axis=1, keepdims=True))
    whole = np.float32(_sharpness(centred, answers, np.arange(len(layers))))
    found = np.full(num_layers, whole, dtype=np.float32)
    for layer in np.unique(layers):
        rows = np.flatnonzero(layers == layer)
        own, trust = _sharpness(centred, answers, rows), len(rows) / (len(rows) + LEAN)
        found[layer] = np.exp(trust * np.log(own) + (1 - trust) * np.log(whole))
    return found


def sharpness(logits: Float32, routed: Float32, top_k: int) -> float:
    """What to multiply logits [N, E] by, so that k times what `drawn` makes of them are the best chances of being
    routed [N, E] (1 or 0): the least log-loss, over FACTORS.
    """
    losses = []
    for factor in FACTORS:
        chances = np.clip(top_k * drawn(logits * factor, top_k), 1e-6, 1 - 1e-6)
        losses.append(-np.log(np.where(routed > 0, chances, 1 - chances)).sum())
    return float(FACTORS[int(np.argmin(losses))])


def pool_adjacent(values: Float64, weights: Float64) -> Float64:
    """The non-decreasing numbers nearest to values [n] by weighted squares: neighbours out of order become their mean.

    Source: the pool-adjacent-violators algorithm (Ayer et al. 1955).
    """
    pools: list[tuple[float, float, int]] = []  # height, weight, how many values
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] > pool[0]:
            height, size, count = pools.pop()
            whole = size + pool[1]
            pool = ((height * size + pool[0] * pool[1]) / whole, whole, count + pool[2])
        pools.append(pool)
    return np.repeat([height for height, _, _ in pools], [count for _, _, count in pools])


def curves(confidence: Float32, hits: Bool, layers: Int64, num_layers: int) -> Float32:
    """[L, 2, KNOTS] for each layer confidences that were claimed, ascending, and how often those were right, not
    descending: the isotonic regression of hits on confidence, over every expert of every row.

    confidence [N, E] in 0..1, hits [N, E] whether the expert was routed, layers [N]
    """
    edges = np.quantile(confidence, _shares()).astype(np.float64)
    whole = _sums(confidence, hits, edges)
    found = np.empty((num_layers, 2, KNOTS), dtype=np.float32)
    for layer in range(num_layers):
        rows = layers == layer
        sums = _sums(confidence[rows], hits[rows], edges)
        sums += whole * (LEAN / max(len(layers), 1))
        count = np.maximum(sums[2], 1e-9)
        claimed = np.maximum.accumulate(np.where(sums[2] > 0, sums[0] / count, 0))
        found[layer] = claimed, pool_adjacent(np.where(sums[2] > 0, sums[1] / count, 0), count)
    return found


def follow(curve: Float32, confidence: Float32) -> Float32:
    """[N, E] what confidences are worth by a curve [2, KNOTS]; experts keep their order."""
    worth: Float32 = np.interp(confidence, curve[0], curve[1]).astype(np.float32)
    return worth + np.float32(1e-4) * confidence  # a pinch, so that a level stretch of the curve makes no ties


def _shares() -> Float64:
    """Quantiles that part all confidences: most are tiny, and those that matter are the largest."""
    return 1 - np.geomspace(1, 1e-4, KNOTS + 1)[1:-1]


def _sums(confidence: Float32, hits: Bool, edges: Float64) -> Float64:
    """[3, KNOTS] confidence, hits and count between edges."""
    place = np.searchsorted(edges, confidence.reshape(-1), side="right")
    columns = (confidence.reshape(-1), hits.reshape(-1), np.ones(confidence.size))
    return np.stack([np.bincount(place, weights=c, minlength=KNOTS).astype(np.float64) for c in columns])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sharpness(logits: Float32, answers: Int64, rows: Int64) -> float:
    """The factor with the least cross entropy, by Newton's method; between 1/50 and 50."""
    factor = 1.0
    for _ in range(30):
        slope, bend = 0.0, 1e-9
        for n in rows:
            size, chosen = 0, 0.0
            for i in range(answers.shape[1]):
                if answers[n, i] >= 0:
                    size += 1
                    chosen += logits[n, answers[n, i]]
            if size == 0:
                continue
            total, first, second = 0.0, 0.0, 0.0
            for e in range(logits.shape[1]):
                share = np.exp(factor * logits[n, e])
                total += share
                first += share * logits[n, e]
                second += share * logits[n, e] ** 2
            mean = first / total
            slope += mean - chosen / size
            bend += second / total - mean**2
        step = factor - slope / bend
        step = min(max(step, factor / 2, 0.02), factor * 2, 50.0)
        if abs(step - factor) < 1e-4 * factor:
            return step
        factor = step
    return factor
