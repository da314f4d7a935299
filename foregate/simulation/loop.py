"""A run, compiled: passes, layer by layer, in the order in which foregate/runtime calls the planner. Decides nothing.

Per pass: begin, look at the first layers; per layer: its dense part, demand (in waves), drop stale guesses, look ahead,
compute what is there while the rest arrives. Predictors that read the residual stream are asked as a layer is entered.
"""

from typing import NamedTuple

from foregate.arrays import Bool, Float32, Float64, Int32, Int64
from foregate.memory import core
from foregate.memory.compiled import entry, paste, pasted
from foregate.memory.predicted import Forecast
from foregate.memory.state import EXPERT, REST, SLOT, State
from foregate.simulation.clock import (
    COMPUTE,
    COMPUTE_EVENT,
    DENSE,
    DENSE_EVENT,
    PASS,
    PREDICTOR,
    PREDICTOR_EVENT,
    RUNNING,
    STAGE,
    STALL,
    STALL_EVENT,
    THERE,
    TIME,
    Clock,
    count,
    note,
    work,
)
from foregate.simulation.contents import Host, arrive, issue, passed, require, resume


class Course(NamedTuple):
    """What is run, and what it costs.

    starts .. fresh   see `foregate.simulation.passes.Passes`
    future    [n]           when each demanded expert is used next; empty = nobody knows
    chance    [P, L, H, E]  what is said of layer l from h + 1 layers before; H = 0: nobody is asked
    entered                 predictors are asked as a layer is entered
    expert    [L, M + 1]    seconds to compute an expert, by tokens
    dense     [L, R + 1]    of the rest of a layer, by tokens of the pass
    around    [R + 1]       of a pass beside its layers
    look      [R + 1]       of an answer about one layer
    waves     [2, 2, E]     room: this wave's and the next one's slots and experts
    rest      [E]           room: who is left for the next wave
    many      [E]           room: `tokens` by expert
    uses      [E]           room: `future` by expert
    asked     [E]           room: the same of who is demanded
    """

    starts: Int64
    experts: Int32
    tokens: Int32
    rows: Int32
    fresh: Bool
    future: Int64
    chance: Float32
    entered: bool
    expert: Float64
    dense: Float64
    around: Float64
    look: Float64
    waves: Int32
    rest: Int32
    many: Int32
    uses: Int64
    asked: Int64


# Taken in whole: nearly all arrays are theirs.
begin, demand, expect, speculate = paste(core.begin), paste(core.demand), paste(core.expect), paste(core.speculate)


@entry
def run(  # noqa: PLR0917
    state: State, forecast: Forecast | None, host: Host | None, clock: Clock, course: Course, ends: Float64
) -> None:
    """All passes; `ends` [P] is filled with the time at which each has ended."""
    L = len(state.known)
    for p in range(len(course.rows)):
        clock.now[PASS], clock.now[RUNNING] = p, -1
        begin(state, forecast, course.fresh[p])
        for layer in range(-1, L):  # before the first layer there is only something to look at
            first, last = 0, 0
            if layer >= 0:
                began = clock.dial[TIME]
                count(clock, layer, DENSE, work(clock, course.dense[layer, course.rows[p]]))
                note(clock, DENSE_EVENT, began, layer, -1, 0.0)
                first, last = course.starts[p * L + layer], course.starts[p * L + layer + 1]
            _layer(state, forecast, host, clock, course, layer, first, last)
        work(clock, course.around[course.rows[p]])
        ends[p] = clock.dial[TIME]


@pasted
def _layer(  # noqa: PLR0917
    state: State,
    forecast: Forecast | None,
    host: Host | None,
    clock: Clock,
    course: Course,
    layer: int,
    first: int,
    last: int,
) -> None:
    """One mixture layer's turn, as `foregate.runtime.runner.Runner.run` takes it, and what is asked before the next.

    A wave is computed while the next one is read. Whoever reads the residual stream is asked after that, others before.
    """
    if last > first:
        clock.now[RUNNING] = layer
        _carry(course, first, last)
    rest, served, which = last - first, 0, 0
    wanted = course.experts[first:last]
    asking = course.entered or layer < 0 or rest > 0
    while asking or rest > 0 or served > 0:
        later = 0
        if rest > 0:
            later = _demand(state, forecast, host, clock, course, layer, wanted, course.waves[1 - which])
            if served == 0:
                passed(clock, layer)
            rest -= later
            for i in range(rest):
                course.rest[i] = state.desk[REST, i]
            wanted = course.rest[:rest]
        for step in range(2):
            if course.entered == (step == 0):
                _compute(clock, host, course, layer, course.waves[which], served)
            elif asking and rest == 0 and (later == 0 or not course.entered):
                _look(state, forecast, host, clock, course, layer)
                asking = False
        which, served = 1 - which, later


@pasted
def _carry(course: Course, first: int, last: int) -> None:
    """What is known of each demanded expert, by its id."""
    for i in range(first, last):
        course.many[course.experts[i]] = course.tokens[i]
    if len(course.future) > 0:
        for i in range(first, last):
            course.uses[course.experts[i]] = course.future[i]


@pasted
def _demand(  # noqa: PLR0917
    state: State,
    forecast: Forecast | None,
    host: Host | None,
    clock: Clock,
    course: Course,
    layer: int,
    wanted: Int32,
    wave: Int32,
) -> int:
    """Returns: how many are in the wave; the rest is on the desk."""
    known = len(wanted) if len(course.future) > 0 else 0
    for i in range(known):
        course.asked[i] = course.uses[wanted[i]]
    served, reads = demand(state, forecast, layer, wanted, course.asked[:known])
    for i in range(served):
        wave[0, i], wave[1, i] = state.desk[SLOT, i], state.desk[EXPERT, i]
    issue(clock, host, state, reads, layer, False)
    require(clock, host, state, served, layer)
    return served


@pasted
def _look(state: State, forecast: Forecast | None, host: Host | None, clock: Clock, course: Course, layer: int) -> None:  # noqa: PLR0917
    """Ask about the layers that follow, then read ahead for them, the nearest first."""
    p, L = clock.now[PASS], len(state.known)
    last = min(layer + course.chance.shape[2], L - 1)
    if last <= layer or not core.asks(state):
        return
    began = clock.dial[TIME]
    count(clock, max(layer, 0), PREDICTOR, work(clock, course.look[course.rows[p]] * (last - layer)))
    note(clock, PREDICTOR_EVENT, began, layer, -1, 0.0)
    for target in range(layer + 1, last + 1):
        expect(state, forecast, target, course.chance[p, target, target - layer - 1])
    for target in range(layer + 1, last + 1):
        reads = speculate(state, forecast, target)
        if reads > 0:
            issue(clock, host, state, reads, target, True)


@pasted
def _compute(clock: Clock, host: Host | None, course: Course, layer: int, wave: Int32, served: int) -> None:  # noqa: PLR0917
    """Each expert of a wave, those that are there first."""
    waiting, tokens, expert = served, course.many, course.expert
    while waiting > 0:
        resume(clock, host)
        ready, seconds, kept = 0, 0.0, 0
        for i in range(waiting):
            if clock.slots[wave[0, i], STAGE] == THERE:
                seconds += expert[layer, tokens[wave[1, i]]]
                ready += 1
            else:
                wave[0, kept], wave[1, kept] = wave[0, i], wave[1, i]
                kept += 1
        only = -1
        if ready == 0:
            only, seconds = wave[1, 0], expert[layer, tokens[wave[1, 0]]]
            began = clock.dial[TIME]
            waited = arrive(clock, host, wave[0, 0])
            count(clock, layer, STALL, waited)
            note(clock, STALL_EVENT, began, layer, only, 0.0)
            kept = waiting - 1
            for i in range(kept):
                wave[0, i], wave[1, i] = wave[0, i + 1], wave[1, i + 1]
        began = clock.dial[TIME]
        count(clock, layer, COMPUTE, work(clock, seconds))
        note(clock, COMPUTE_EVENT, began, layer, only, 0.0)
        waiting = kept
