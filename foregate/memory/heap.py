"""An indexed heap of keys, lowest score first, ties by the older stamp. No policy here."""

from typing import NamedTuple

import numpy as np
from numba import njit

from foregate.arrays import Float64, Int32, Int64

SCORE, STAMP = range(2)
"""Columns of `rank`."""


class Heap(NamedTuple):
    """A binary heap over keys 0..K-1.

    order  [C + 1]  keys in heap order; the last place says how many
    place  [K]      where in `order` a key is, -1 = not in the heap
    rank   [K, 2]   score, and the stamp that breaks ties: the lower leaves first. Kept for keys outside of the heap too
    """

    order: Int32
    place: Int32
    rank: Float64


def make_heap(keys: int, slots: int) -> Heap:
    """An empty heap; all scores are 0."""
    order = np.zeros(slots + 1, dtype=np.int32)
    return Heap(order, np.full(keys, -1, dtype=np.int32), np.zeros((keys, 2), dtype=np.float64))


@njit(cache=True)  # type: ignore[untyped-decorator]
def enter(heap: Heap, key: int) -> None:
    """Put a key in, by the score and stamp it has."""
    at = heap.order[-1]
    heap.order[-1] = at + 1
    heap.order[at] = key
    heap.place[key] = at
    _rise(heap, at)


@njit(cache=True)  # type: ignore[untyped-decorator]
def leave(heap: Heap, key: int) -> None:
    """Take a key out."""
    at = heap.place[key]
    last = heap.order[-1] - 1
    heap.order[-1] = last
    heap.place[key] = -1
    if at != last:
        moved = heap.order[last]
        heap.order[at] = moved
        heap.place[moved] = at
        _rise(heap, at)
        _sink(heap, heap.place[moved])


@njit(cache=True)  # type: ignore[untyped-decorator]
def moved_up(heap: Heap, key: int) -> None:
    """A key's score has risen (or its stamp): it leaves later."""
    _sink(heap, heap.place[key])


@njit(cache=True)  # type: ignore[untyped-decorator]
def moved_down(heap: Heap, key: int) -> None:
    """A key's score has fallen: it leaves earlier."""
    _rise(heap, heap.place[key])


@njit(cache=True)  # type: ignore[untyped-decorator]
def lowest(heap: Heap, lock: Int64, floor: int) -> int:
    """The first key to leave among those with lock < floor, -1 = there is none. It stays in the heap.

    Below a key that may leave all others leave later, so only branches under locked keys are searched.
    """
    top = heap.order[0]
    if lock[top] < floor:
        return top  # type: ignore[no-any-return]
    best = -1
    at = 0
    size = heap.order[-1]
    # Pre-order walk without a stack: down while locked, else on to the next branch on the right.
    while True:
        key = heap.order[at]
        if lock[key] < floor:
            if best < 0 or _before(heap, key, best):
                best = key
        elif 2 * at + 1 < size:
            at = 2 * at + 1
            continue
        while at > 0 and (at % 2 == 0 or at + 1 >= size):
            at = (at - 1) // 2
        if at == 0:
            return best
        at += 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _before(heap: Heap, a: int, b: int) -> bool:
    rank = heap.rank
    return rank[a, SCORE] < rank[b, SCORE] or (rank[a, SCORE] == rank[b, SCORE] and rank[a, STAMP] < rank[b, STAMP])  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _rise(heap: Heap, at: int) -> None:
    order, place = heap.order, heap.place
    key = order[at]
    while at > 0:
        above = (at - 1) >> 1
        other = order[above]
        if not _before(heap, key, other):
            break
        order[at] = other
        place[other] = at
        at = above
    order[at] = key
    place[key] = at


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sink(heap: Heap, at: int) -> None:
    order, place, size = heap.order, heap.place, heap.order[-1]
    key = order[at]
    while True:
        below = 2 * at + 1
        if below >= size:
            break
        other = order[below]
        if below + 1 < size and _before(heap, order[below + 1], other):
            below += 1
            other = order[below]
        if not _before(heap, other, key):
            break
        order[at] = other
        place[other] = at
        at = below
    order[at] = key
    place[key] = at
