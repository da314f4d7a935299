"""Single keys, one after another, as cache simulators take them: how many hit. No sets, no guesses, no clock.

Those of lru and belady are counted without slots, because only the count is wanted; a test holds them to `by_policy`.
"""

import numpy as np
from numba.cpython.unsafe.numbers import trailing_zeros

from foregate.arrays import Int, Int32, Int64
from foregate.errors import ChoiceError
from foregate.memory.assemble import assemble
from foregate.memory.calendar import LOW, ONE, SIX
from foregate.memory.compiled import allocating, entry
from foregate.memory.eviction import admit, eviction, touch, victim
from foregate.memory.interface import BELADY, LRU, Eviction
from foregate.memory.predicted import Predicted
from foregate.memory.replay import next_uses
from foregate.memory.state import FILLED, FLOOR, POLICY, State


def replay_keys(
    keys: Int32, num_keys: int, slots: int, evict: Eviction | str = "lru", profile: Int | None = None
) -> int:
    """How many of these accesses hit, with `slots` slots that were empty.

    Raises: ChoiceError; `predicted` needs routed sets.
    """
    kind = _possible(evict, slots)
    if kind.code == LRU:
        return int(_lru_hits(keys, num_keys, slots))
    if kind.code == BELADY:
        return int(_best_hits(keys, num_keys, slots))
    return by_policy(keys, num_keys, slots, kind, profile)


def by_policy(  # noqa: PLR0917
    keys: Int32,
    num_keys: int,
    slots: int,
    evict: Eviction | str = "lru",
    profile: Int | None = None,
    future: Int64 | None = None,
) -> int:
    """The same by the planner's own functions, victim by victim; `future` (see `next_uses`) spares belady its look."""
    kind = _possible(evict, slots)
    horizon = len(keys) if kind.needs_future else 0
    state, _ = assemble(1, num_keys, slots, kind, profile=profile, least=1, horizon=horizon)
    if kind.needs_future and future is None:
        future = next_uses(keys, np.arange(len(keys) + 1), num_keys)
    return int(_hits(state, keys, np.zeros(0, np.int64) if future is None else future))


def _possible(evict: Eviction | str, slots: int) -> Eviction:
    kind = eviction(evict) if isinstance(evict, str) else evict
    if isinstance(kind, Predicted):
        raise ChoiceError("predicted eviction needs routed sets, not single keys; use replay")
    if slots < 1:
        raise ChoiceError(f"{slots} slots are too few; a cache needs at least 1")
    return kind


@entry
def _hits(state: State, keys: Int32, future: Int64) -> int:
    slot_of, now = state.slot_of, state.now
    now[FLOOR] = 1  # nothing is ever locked
    hits = 0
    for i in range(len(keys)):
        key = int(keys[i])
        next_use = future[i] if len(future) > 0 else 0
        if slot_of[key] >= 0:
            touch(state, now[POLICY], key, next_use)
            hits += 1
            continue
        if now[FILLED] < len(state.key_of):
            slot = now[FILLED]
            now[FILLED] += 1
        else:
            gone = victim(state, now[POLICY], key)
            slot = slot_of[gone]
            slot_of[gone] = -1
        slot_of[key] = slot
        state.key_of[slot] = key
        admit(state, now[POLICY], key, next_use)
    return hits


@allocating
def _lru_hits(keys: Int32, num_keys: int, slots: int) -> int:
    """The stream is its own queue: the keys held are those whose last access is at `edge` or after it.

    A bit is set where an access is the last of a key that is held, so that the lowest bit is the oldest's.
    """
    last = np.full(num_keys, -1, np.int64)
    bits = np.zeros(len(keys) // 64 + 1, np.uint64)
    hits, held, edge, oldest = 0, 0, np.int64(0), np.uint64(0)
    for t in range(len(keys)):
        key = np.uint32(keys[t])
        before = last[key]
        last[key] = t
        bits[np.uint64(t) >> SIX] |= ONE << (np.uint64(t) & LOW)
        if before >= edge:
            hits += 1
            bits[np.uint64(before) >> SIX] &= ~(ONE << (np.uint64(before) & LOW))
        elif held < slots:
            held += 1
        else:
            while bits[oldest] == 0:
                oldest += ONE
            edge = np.int64(oldest << SIX | trailing_zeros(bits[oldest])) + 1
            bits[oldest] &= bits[oldest] - ONE
    return hits


@allocating
def _best_hits(keys: Int32, num_keys: int, slots: int) -> int:
    """As many as Belady's rule has, which are as many as any can have; no next use has to be known for the number.

    A hit keeps a key between two of its accesses. At each access in between one slot is taken by what is accessed
    there, so `slots` - 1 lanes are left for keys that stay, each with room for one at a time. As its second access
    comes, a key gets the lane that was free for the shortest time before the first one; if there is none, it was a
    miss. No other choice keeps more.

    `up` finds that lane in nearly constant time: it leads from each access up to the nearest older one since which a
    lane is free (place 2 + access; 1 = a lane never used, 0 = there is none).

    Source: Faigle and Nawijn, "Note on scheduling intervals on-line", Discrete Applied Mathematics 1995; the forest is
    Gabow and Tarjan, "A linear-time algorithm for a special case of disjoint set union", JCSS 1985.
    """
    up = np.empty(len(keys) + 2, np.uint32)
    up[0], unused = 0, slots - 1
    up[1] = 1 if unused > 0 else 0
    last = np.full(num_keys, -1, np.int64)
    hits = 0
    for t in range(len(keys)):
        key = np.uint32(keys[t])
        before = last[key]
        last[key] = t
        here = np.uint64(t + 1)
        up[here] = t if t > 0 else up[1]
        if before < 0:
            continue
        if before == t - 1:
            hits += 1
            continue
        lane = up[np.uint64(before + 2)]
        while up[lane] != lane:
            up[lane] = up[up[lane]]
            lane = up[lane]
        if lane == 0:
            continue
        hits += 1
        up[here] = t + 1
        if lane > 1:
            up[lane] = lane - np.uint32(1)
        else:
            unused -= 1
            up[1] = 1 if unused > 0 else 0
    return hits
