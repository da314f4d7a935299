"""Floats as whole numbers in the same order: compiled loops compare these eight at a time, but floats one by one."""

import numpy as np

from foregate.memory.compiled import pasted

HIGHEST = np.int64(2**63 - 1)
LOWEST = np.int64(-(2**63))
TIES = np.int64(2**29 - 1)
"""Bits that are the same in all ordered float32: there is room for what decides between equals."""


@pasted
def ordered(value: float) -> np.int64:
    """Larger where the value is; it must be a number."""
    bits = np.float64(value).view(np.int64)
    return bits ^ ((bits >> np.int64(63)) & HIGHEST)  # of negative floats the larger one has the smaller bits
