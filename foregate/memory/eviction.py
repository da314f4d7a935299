"""Who leaves: the evictions by name, and the three compiled functions that ask whichever runs.

To add one: a code in `interface.py`, a frozen dataclass here and in EVICTION, and its branch in `touch`, `admit` and
`victim`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np
from numba import njit

from foregate.components import build
from foregate.errors import ChoiceError
from foregate.memory import arc, heap, predicted, s3fifo, sieve
from foregate.memory.interface import ARC, BELADY, LFU, LFU_DECAY, LRU, PREDICTED, S3FIFO, SIEVE, STATIC, Eviction
from foregate.memory.lists import drop, newer, oldest, push, renew
from foregate.memory.predicted import Forecast, Predicted
from foregate.memory.state import FLOOR, LAYER, POLICY, RATE, TICK, VICTIM, YOUNG, State


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


@njit(cache=True)  # type: ignore[untyped-decorator]
def touch(state: State, key: int, next_use: int) -> None:
    """A key that the policy holds is used; `next_use` counts only for belady, larger = later."""
    policy = state.now[POLICY]
    state.now[TICK] += 1
    if policy == LRU:
        renew(state.lists, key)
    elif policy in (LFU, LFU_DECAY, BELADY):
        _score(state, policy, key, next_use)
        if policy == BELADY:
            heap.moved_down(state.heap, key)
        else:
            heap.moved_up(state.heap, key)
    elif policy == SIEVE:
        state.mark[key] = 1
    elif policy == S3FIFO:
        s3fifo.touch(state, key)
    elif policy == ARC:
        arc.touch(state, key)


@njit(cache=True)  # type: ignore[untyped-decorator]
def admit(state: State, key: int, next_use: int) -> None:
    """A key is handed to the policy: read on demand, or a guess at its first use."""
    policy = state.now[POLICY]
    state.now[TICK] += 1
    if policy == LRU:
        push(state.lists, YOUNG, key)
    elif policy in (LFU, LFU_DECAY, BELADY, STATIC):
        if policy == LFU:
            state.heap.rank[key, heap.SCORE] = 0
        _score(state, policy, key, next_use)
        heap.enter(state.heap, key)
    elif policy == SIEVE:
        state.mark[key] = 0
        push(state.lists, YOUNG, key)
    elif policy == S3FIFO:
        s3fifo.admit(state, key)
    elif policy == ARC:
        arc.admit(state, key)


@njit(cache=True)  # type: ignore[untyped-decorator]
def victim(state: State, wanted: int, place: int) -> int:
    """The key that leaves for `wanted` (-1 = for a guess), no longer held by the policy. One that is not locked exists.

    `predicted` has been asked for all of a wave's victims at once (`foresee`); `place` says which of them this is.
    """
    policy = state.now[POLICY]
    if policy == LRU:
        key = oldest(state.lists, YOUNG)
        while state.lock[key] >= state.now[FLOOR]:
            key = newer(state.lists, key)
        drop(state.lists, key)
        return key  # type: ignore[no-any-return]
    if policy == SIEVE:
        return sieve.victim(state)  # type: ignore[no-any-return]
    if policy == S3FIFO:
        return s3fifo.victim(state)  # type: ignore[no-any-return]
    if policy == ARC:
        return arc.victim(state, wanted)  # type: ignore[no-any-return]
    if policy == PREDICTED:
        return state.key_of[state.desk[VICTIM, place]]  # type: ignore[no-any-return]
    key = heap.lowest(state.heap, state.lock, state.now[FLOOR])
    heap.leave(state.heap, key)
    return key  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def foresee(state: State, forecast: Forecast, count: int) -> None:
    """The policy will be asked for the next `count` victims; no slot is free or a stale guess's."""
    if state.now[POLICY] == PREDICTED:
        chosen = state.desk[VICTIM, :count]
        predicted.victims(forecast, state.now[LAYER], state.key_of, state.lock, state.now[FLOOR], chosen)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _score(state: State, policy: int, key: int, next_use: int) -> None:
    rank, tick = state.heap.rank, state.now[TICK]
    rank[key, heap.STAMP] = tick
    if policy == LFU:
        rank[key, heap.SCORE] += 1
    elif policy == BELADY:
        rank[key, heap.SCORE] = -next_use
    elif policy == LFU_DECAY:
        # The logarithm of all faded uses, as if seen from tick 0: it only changes when the key is used.
        at = tick / state.dials[RATE]
        before = rank[key, heap.SCORE]
        gained = np.log2(1 + 2.0 ** -abs(before - at)) if before > 0 else 0.0
        rank[key, heap.SCORE] = max(before, at) + gained
