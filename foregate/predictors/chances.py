"""From logits to what is expected of each expert: shares of a routed set, which add up to one. Learns nothing."""

import numpy as np
from numba import njit

from foregate.arrays import Float, Float32

ROUNDS = 60  # of searching a row's level; about six are needed


def shares(logits: Float32, k: int) -> Float32:
    """[N, E] share of the routed set expected on each expert: the logistic function of its logit above a level that is
    the row's own, where the chances of all experts add up to k, divided by k.

    Unlike a softmax it never gives one expert more than a place in the set, so k * share is the chance that it is
    routed to.
    """
    found: Float32 = _shares(logits, k)
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _shares(logits: Float32, k: int) -> Float32:
    N, E = logits.shape
    found = np.full((N, E), 1 / E, dtype=np.float32)
    if k >= E:
        return found
    for n in range(N):
        low, high = logits[n].min() - 20.0, logits[n].max() + 20.0
        level = (logits[n].min() + logits[n].max()) / 2
        for _ in range(ROUNDS):
            total, slope = 0.0, 0.0
            for e in range(E):
                chance = 1 / (1 + np.exp(level - logits[n, e]))
                total += chance
                slope += chance * (1 - chance)
            if abs(total - k) < 1e-4 * k:
                break
            if total > k:
                low = level
            else:
                high = level
            level += (total - k) / max(slope, 1e-6)
            if not low < level < high:  # Newton's step left what is still possible
                level = (low + high) / 2
        total = 0.0
        for e in range(E):
            found[n, e] = 1 / (1 + np.exp(level - logits[n, e]))
            total += found[n, e]
        for e in range(E):
            found[n, e] /= total
    return found


def softmax(logits: Float) -> Float32:
    """[..., E] shares in proportion to the logits' exponentials."""
    scores = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Float32 = scores / scores.sum(axis=-1, keepdims=True)
    return found


def drawn(logits: Float32, k: int) -> Float32:
    """[N, E] share of the routed set expected on each expert: the chance that it comes up at all in so many draws from
    the softmax of the logits that k experts come up, divided by k.

    What a softmax itself gives above 1 / k is lost on an expert that cannot be routed to twice; here it goes to others.
    """
    found: Float32 = _drawn(logits, k)
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _drawn(logits: Float32, k: int) -> Float32:
    N, E = logits.shape
    found = np.full((N, E), 1 / E, dtype=np.float32)
    if k >= E:
        return found
    share = np.empty(E)
    for n in range(N):
        best = logits[n].max()
        for e in range(E):
            share[e] = np.exp(max(logits[n, e] - best, np.float32(-60)))
        share /= share.sum()
        draws = float(k)
        for _ in range(ROUNDS):  # Newton's method on a concave function, from below: it never goes too far
            total, slope = 0.0, 0.0
            for e in range(E):
                spared = np.exp(-draws * share[e])
                total += 1 - spared
                slope += share[e] * spared
            if k - total < 1e-6 * k:
                break
            draws += (k - total) / max(slope, 1e-30)
        total = 0.0
        for e in range(E):
            found[n, e] = -np.expm1(-draws * share[e])
            total += found[n, e]
        for e in range(E):
            found[n, e] /= total
    return found


def used(shares: Float32, k: int) -> Float32:
    """[E] chance that an expert is used by any of N rows, of shares [N, E] of their routed sets of k, as predicted."""
    spared = 1 - np.clip(k * shares, 0, 1)
    chance: Float32 = (1 - spared.prod(axis=0)).astype(np.float32)
    return chance


def used_blindly(rows: int, k: int, experts: int) -> Float32:
    """[E] the same for so many rows of whose routing nothing is known: all experts alike."""
    return np.full(experts, 1 - (1 - min(k / experts, 1)) ** rows, dtype=np.float32)


def first_come(scores: Float32) -> Float32:
    """[E] numbers in (0, 1] in the order of the rows' best ranks, for scores [N, E] that are no probabilities: they say
    which expert first, and nothing of how likely. Ties go to the lower id.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(scores.shape[1])[None], axis=1)
    worth: Float32 = (1 / (1 + ranks.min(axis=0))).astype(np.float32)
    return worth
