"""Who may vote on a token: the latest of its sequence, and the training tokens that end alike. No votes are counted."""

import numpy as np
from numba import njit

from foregate.arrays import Bool, Int32, Int64
from foregate.predictors.memory.nearby import key_of, nearby, shared

WHOLE = 512
"""A bank of so few tokens is asked whole, without its index."""


@njit(cache=True)  # type: ignore[untyped-decorator]
def gather(
    asking: tuple[Int32, int, int, int],
    bank: tuple[Int64, Int32, Bool],
    limits: tuple[int, int, int],
    found: tuple[Int64, Bool, Int64, Int64],
) -> int:
    """Write the candidates and say how many they are.

    asking  token ids of a sequence [P]; the asking token's own id; how many of the ids it may read, and from which on
            they vote
    bank    keys in order, the row of each, and whether the row before belongs to a row's sequence
    limits  how many training tokens vote at most; rows first..last of the bank that must not
    found   for each candidate its row, whether the row before is of its sequence, its age (0 = a training token) and
            how many tokens it shares
    """
    token_id, own, seen, since = asking
    ordered, order, follows = bank
    most, forbidden, allowed = limits
    row, behind, age, same = found
    wanted = key_of(token_id, own, seen)
    count = 0
    for p in range(since, seen):
        row[count], behind[count], age[count] = p, p > 0, seen - p
        same[count] = shared(key_of(token_id, token_id[p], p), wanted)
        count += 1
    first, last = (0, len(ordered)) if len(ordered) <= WHOLE else nearby(ordered, wanted, most)
    for i in range(first, last):
        if not forbidden <= order[i] < allowed:
            row[count], behind[count], age[count] = order[i], follows[order[i]], 0
            same[count] = shared(ordered[i], wanted)
            count += 1
    return count


@njit(cache=True)  # type: ignore[untyped-decorator]
def room(window: int, most: int) -> tuple[Int64, Bool, Int64, Int64]:
    """Empty arrays for as many candidates as there can be."""
    size = window + max(most, WHOLE)
    return (
        np.empty(size, dtype=np.int64),
        np.empty(size, dtype=np.bool_),
        np.empty(size, dtype=np.int64),
        np.empty(size, dtype=np.int64),
    )
