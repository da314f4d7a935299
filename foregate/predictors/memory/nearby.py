"""Tokens of a training trace in the order of "this token, the one before, the one before that": those that share the
longest ending with a new token stand side by side. An index only; what is done with them is its owner's business.

A key holds three token ids, 21 bits each, shifted by one so that 0 is an unknown token; longer ids are cut.
"""

import numpy as np
from numba import njit

from foregate.arrays import Int, Int32, Int64

BITS = 21
MASK = (1 << BITS) - 1


def keys(token_id: Int, place: Int) -> Int64:
    """[T] the key of each token; place [T] says how many tokens stand before it in its sequence."""
    ids = (token_id.astype(np.int64) + 1) & MASK
    before = np.where(place > 0, np.roll(ids, 1), 0)
    earlier = np.where(place > 1, np.roll(ids, 2), 0)
    joined: Int64 = (ids << 2 * BITS) | (before << BITS) | earlier
    return joined


@njit(cache=True)  # type: ignore[untyped-decorator]
def key_of(token_id: Int32, own: int, seen: int) -> int:
    """The key of token `own` after the first `seen` of its sequence's token ids."""
    before = (np.int64(token_id[seen - 1]) + 1) & MASK if seen > 0 else 0
    earlier = (np.int64(token_id[seen - 2]) + 1) & MASK if seen > 1 else 0
    return int((((np.int64(own) + 1) & MASK) << 2 * BITS) | (before << BITS) | earlier)


@njit(cache=True)  # type: ignore[untyped-decorator]
def shared(a: int, b: int) -> int:
    """How many tokens two keys share, from the latest on: 0 to 3; unknown ones are shared with nobody."""
    count = 0
    for back in range(3):
        shift = (2 - back) * BITS
        if (a >> shift) != (b >> shift) or ((a >> shift) & MASK) == 0:
            break
        count += 1
    return count


@njit(cache=True)  # type: ignore[untyped-decorator]
def nearby(ordered: Int64, wanted: int, most: int) -> tuple[int, int]:
    """The range first..last of up to `most` places in the ordered keys that share the longest ending with a key, and at
    least the token itself.
    """
    first = last = np.searchsorted(ordered, wanted)
    while last - first < most:
        below = shared(ordered[first - 1], wanted) if first > 0 else 0
        above = shared(ordered[last], wanted) if last < len(ordered) else 0
        if max(below, above) == 0:
            break
        if above >= below:
            last += 1
        else:
            first -= 1
    return int(first), int(last)
