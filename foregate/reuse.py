"""How soon a layer needs the same expert again, and the LRU hit rate that follows from it. No cache, no clock.

Reuse distance of a use: how many *other* experts of that layer were used since the last use of this one (the LRU stack
distance). Uses run in execution order: forward pass by forward pass, in a pass by sequence and position, in a token as
recorded (the primary first where the source ranks). An LRU that holds c experts of a layer hits exactly the uses whose
distance is below c, so one histogram gives its hit rate for every c; a first use has no distance and always misses.
Source: Mattson et al., Evaluation techniques for storage hierarchies, 1970.
"""

from collections.abc import Sequence

import numba
import numpy as np

from foregate.arrays import Float64, Int, Int64


def reuse_histogram(experts: Int, num_experts: int) -> Int64:
    """[L, E+1] uses by distance 0..E-1; the last column counts first uses. experts: [T, L, k] in execution order."""
    layered = np.ascontiguousarray(experts.transpose(1, 0, 2)).reshape(experts.shape[1], -1)
    histogram: Int64 = _stack_distances(layered, num_experts)
    return histogram


def hit_rates(histogram: Int64, slots: Sequence[int]) -> Float64:
    """[L, S] share of a layer's uses that an LRU of so many slots for that layer hits, starting empty."""
    hits = np.cumsum(histogram[:, :-1], axis=1)
    last = np.minimum(np.asarray(slots, dtype=np.int64), hits.shape[1]) - 1
    rates: Float64 = hits[:, last] / np.maximum(histogram.sum(axis=1), 1)[:, None]
    return rates


def median_distance(histogram: Int64) -> Float64:
    """[L] the median distance over reuses (first uses have none); NaN where nothing was used twice."""
    reuses = np.cumsum(histogram[:, :-1], axis=1)
    total = reuses[:, -1:]
    low = (reuses * 2 >= total).argmax(axis=1)  # the first distance that half of the reuses do not exceed ...
    high = (reuses * 2 > total).argmax(axis=1)  # ... and the next one, where exactly half lie below it
    return np.where(total[:, 0] > 0, (low + high) / 2, np.nan)


@numba.njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def _stack_distances(layered: Int, num_experts: int) -> Int64:
    layers, uses = layered.shape
    histogram = np.zeros((layers, num_experts + 1), dtype=np.int64)
    for layer in numba.prange(layers):
        stack = np.empty(num_experts, dtype=np.int64)  # most recently used first
        depth = 0
        for i in range(uses):
            expert = np.int64(layered[layer, i])
            if expert < 0:
                continue
            place = 0
            while place < depth and stack[place] != expert:
                place += 1
            if place == depth:
                histogram[layer, num_experts] += 1
                depth += 1
            else:
                histogram[layer, place] += 1
            for j in range(place, 0, -1):
                stack[j] = stack[j - 1]
            stack[0] = expert
    return histogram
