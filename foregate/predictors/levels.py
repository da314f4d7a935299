"""The contexts of the Mixtral study's lookup rules, by level. Which context a level looks up; nothing is counted here.

    1     (layer, expert)                      4     (layer, primary, secondary)
    2     (layer, previous, expert)            path  (layer, every primary so far)
    3     (layer, expert-2, expert-1, expert)

Each answers with the primary of a later layer. The study's level 5 is level 1 asked 2, 4 or 8 layers ahead.
Source: "Cross-Layer Routing Patterns for MoE Optimization".
"""

import numpy as np

from foregate.arrays import Bool, Float, Int, Int64
from foregate.errors import ChoiceError

LEVELS = ("1", "2", "3", "4", "path")
CHAINS = {"1": 1, "2": 2, "3": 3}
HASHED = 48  # bits of a context that has no place in one integer


def named(level: str) -> str:
    """The level, if there is one of that name. Raises: ChoiceError."""
    if level not in LEVELS:
        raise ChoiceError(f"there is no level {level!r}; choose one of {', '.join(LEVELS)}")
    return level


def leading(experts: Int, weights: Float | None) -> Int:
    """[..., k] routed sets with the primary first, then the secondary; without weights they are taken as they come."""
    if weights is None:
        return experts
    order = np.argsort(np.where(experts >= 0, -weights, np.inf), axis=-1, kind="stable")
    ranked: Int = np.take_along_axis(experts, order, axis=-1)
    return ranked


def context(level: str, ranked: Int) -> Int | None:
    """[N, c] what the level looks up after the layers of ranked [N, layer + 1, k]; None where it has no context yet."""
    layers, k = ranked.shape[1:]
    if level in CHAINS:
        return ranked[:, -CHAINS[level] :, 0] if layers >= CHAINS[level] else None
    if level == "path":
        return ranked[:, :, 0] if layers else None
    return ranked[:, -1, :2] if layers and k > 1 else None


def packed(ids: Int, place: int, base: int) -> Int64:
    """[N] one integer >= 0 for `place` and each row of ids [N, c] in -1..base-2; -1 where any id is -1.

    Contexts too long for an integer of HASHED bits are hashed to one: of a million, two collide once in 500 traces.
    """
    absent: Bool = np.any(ids < 0, axis=1)
    if (place + 1) * base ** ids.shape[1] < 1 << HASHED:
        key = np.full(len(ids), place, dtype=np.int64)
        for column in ids.T:
            key = key * base + column
    else:
        key = _hash(ids, place)
    return np.where(absent, -1, key)


def _hash(ids: Int, place: int) -> Int64:
    """splitmix64's finalizer, once for each id."""
    state = np.full(len(ids), place + 1, dtype=np.uint64)
    for column in ids.T:
        state += np.uint64(0x9E3779B97F4A7C15) + column.astype(np.uint64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return (state >> np.uint64(64 - HASHED)).astype(np.int64)
