"""What an eviction and a prefetch policy are to the planner. The interface only: no state, no implementation."""

from abc import ABC
from typing import ClassVar

LRU, LFU, LFU_DECAY, ARC, S3FIFO, SIEVE, STATIC, BELADY, PREDICTED = range(9)
"""Numbers that compiled code tells evictions apart by."""


class Eviction(ABC):
    """Who leaves when a slot is needed. An implementation is a frozen dataclass of options; what it does is compiled
    code over `State`, found by `code` in `eviction.py`.
    """

    code: ClassVar[int]
    needs_future: ClassVar[bool] = False
    """It must be told when each expert is used next: only a replay can."""


class Prefetch(ABC):
    """Which of the expected experts of a later layer are read ahead: `speculate` walks them from the likeliest down and
    stops at the first that this policy does not want (`wanted` in `prefetch.py`).
    """

    code: ClassVar[int]
