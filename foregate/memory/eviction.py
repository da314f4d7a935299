"""Who leaves: the evictions by name, and the three compiled functions that ask whichever runs.

To add one: a code in `interface.py`, a frozen dataclass here and in EVICTION, and its branch in `touch`, `admit` and
`victim`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from foregate.arrays import Float64, Int32, Int64
from foregate.components import build
from foregate.errors import ChoiceError
from foregate.memory import arc, calendar, heap, s3fifo, sieve
from foregate.memory.calendar import Calendar
from foregate.memory.compiled import inner, pasted
from foregate.memory.interface import ARC, BELADY, LFU, LFU_DECAY, LRU, PREDICTED, S3FIFO, SIEVE, STATIC, Eviction
from foregate.memory.lists import NEWER, drop, is_key, oldest, push, renew
from foregate.memory.predicted import Predicted
from foregate.memory.state import FLOOR, MARK, POLICY, RATE, TICK, YOUNG, State


@final
@dataclass(frozen=True)
class LeastRecent(Eviction):
    """The longest unused leaves."""

    code: ClassVar[int] = LRU


@final
@dataclass(frozen=True)
class LeastFrequent(Eviction):
    """The least used since it came in leaves, the longest unused of those; nothing ages."""

    code: ClassVar[int] = LFU


@final
@dataclass(frozen=True)
class Fading(Eviction):
    """The least used leaves, where a use counts half after `half_life` uses of any expert; remembered while absent.

    Source: Lee et al., "LRFU: A Spectrum of Policies that Subsumes the LRU and LFU Policies", IEEE ToC 2001.
    """

    half_life: float = 10_000.0
    code: ClassVar[int] = LFU_DECAY

    def __post_init__(self) -> None:
        if not (math.isfinite(self.half_life) and self.half_life > 0):
            raise ChoiceError(f"half_life is {self.half_life}; lfu-decay needs a number of uses above 0")


@final
@dataclass(frozen=True)
class Adaptive(Eviction):
    """ARC, see `arc.py`."""

    code: ClassVar[int] = ARC


@final
@dataclass(frozen=True)
class ThreeQueues(Eviction):
    """S3-FIFO, see `s3fifo.py`."""

    code: ClassVar[int] = S3FIFO


@final
@dataclass(frozen=True)
class Sieve(Eviction):
    """SIEVE, see `sieve.py`."""

    code: ClassVar[int] = SIEVE


@final
@dataclass(frozen=True)
class Static(Eviction):
    """The least used of a given profile leaves, so its most used stay once they are there."""

    code: ClassVar[int] = STATIC


@final
@dataclass(frozen=True)
class Belady(Eviction):
    """Whose next use lies furthest away leaves: the best any eviction can do, and only a replay knows.

    Source: Belady, "A study of replacement algorithms for a virtual-storage computer", IBM Systems Journal 1966.
    """

    code: ClassVar[int] = BELADY
    needs_future: ClassVar[bool] = True


EVICTION: dict[str, type[Eviction]] = {
    "lru": LeastRecent,
    "lfu": LeastFrequent,
    "lfu-decay": Fading,
    "arc": Adaptive,
    "s3fifo": ThreeQueues,
    "sieve": Sieve,
    "static": Static,
    "belady": Belady,
    "predicted": Predicted,
}


def eviction(text: str) -> Eviction:
    """From "lru", or "lfu-decay:half_life=500". Raises: ChoiceError."""
    return build(EVICTION, text)


@pasted
def touch(state: State, policy: int, key: int, next_use: int) -> None:
    """A key that the policy holds is used; `next_use` counts only for belady, larger = later."""
    if policy == LRU:
        renew(state.keys, key)
    elif policy == S3FIFO:
        s3fifo.touch(state.keys, key)
    elif policy == SIEVE:
        state.keys[key, MARK] = 1
    elif policy == ARC:
        arc.touch(state.keys, key)
    elif policy == BELADY:
        _leave(state.calendar, state.keys, key)
        _enter(state.calendar, state.keys, key, next_use)
    elif policy != PREDICTED:
        _score(state.rank, state.now, state.dials, key)
        heap.moved(state.order, state.rank, key)


@pasted
def admit(state: State, policy: int, key: int, next_use: int) -> None:
    """A key is handed to the policy: read on demand, or a guess at its first use."""
    if policy in (LRU, SIEVE):
        state.keys[key, MARK] = 0
        push(state.keys, YOUNG, key)
    elif policy == S3FIFO:
        s3fifo.admit(state.keys, key)
    elif policy == ARC:
        arc.admit(state.keys, len(state.key_of), key)
    elif policy == BELADY:
        _enter(state.calendar, state.keys, key, next_use)
    elif policy != PREDICTED:
        if policy == LFU:
            state.rank[key, heap.SCORE] = 0
        _score(state.rank, state.now, state.dials, key)
        heap.enter(state.order, state.rank, key)


@pasted
def victim(state: State, policy: int, wanted: int) -> int:
    """The key that leaves for `wanted` (-1 = for a guess), no longer held by the policy. One that is not locked exists.

    `predicted` is asked by its own function, which takes its forecast.
    """
    floor = state.now[FLOOR]
    if policy == LRU:
        key = longest_unused(state.keys, state.lock, floor)
    elif policy == SIEVE:
        key = sieve.victim(state.keys, state.lock, state.now)
    elif policy == S3FIFO:
        key = s3fifo.victim(state.keys, state.lock, floor, len(state.key_of))
    elif policy == ARC:
        key = arc.victim(state.keys, state.lock, floor, state.dials, len(state.key_of), wanted)
    elif policy == BELADY:
        key = _used_last(state.calendar, state.keys, state.lock, floor)
        _leave(state.calendar, state.keys, key)
    else:
        key = heap.lowest(state.order, state.rank, state.lock, floor)
        heap.leave(state.order, state.rank, key)
    return key


@inner
def longest_unused(keys: Int32, lock: Int64, floor: int) -> int:
    """The oldest key that is not locked leaves the queue."""
    key = oldest(keys, YOUNG)
    while lock[key] >= floor:
        key = keys[key, NEWER]
    drop(keys, key)
    return key


@inner
def _enter(uses: Calendar, keys: Int32, key: int, next_use: int) -> None:
    """Belady's: those that are never used again wait in the queue of the young."""
    if next_use < len(uses.due):
        calendar.enter(uses, key, next_use)
    else:
        push(keys, YOUNG, key)


@inner
def _leave(uses: Calendar, keys: Int32, key: int) -> None:
    if uses.turn[key, calendar.MOMENT] >= 0:
        calendar.leave(uses, key)
    else:
        drop(keys, key)


@inner
def _used_last(uses: Calendar, keys: Int32, lock: Int64, floor: int) -> int:
    key = oldest(keys, YOUNG)
    while is_key(keys, key):
        if lock[key] < floor:
            return key
        key = keys[key, NEWER]
    return calendar.latest(uses, lock, floor)


@inner
def _score(rank: Float64, now: Int64, dials: Float64, key: int) -> None:
    policy = now[POLICY]
    now[TICK] += 1
    if policy == STATIC:  # its score is the profile's
        if rank[key, heap.PLACE] < 0:
            rank[key, heap.STAMP] = now[TICK]
        return
    rank[key, heap.STAMP] = now[TICK]
    if policy == LFU:
        rank[key, heap.SCORE] += 1
    elif policy == LFU_DECAY:
        # The logarithm of all faded uses, as if seen from tick 0: it only changes when the key is used.
        at = now[TICK] / dials[RATE]
        before = rank[key, heap.SCORE]
        gained = np.log2(1 + 2.0 ** -abs(before - at)) if before > 0 else 0.0
        rank[key, heap.SCORE] = max(before, at) + gained
