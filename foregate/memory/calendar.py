"""Which keys are due when, and which of them is due last: moments as bits, and bits over bits. No policy here.

Moments are numbers below a horizon. A bit says that some key is due at a moment; a bit above it that some bit of a word
is set, and so on, so that the last moment before another is found in a step or two a level.

Source: van Emde Boas, "Preserving Order in a Forest in Less than Logarithmic Time", FOCS 1975; with words of 64 bits.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from foregate.arrays import Int32, Int64
from foregate.memory.compiled import inner, pasted

UInt64 = npt.NDArray[np.uint64]
MOMENT, AFTER = range(2)
"""Columns of `turn`."""

ONE, SIX, LOW = np.uint64(1), np.uint64(6), np.uint64(63)


class Calendar(NamedTuple):
    """S moments, K keys.

    bits  [levels, S / 64 + 1]  words; those of a level are the bits of the next one, and the last one has one word
    due   [S]                   the key that was entered first of those due at a moment; anything where there is none
    turn  [K, 2]                when a key is due (-1 = it is not in here), and which was entered next for that moment
                                (-1 = none)
    """

    bits: UInt64
    due: Int32
    turn: Int64


def make_calendar(keys: int, horizon: int) -> Calendar:
    """Nothing is due. What is not used costs address space only."""
    return Calendar(
        bits=np.zeros((max(horizon.bit_length() + 5, 6) // 6, horizon // 64 + 1), np.uint64),
        due=np.zeros(horizon, np.int32),
        turn=np.full((keys, 2), -1, np.int64),
    )


@inner
def enter(calendar: Calendar, key: int, moment: int) -> None:
    """Put a key in that is not; the moment lies below the horizon."""
    turn, due, bits = calendar.turn, calendar.due, calendar.bits
    turn[key, MOMENT], turn[key, AFTER] = moment, -1
    place = np.uint64(moment)
    if (bits[0, place >> SIX] >> (place & LOW)) & ONE:
        other = due[place]
        while turn[other, AFTER] >= 0:
            other = turn[other, AFTER]
        turn[other, AFTER] = key
        return
    due[place] = key
    for level in range(len(bits)):
        word = bits[level, place >> SIX]
        bits[level, place >> SIX] = word | ONE << (place & LOW)
        if word > 0:
            return
        place >>= SIX


@inner
def leave(calendar: Calendar, key: int) -> None:
    """Take a key out."""
    turn, due, bits = calendar.turn, calendar.due, calendar.bits
    place = np.uint64(turn[key, MOMENT])
    turn[key, MOMENT] = -1
    other = due[place]
    if other != key:
        while turn[other, AFTER] != key:
            other = turn[other, AFTER]
        turn[other, AFTER] = turn[key, AFTER]
        return
    if turn[key, AFTER] >= 0:
        due[place] = turn[key, AFTER]
        return
    for level in range(len(bits)):
        word = bits[level, place >> SIX] & ~(ONE << (place & LOW))
        bits[level, place >> SIX] = word
        if word > 0:
            return
        place >>= SIX


@inner
def latest(calendar: Calendar, lock: Int64, floor: int) -> int:
    """The key that is due last among those with lock < floor, of several the one that was entered first; -1 = there is
    none. It stays in.
    """
    moment = _last(calendar.bits)
    while moment >= 0:
        key = calendar.due[moment]
        while key >= 0:
            if lock[key] < floor:
                return int(key)
            key = calendar.turn[key, AFTER]
        moment = _before(calendar.bits, moment)
    return -1


@pasted
def _highest(word: np.uint64) -> np.uint64:
    """The place of a word's highest bit, which is set: a float's exponent. Without the bit below, nothing rounds up."""
    bits = np.float64(word & ~(word >> ONE)).view(np.int64)
    return np.uint64((bits >> np.int64(52)) - np.int64(1023))


@inner
def _last(bits: UInt64) -> int:
    """The last moment at which any key is due, -1 = there is none."""
    place = np.uint64(0)
    if bits[-1, place] == 0:
        return -1
    for level in range(len(bits) - 1, -1, -1):
        place = place << SIX | _highest(bits[level, place])
    return np.int64(place)  # type: ignore[return-value]


@inner
def _before(bits: UInt64, moment: int) -> int:
    """The last moment before this one at which any key is due, -1 = there is none."""
    place = np.uint64(moment)
    for level in range(len(bits)):
        word = bits[level, place >> SIX] & ((ONE << (place & LOW)) - ONE)
        place >>= SIX
        if word > 0:
            place = place << SIX | _highest(word)
            for below in range(level - 1, -1, -1):
                place = place << SIX | _highest(bits[below, place])
            return np.int64(place)  # type: ignore[return-value]
    return -1
