"""How alike two tokens were routed: overlaps of routed sets, compiled. Who may be asked and what a vote counts is not
decided here.

The overlap of two routed sets is sum(sqrt(w * w')) over shared experts: 1 for equal gates, 0 for disjoint sets. One of
the two is spread over all experts first (`spread`), so that an overlap costs k look-ups.
"""

import numpy as np
from numba import njit

from foregate.arrays import Float, Float32, Int

EVEN: Float32 = np.zeros((0, 0, 0), dtype=np.float32)
"""Stands for weights where the source has none: every expert of a set counts alike."""


def gates(weights: Float | None) -> Float32:
    """The weights as the compiled functions want them, EVEN where there are none."""
    if weights is None:
        return EVEN
    return weights if weights.dtype == np.float32 else weights.astype(np.float32)


@njit(cache=True)  # type: ignore[untyped-decorator]
def spread(experts: Int, weights: Float32, row: int, layers: int, into: Float32) -> None:
    """Write sqrt(w) of a row's experts [., L, k] in its first `layers` to into [L, E + 1]. Column E, which is also
    column -1 and so the absent experts', stays 0.
    """
    into[:] = 0
    even = np.float32(np.sqrt(1 / experts.shape[2]))
    for layer in range(layers):
        for slot in range(experts.shape[2]):
            expert = experts[row, layer, slot]
            if expert >= 0:
                into[layer, expert] = np.sqrt(weights[row, layer, slot]) if len(weights) else even


@njit(cache=True)  # type: ignore[untyped-decorator]
def likeness(spreads: Float32, experts: Int, weights: Float32, row: int, worth: Float32) -> float:
    """Sum over the layers of worth [l] of worth * overlap between what was spread and a row of experts [., L, k]."""
    k = experts.shape[2]
    total = np.float32(0)
    if len(weights) == 0:
        for layer in range(len(worth)):
            shared = np.float32(0)
            for slot in range(k):
                shared += spreads[layer, experts[row, layer, slot]]
            total += worth[layer] * shared
        return float(total * np.float32(np.sqrt(1 / k)))
    for layer in range(len(worth)):
        shared = np.float32(0)
        for slot in range(k):
            shared += spreads[layer, experts[row, layer, slot]] * np.sqrt(weights[row, layer, slot])
        total += worth[layer] * shared
    return float(total)


@njit(cache=True)  # type: ignore[untyped-decorator]
def shares(experts: Int, weights: Float32, row: int, layer: int, into: Float32) -> bool:
    """Write each slot's part [k] of a set's vote: its gate's, or an equal one without weights. False if it is empty."""
    total = np.float32(0)
    for slot in range(experts.shape[2]):
        into[slot] = 0
        if experts[row, layer, slot] >= 0:
            into[slot] = weights[row, layer, slot] if len(weights) else np.float32(1)
            total += into[slot]
    if total > 0:
        into /= total
    return bool(total > 0)
