"""What each slot holds, compiled: transfers become reads, late guesses are waited for, stale ones dropped. Decides
nothing.

It does what `foregate.runtime.fetch.Fetch` does, with the clock's link in place of a reader. The two have to stay the
same; tests compare them.
"""

from foregate.arrays import Int32, Int64
from foregate.memory.compiled import inner, melted, pasted
from foregate.memory.core import begin, demand
from foregate.memory.predicted import Forecast
from foregate.memory.state import EVICTED, HIT, KEY_IN, SLOT, SLOT_IN, State
from foregate.simulation.clock import (
    DEMANDED,
    DROPPED,
    DUE,
    GUESS,
    GUESSED,
    IN_TIME,
    KEY,
    LATE,
    LATER,
    LAYER,
    LEAVING,
    MISSED,
    MOVES,
    NOTHING,
    PASS,
    PUT_OFF,
    QUEUE,
    READING,
    RESIDENT,
    RUNNING,
    STAGE,
    THERE,
    TIME,
    URGENT,
    WASTED,
    Clock,
    ask,
    cancel,
    count,
    promote,
    start,
    wait,
)

Host = tuple[State, Forecast | None]


@pasted
def issue(clock: Clock, host: Host | None, state: State, reads: int, layer: int, ahead: bool) -> None:  # noqa: PLR0917
    """Start the reads on the planner's desk; those into a slot that is still written to start once it is not.

    host   the planner of the host's memory, if it has one between disk and device
    layer  whose experts they are, read `ahead` or on demand
    """
    _note_moves(clock, state, reads, ahead)
    resume(clock, host)
    desk, slots = state.desk, clock.slots
    for r in range(reads):
        slot = desk[SLOT_IN, r]
        _forget(clock, slot)
        slots[slot, KEY], slots[slot, LAYER] = desk[KEY_IN, r], layer
        _submit(clock, host, slot, not ahead)
    start(clock)
    if ahead:
        for r in range(reads):
            slots[desk[SLOT_IN, r], GUESS] = True
        count(clock, layer, GUESSED, reads)


@pasted
def require(clock: Clock, host: Host | None, state: State, served: int, layer: int) -> None:
    """The running layer needs what the planner's desk says was served: it is counted, and urgent where not there."""
    desk, slots = state.desk, clock.slots
    resident, in_time, late = 0, 0, 0
    for i in range(served):
        slot, known = desk[SLOT, i], desk[HIT, i] > 0
        there = slots[slot, STAGE] == THERE
        if slots[slot, GUESS]:
            slots[slot, GUESS] = False
            in_time, late = in_time + there, late + (not there)
        elif known:
            resident, late = resident + there, late + (not there)
        if slots[slot, STAGE] in (NOTHING, LEAVING, PUT_OFF, DUE):
            _submit(clock, host, slot, True)
        elif not there and known:
            promote(clock, slot)
    start(clock)
    count(clock, layer, DEMANDED, served)
    count(clock, layer, RESIDENT, resident)
    count(clock, layer, IN_TIME, in_time)
    count(clock, layer, LATE, late)
    count(clock, layer, MISSED, served - resident - in_time - late)


@pasted
def passed(clock: Clock, layer: int) -> None:
    """Guesses for this layer that were not demanded are stale: those that never started are dropped."""
    i = 0
    while i < clock.now[QUEUE]:
        i += not (_guessed(clock, clock.queue[i], layer) and _drop(clock, clock.queue[i], layer))
    for j in range(clock.now[LATER]):
        if _guessed(clock, clock.later[j], layer):
            _drop(clock, clock.later[j], layer)


@pasted
def resume(clock: Clock, host: Host | None) -> None:
    """Reads that were put off start where nothing is written any more."""
    if clock.now[LATER] > 0:
        _resume(clock, host)


@melted
def _resume(clock: Clock, host: Host | None) -> None:
    kept = 0
    for i in range(clock.now[LATER]):
        slot = clock.later[i]
        if clock.slots[slot, STAGE] == DUE:
            _submit(clock, host, slot, clock.slots[slot, URGENT] > 0)
        elif clock.slots[slot, STAGE] == PUT_OFF:
            clock.later[kept] = slot
            kept += 1
    clock.now[LATER] = kept
    start(clock)


@pasted
def arrive(clock: Clock, host: Host | None, slot: int) -> float:
    """The worker waits until the bytes of the slot's expert are there. Returns: seconds."""
    began = clock.dial[TIME]
    if clock.slots[slot, STAGE] in (NOTHING, LEAVING, PUT_OFF, DUE):
        _ask_again(clock, host, slot)
    promote(clock, slot)
    wait(clock, slot)
    return float(clock.dial[TIME] - began)


@melted
def _ask_again(clock: Clock, host: Host | None, slot: int) -> None:
    """What was called off is needed after all."""
    wait(clock, slot)
    _submit(clock, host, slot, True)
    start(clock)


@pasted
def _guessed(clock: Clock, slot: int, layer: int) -> bool:
    """Whether the slot's is a guess for the layer."""
    return clock.slots[slot, GUESS] > 0 and clock.slots[slot, LAYER] == layer  # type: ignore[no-any-return]


@melted
def _drop(clock: Clock, slot: int, layer: int) -> bool:
    """Whether a guess had not started, and now never will."""
    if not cancel(clock, slot):
        return False
    clock.slots[slot, GUESS] = False
    count(clock, layer, DROPPED, 1)
    return True


@pasted
def _forget(clock: Clock, slot: int) -> None:
    """The slot's expert is evicted: its read is called off where that is still possible."""
    entry = clock.slots[slot]
    stage = entry[STAGE]
    if not cancel(clock, slot) and stage in (READING, THERE):
        entry[STAGE] = LEAVING if stage == READING else NOTHING
    if entry[GUESS]:
        entry[GUESS] = False
        count(clock, entry[LAYER], WASTED if stage in (READING, THERE) else DROPPED, 1)


@pasted
def _submit(clock: Clock, host: Host | None, slot: int, urgent: bool) -> None:
    """Ask for the slot's expert, now or once nothing is written there; `start` is to follow."""
    if clock.slots[slot, STAGE] in (LEAVING, PUT_OFF):
        clock.slots[slot, STAGE], clock.slots[slot, URGENT] = PUT_OFF, urgent
        _put_off(clock.later, clock.now, slot)
    else:
        if host is not None:
            _place(clock, host, slot)
        ask(clock, slot, urgent)
        if host is not None:  # the next one may take its place in host memory
            start(clock)


@inner
def _place(clock: Clock, host: Host, slot: int) -> None:
    """The slot's expert gets a place in host memory, if it has none."""
    planner, forecast = host
    layer = int(clock.slots[slot, LAYER])
    planner.promised[0] = clock.slots[slot, KEY] - layer * planner.chance.shape[1]  # nothing is promised there
    begin(planner, forecast, False)
    demand(planner, forecast, layer, planner.promised[:1], planner.lock[:0])


@inner
def _put_off(later: Int32, now: Int64, slot: int) -> None:
    for i in range(now[LATER]):
        if later[i] == slot:
            return
    later[now[LATER]] = slot
    now[LATER] += 1


@pasted
def _note_moves(clock: Clock, state: State, reads: int, ahead: bool) -> None:
    """Rows: pass * layers + running layer (the first before it runs, too), key, slot, evicted, ahead."""
    now, desk = clock.now, state.desk
    for r in range(reads):
        if now[MOVES] < len(clock.moves):
            row = clock.moves[now[MOVES]]
            row[0] = now[PASS] * len(clock.size) + max(now[RUNNING], 0)
            row[1], row[2], row[3], row[4] = desk[KEY_IN, r], desk[SLOT_IN, r], desk[EVICTED, r], ahead
        now[MOVES] += 1
