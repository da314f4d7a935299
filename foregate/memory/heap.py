"""An indexed heap of keys, lowest rank first. No policy here.

order  Int32[C + 1]   keys in heap order; the last place says how many
rank   Float64[K, 3]  score, and the stamp that breaks ties: the lower leaves first. Kept for keys outside of the heap
                      too. The third column is where in `order` a key is, -1 = not in the heap
"""

import numpy as np

from foregate.arrays import Float64, Int32, Int64
from foregate.memory.compiled import inner

SCORE, STAMP, PLACE = range(3)
"""Columns of `rank`."""


def make_order(slots: int) -> Int32:
    """An empty heap."""
    return np.zeros(slots + 1, np.int32)


def make_rank(keys: int) -> Float64:
    """All scores are 0, no key is in the heap."""
    rank = np.zeros((keys, 3), np.float64)
    rank[:, PLACE] = -1
    return rank


@inner
def enter(order: Int32, rank: Float64, key: int) -> None:
    """Put a key in, by the score and stamp it has."""
    at = order[-1]
    order[-1] = at + 1
    order[at] = key
    _rise(order, rank, at)


@inner
def leave(order: Int32, rank: Float64, key: int) -> None:
    """Take a key out."""
    at = int(rank[key, PLACE])
    last = order[-1] - 1
    order[-1] = last
    rank[key, PLACE] = -1
    if at != last:
        other = order[last]
        order[at] = other
        rank[other, PLACE] = at
        moved(order, rank, other)


@inner
def moved(order: Int32, rank: Float64, key: int) -> None:
    """A key's rank has changed."""
    at = int(rank[key, PLACE])
    if at > 0 and _before(rank, np.uint32(key), np.uint32(order[(at - 1) >> 1])):
        _rise(order, rank, at)
    else:
        _sink(order, rank, at)


@inner
def lowest(order: Int32, rank: Float64, lock: Int64, floor: int) -> int:
    """The first key to leave among those with lock < floor, -1 = there is none. It stays in the heap.

    Below a key that may leave all others leave later, so only branches under locked keys are searched.
    """
    size, best, at = order[-1], -1, 0
    # Pre-order walk without a stack: down while locked, else on to the next branch on the right.
    while True:
        key = order[at]
        if lock[key] < floor:
            if best < 0 or _before(rank, np.uint32(key), np.uint32(best)):
                best = key
        elif 2 * at + 1 < size:
            at = 2 * at + 1
            continue
        while at > 0 and (at % 2 == 0 or at + 1 >= size):
            at = (at - 1) // 2
        if at == 0:
            return best
        at += 1


@inner
def _before(rank: Float64, a: np.uint32, b: np.uint32) -> bool:
    return rank[a, SCORE] < rank[b, SCORE] or (rank[a, SCORE] == rank[b, SCORE] and rank[a, STAMP] < rank[b, STAMP])  # type: ignore[no-any-return]


@inner
def _rise(order: Int32, rank: Float64, at: int) -> None:
    place, key = np.uint32(at), np.uint32(order[at])  # signed indices might count from the end: that is asked each time
    score, stamp = rank[key, SCORE], rank[key, STAMP]
    while place > 0:
        above = np.uint32((place - np.uint32(1)) >> np.uint32(1))
        other = np.uint32(order[above])
        if rank[other, SCORE] < score or (rank[other, SCORE] == score and rank[other, STAMP] <= stamp):
            break
        order[place] = other
        rank[other, PLACE] = place
        place = above
    order[place] = key
    rank[key, PLACE] = place


@inner
def _sink(order: Int32, rank: Float64, at: int) -> None:
    place, key, size = np.uint32(at), np.uint32(order[at]), np.uint32(order[-1])
    score, stamp = rank[key, SCORE], rank[key, STAMP]
    while True:
        below = np.uint32(place + place + np.uint32(1))
        if below >= size:
            break
        other = np.uint32(order[below])
        right = np.uint32(below + np.uint32(1))
        if right < size and _before(rank, np.uint32(order[right]), other):
            below, other = right, np.uint32(order[right])
        if score < rank[other, SCORE] or (score == rank[other, SCORE] and stamp <= rank[other, STAMP]):
            break
        order[place] = other
        rank[other, PLACE] = place
        place = below
    order[place] = key
    rank[key, PLACE] = place
