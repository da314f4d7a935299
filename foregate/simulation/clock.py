"""Time, compiled: one worker that computes or waits, and a link that reads beside it. Decides nothing but whose read is
next, as store/reader.py does: demands as they came, then guesses, those for the nearest layer first.

Reads under way together share the link as measured: each advances by 1 / pace[kind, layer, how many] a second. While
the worker computes, both are slower by factors; and a worker that mostly waits computes slowly.
"""

import math
from typing import NamedTuple

import numpy as np

from foregate.arrays import Float64, Int32, Int64
from foregate.memory.compiled import inner, melted, pasted

KEY, LAYER, STAGE, URGENT, GUESS, NUMBER = range(6)
"""Columns of `slots`: whose slot it is, of which layer that is, how far its read is, whether somebody waits for it,
whether it was read ahead and not used since, and its place among all reads asked for."""

NOTHING, QUEUED, READING, THERE, LEAVING, PUT_OFF, DUE = range(7)
"""Stages. LEAVING: a read for the expert before, which nobody wants any more, still writes there. PUT_OFF: and this
one's is to start after it. DUE: it may start now."""

DISK, HOST = range(2)
"""Kinds of reads."""

QUEUE, FLYING, TICKETS, NEAREST, PASS, RUNNING, MOVES, EVENTS, FIRST, LAST, SOURCE, LATER = range(12)
"""Places in `now`:

QUEUE    reads that wait               FLYING   reads under way
TICKETS  reads asked for so far        NEAREST  layer of the last demand
PASS     the running pass              RUNNING  the running layer, -1 = none yet
MOVES    transfers noted               EVENTS   events noted
FIRST    pass whose events are noted first, LAST the last of them
SOURCE   where experts are: see FROM_DISK   LATER  slots in `later`
"""

REGISTERS = 12
FROM_DISK, BEHIND_HOST, ALL_IN_HOST = range(3)

SLOT, LEFT, BEGAN, AHEAD, OF, ON, KIND = range(7)
"""Columns of `flying`: the slot, the share of the read that is left, when it began, whether nobody waited for it then,
the key that is read, of which layer that is, and where it is read from."""

FLIGHT = 7

TIME, WORK_SLOWED, READS_SLOWED, IDLE_SLOWED, BUSY = range(5)
"""Places in `dial`: seconds; factors, as in `Costs`; the share of the last while that the worker computed."""

LAZY = 0.45
"""The share of the time below which a worker computes slowly. Measured, like WHILE: docs/log.md, 2026-11-21."""

WHILE = 0.09
"""Seconds that share is of: an average whose memory fades by 1/e in so long."""

FIELDS = (
    "demanded",
    "resident",
    "in_time",
    "late",
    "missed",
    "read",
    "from_host",
    "bytes",
    "guessed",
    "dropped",
    "wasted",
    "stall",
    "predictor",
    "compute",
    "dense",
)
"""Columns of `by_layer` and `by_pass`, as `foregate.runtime.telemetry` has them, and the seconds in the dense parts."""

(
    DEMANDED,
    RESIDENT,
    IN_TIME,
    LATE,
    MISSED,
    READ,
    FROM_HOST,
    BYTES,
    GUESSED,
    DROPPED,
    WASTED,
    STALL,
    PREDICTOR,
    COMPUTE,
    DENSE,
) = range(15)

READ_EVENT, COMPUTE_EVENT, DENSE_EVENT, PREDICTOR_EVENT, STALL_EVENT = range(5)
"""Kinds of events: rows of `events` are [kind, begin, end, pass, layer, expert (-1 = several or none), ahead]."""

EPSILON = 1e-9
"""The share of a read below which it is done."""


class Clock(NamedTuple):
    """C slots, K keys, D reads at once, P passes, L layers.

    slots     [C, 6]    see KEY
    queue     [C]       the first now[QUEUE] are slots whose reads wait
    later     [C]       the first now[LATER] are slots that were PUT_OFF, and may no longer be
    flying    [D, 7]    the first now[FLYING] are reads under way, see SLOT
    pace      [2, L, D] seconds of a read by kind, layer, and how many are under way, less one
    size      [L]       bytes of an expert
    now       [12]      see QUEUE
    dial      [5]       see TIME
    by_layer  [L, 15]   see FIELDS; by the layer of the expert, or of the work
    by_pass   [P, 15]   the same, by the pass in which it was
    place     [K]       where an expert is to be in host memory, -1 = nowhere
    holds     [H]       what has been read to there
    moves     [m, 5]    transfers, as `foregate.memory.replay.transfers` gives them
    events    [n, 7]    see READ_EVENT
    """

    slots: Int64
    queue: Int32
    later: Int32
    flying: Float64
    pace: Float64
    size: Int64
    now: Int64
    dial: Float64
    by_layer: Float64
    by_pass: Float64
    place: Int32
    holds: Int32
    moves: Int32
    events: Float64


@pasted
def count(clock: Clock, layer: int, field: int, value: float) -> None:
    """So much more of a field."""
    clock.by_layer[layer, field] += value
    clock.by_pass[clock.now[PASS], field] += value


@pasted
def note(clock: Clock, kind: int, began: float, layer: int, expert: int, ahead: float) -> None:  # noqa: PLR0917
    """An event ends now, if it is wanted."""
    if clock.now[FIRST] <= clock.now[PASS] <= clock.now[LAST]:
        _write(clock.events, clock.now, clock.dial, kind, began, layer, expert, ahead)


@inner
def _write(  # noqa: PLR0917
    events: Float64, now: Int64, dial: Float64, kind: int, began: float, layer: int, expert: int, ahead: float
) -> None:
    """What does not fit is only counted."""
    if now[EVENTS] < len(events):
        at = now[EVENTS]
        events[at, 0], events[at, 1], events[at, 2], events[at, 3] = kind, began, dial[TIME], now[PASS]
        events[at, 4], events[at, 5], events[at, 6] = layer, expert, ahead
    now[EVENTS] += 1


@pasted
def ask(clock: Clock, slot: int, urgent: bool) -> None:
    """Read the slot's expert, as soon as its turn comes: `start` is to follow, once for all that are asked for."""
    now, entry = clock.now, clock.slots[slot]
    entry[STAGE], entry[URGENT], entry[NUMBER] = QUEUED, urgent, now[TICKETS]
    now[TICKETS] += 1
    clock.queue[now[QUEUE]] = slot
    now[QUEUE] += 1
    if urgent:
        now[NEAREST] = entry[LAYER]


@pasted
def start(clock: Clock) -> None:
    """What was asked for begins, where the link has room."""
    if clock.now[QUEUE] > 0 and clock.now[FLYING] < len(clock.flying):
        _begin(clock)


@pasted
def promote(clock: Clock, slot: int) -> None:
    """Somebody waits for a read that was asked for: it overtakes all guesses."""
    clock.slots[slot, URGENT] = True
    if clock.slots[slot, STAGE] == QUEUED:
        clock.now[NEAREST] = clock.slots[slot, LAYER]


@pasted
def cancel(clock: Clock, slot: int) -> bool:
    """Call a read off. False if it had started, or none was asked for."""
    if clock.slots[slot, STAGE] in (PUT_OFF, DUE):
        clock.slots[slot, STAGE] = LEAVING if clock.slots[slot, STAGE] == PUT_OFF else NOTHING
        return True
    if clock.slots[slot, STAGE] != QUEUED:
        return False
    for i in range(clock.now[QUEUE]):
        if clock.queue[i] == slot:
            _take(clock, i)
            break
    clock.slots[slot, STAGE] = NOTHING
    return True


@pasted
def work(clock: Clock, seconds: float) -> float:
    """The worker computes what takes it so long alone, and awake. Returns: how long it took."""
    drowsy = clock.dial[IDLE_SLOWED] > 1
    if drowsy:
        seconds = _drowsily(clock.dial, seconds)
    began = clock.dial[TIME]
    if clock.now[FLYING] > 0 and seconds > 0:
        _work_beside(clock, seconds)
    else:
        clock.dial[TIME] += seconds
    took = clock.dial[TIME] - began
    if drowsy:
        clock.dial[BUSY] = 1 - (1 - clock.dial[BUSY]) * math.exp(-took / WHILE)
    return took  # type: ignore[no-any-return]


@inner
def _drowsily(dial: Float64, seconds: float) -> float:
    """How long it takes a worker that may have waited much: slow until it has worked for LAZY of a while."""
    if dial[BUSY] >= LAZY:
        return seconds
    slowly = WHILE * math.log((1 - dial[BUSY]) / (1 - LAZY))
    done = slowly / dial[IDLE_SLOWED]
    return seconds * dial[IDLE_SLOWED] if seconds <= done else slowly + seconds - done  # type: ignore[no-any-return]


@melted
def _work_beside(clock: Clock, seconds: float) -> None:
    """While reads are under way."""
    left, slowed = seconds, clock.dial[WORK_SLOWED]
    while left > 0:
        soonest = _soonest(clock, clock.dial[READS_SLOWED])
        if soonest < 0:
            clock.dial[TIME] += left
            break
        if soonest >= left * slowed:
            _advance(clock, left * slowed, clock.dial[READS_SLOWED])
            break
        _advance(clock, soonest, clock.dial[READS_SLOWED])
        left -= soonest / slowed
        _finish(clock)


@melted
def wait(clock: Clock, slot: int) -> float:
    """The worker waits until the read into a slot that is under way, or was asked for, has ended. Returns: seconds."""
    began = clock.dial[TIME]
    while clock.slots[slot, STAGE] not in (THERE, NOTHING, DUE):
        _advance(clock, max(_soonest(clock, 1.0), 0.0), 1.0)
        _finish(clock)
    waited = clock.dial[TIME] - began
    if clock.dial[IDLE_SLOWED] > 1:
        clock.dial[BUSY] *= math.exp(-waited / WHILE)
    return float(waited)


@pasted
def _pace(clock: Clock, flight: int) -> float:
    """Seconds of a read under way, at the link's present load."""
    kind, layer = np.uint32(clock.flying[flight, KIND]), np.uint32(clock.flying[flight, ON])
    return clock.pace[kind, layer, np.uint32(clock.now[FLYING] - 1)]  # type: ignore[no-any-return]


@pasted
def _soonest(clock: Clock, slowed: float) -> float:
    """Seconds until the next read ends, -1 = none is under way."""
    soonest = -1.0
    for i in range(clock.now[FLYING]):
        ends = clock.flying[i, LEFT] * _pace(clock, i) * slowed
        if soonest < 0 or ends < soonest:
            soonest = ends
    return soonest


@pasted
def _advance(clock: Clock, seconds: float, slowed: float) -> None:
    """Time passes; no read ends before."""
    clock.dial[TIME] += seconds
    for i in range(clock.now[FLYING]):
        clock.flying[i, LEFT] -= seconds / (_pace(clock, i) * slowed)


@pasted
def _finish(clock: Clock) -> None:
    """Reads that have nothing left are done; others take their places."""
    flying, now, i = clock.flying, clock.now, 0
    while i < now[FLYING]:
        if flying[i, LEFT] > EPSILON:
            i += 1
            continue
        _land(clock, int(flying[i, SLOT]), int(flying[i, OF]), int(flying[i, ON]), flying[i, BEGAN], flying[i, AHEAD])
        now[FLYING] -= 1
        for column in range(FLIGHT):
            flying[i, column] = flying[now[FLYING], column]
    _start(clock)


@pasted
def _land(clock: Clock, slot: int, key: int, layer: int, began: float, ahead: float) -> None:  # noqa: PLR0917
    stage = clock.slots[slot, STAGE]
    clock.slots[slot, STAGE] = THERE if stage == READING else DUE if stage == PUT_OFF else NOTHING
    note(clock, READ_EVENT, began, layer, key - layer * (len(clock.place) // len(clock.size)), ahead)


@pasted
def _start(clock: Clock) -> None:
    """Reads begin while there is room on the link; from here on they are charged."""
    now = clock.now
    while now[QUEUE] > 0 and now[FLYING] < len(clock.flying):
        slot = _take(clock, _first(clock))
        entry = clock.slots[slot]
        layer, kind = entry[LAYER], _kind(clock, entry[KEY])
        count(clock, layer, READ, 1)
        if kind == DISK:
            count(clock, layer, BYTES, clock.size[layer])
        else:
            count(clock, layer, FROM_HOST, 1)
        began, ahead = clock.dial[TIME], 1.0 - entry[URGENT]
        entry[STAGE] = READING
        if clock.pace[kind, layer, 0] == 0:
            _land(clock, slot, entry[KEY], layer, began, ahead)
            continue
        row = clock.flying[now[FLYING]]
        row[SLOT], row[LEFT], row[BEGAN], row[AHEAD] = slot, 1.0, began, ahead
        row[OF], row[ON], row[KIND] = entry[KEY], layer, kind
        now[FLYING] += 1


@melted
def _begin(clock: Clock) -> None:
    _start(clock)


@pasted
def _kind(clock: Clock, key: int) -> int:
    """Where a key is read from as its read begins; what comes from the disk stays in its place in host memory."""
    if clock.now[SOURCE] != BEHIND_HOST:
        return HOST if clock.now[SOURCE] == ALL_IN_HOST else DISK
    place = clock.place[key]
    if place < 0:  # its place was given away before it was read
        return DISK
    if clock.holds[place] == key:
        return HOST
    clock.holds[place] = key
    return DISK


@pasted
def _first(clock: Clock) -> int:
    """The place in the queue whose turn it is."""
    now, layers = clock.now, len(clock.size)
    best, least, earliest = 0, layers + 2, np.int64(0)
    for i in range(now[QUEUE]):
        entry = clock.slots[clock.queue[i]]
        distance = entry[LAYER] - now[NEAREST]
        ahead = 0 if entry[URGENT] else 1 + (distance if distance >= 0 else distance + layers)
        if ahead < least or (ahead == least and entry[NUMBER] < earliest):
            best, least, earliest = i, ahead, entry[NUMBER]
    return best


@pasted
def _take(clock: Clock, place: int) -> int:
    """Out of the queue."""
    slot = clock.queue[place]
    clock.now[QUEUE] -= 1
    clock.queue[place] = clock.queue[clock.now[QUEUE]]
    return int(slot)
