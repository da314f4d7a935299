"""The page table and what decides over it, as few arrays that compiled code reads: which expert is in which slot.

key = layer * num_experts + expert. Time counts layers that may have run: pass * num_layers + layer. A key is locked
until `lock[key] < now[FLOOR]`; both are moments (see `moment`), so locks run out by themselves:

    member of a set in use    until the wave after its own wave
    expected for a later layer    until that layer has been routed

A slot is free, or its key belongs to a guess that was not used yet (locked, then in the list STALE), or to the policy.
"""

from typing import NamedTuple

import numpy as np

from foregate.arrays import Bool, Float32, Float64, Int32, Int64
from foregate.memory.calendar import Calendar, make_calendar
from foregate.memory.compiled import pasted
from foregate.memory.heap import make_order, make_rank
from foregate.memory.lists import make_lists

YOUNG, MAIN, YOUNG_GHOSTS, MAIN_GHOSTS, STALE = range(5)
"""Lists of keys: policies use the first four as they like, ghosts being keys without a slot."""

POLICY, PASS, LAYER, FLOOR, WAVE, FILLED, WAITING, LOCKED, PREVIOUS, PROMISED, ROOM, TICK, HAND, READS, RULE = range(15)
TRIED, WON, RESTING = range(15, 18)
"""Places in `now`:

POLICY   the eviction's code                 PASS      passes begun
LAYER    the running layer, -1 = none yet    FLOOR     locks below it have run out
WAVE     of the running layer, from 0        FILLED    slots ever used
WAITING  experts of the set not served yet   LOCKED    members of the wave, PREVIOUS of the wave before
PROMISED keys locked for later layers        ROOM      slots that promises must leave
TICK     uses so far                         HAND      sieve's hand, a key or -1
READS    reads issued since the layer began  RULE      the prefetch's code
TRIED    passes that somebody was asked about, WON those in which it paid, since the last verdict of `budget`
RESTING  passes to come in which nobody is asked
"""

REGISTERS = 18
SHARE, RATE, AMOUNT, READ_SECONDS, WINDOW_SECONDS, LOOK_SECONDS, GAIN, CLAIMED, CAME = range(9)
"""Places in `dials`: ARC's target size, the uses after which a use counts half, the prefetch's number, seconds to read
an expert, seconds that a layer takes, seconds that an answer about a layer takes, seconds that this pass is expected to
gain by asking, how many of `budget`'s guesses were said to be used, how many were."""

DIALS = 9
RESIDENT_HITS, GUESS_HITS, MISSES, GUESSES, EVICTIONS, WASTED = range(6)
"""Columns of `counts`: uses of experts that were there, first uses of guesses, reads on demand, reads ahead, evictions,
evictions of guesses never used, each by the layer of the expert."""

COUNTERS = 6
GUESS, MARK = range(3, 5)
"""Columns of `keys` after those of `lists`: 1 = a guess brought it in and nobody has used it yet; small numbers of a
policy: visited (sieve), uses (s3fifo)."""

COLUMNS = 5
WAVES = 1 << 20
"""Moments of one layer: more than it can have waves."""


EXPERT, SLOT, HIT, GUESSED, REST, KEY_IN, SLOT_IN, EVICTED = range(8)
"""Rows of `desk`, where compiled code leaves its answers (see `demand` and `speculate` in `core.py`)."""

DESK = 8


class State(NamedTuple):
    """All of it. K = L * E keys, C slots.

    slot_of   [K]         -1 = absent
    keys      [K + 5, 5]  see `lists` and GUESS
    lock      [K]         moment until which a resident may not leave
    key_of    [C]         -1 = free
    promised  [C]         the first now[PROMISED] are keys locked for later layers
    order     [C + 1]     see `heap`, as for rank [K, 3]
    calendar              of next uses
    chance    [L, E]      what `expect` said about each layer's next run
    merit     [L, E]      the same as numbers that differ, the likeliest highest, of equals the lower id
    known     [L]         whether it did
    counts    [L, 6]      see RESIDENT_HITS
    now       [18]        see POLICY
    dials     [9]         see SHARE
    desk      [8, E]      see EXPERT
    """

    slot_of: Int32
    keys: Int32
    lock: Int64
    key_of: Int32
    promised: Int32
    order: Int32
    rank: Float64
    calendar: Calendar
    chance: Float32
    merit: Int64
    known: Bool
    counts: Int64
    now: Int64
    dials: Float64
    desk: Int32


def make_state(num_layers: int, num_experts: int, slots: int, *, policy: int, room: int = 1, horizon: int = 0) -> State:
    """Empty slots, before the first pass; next uses will be told as numbers below `horizon`, or above for never."""
    L, E, K, C = num_layers, num_experts, num_layers * num_experts, slots
    now = np.zeros(REGISTERS, np.int64)
    now[POLICY], now[ROOM] = policy, room
    now[LAYER] = now[HAND] = -1  # PASS counts from 1, so that no moment is 0
    return State(
        slot_of=np.full(K, -1, np.int32),
        keys=make_lists(K, COLUMNS),
        lock=np.full(K, -1, np.int64),
        key_of=np.full(C, -1, np.int32),
        promised=np.zeros(C, np.int32),
        order=make_order(C),
        rank=make_rank(K),
        calendar=make_calendar(K if horizon else 0, horizon),
        chance=np.zeros((L, E), np.float32),
        merit=np.zeros((L, E), np.int64),
        known=np.zeros(L, np.bool_),
        counts=np.zeros((L, COUNTERS), np.int64),
        now=now,
        dials=np.zeros(DIALS, np.float64),
        desk=np.zeros((DESK, E), np.int32),
    )


@pasted
def moment(layers: int, turn: int, layer: int, wave: int) -> int:
    """The moment of a wave of a layer, of so many, in the pass number `turn`."""
    return (turn * layers + layer) * WAVES + wave
