"""A run, compiled: passes, layer by layer, in the order in which foregate/runtime calls the planner. Decides nothing.

Per pass: begin, look at the first layers; per layer: its dense part, demand (in waves), drop stale guesses, look ahead,
compute what is there while the rest arrives. Predictors that read the residual stream are asked as a layer is entered.
"""

from typing import NamedTuple

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Float64, Int32, Int64
from foregate.memory.core import asks, begin, demand, expect, speculate
from foregate.memory.predicted import Forecast
from foregate.memory.state import EXPERT, REST, SLOT, State
from foregate.simulation.clock import (
    COMPUTE,
    COMPUTE_EVENT,
    DENSE,
    DENSE_EVENT,
    LONG,
    PASS,
    PREDICTOR,
    PREDICTOR_EVENT,
    RUNNING,
    STAGE,
    STALL,
    STALL_EVENT,
    THERE,
    TIME,
    WAKING,
    Clock,
    count,
    note,
    work,
)
from foregate.simulation.contents import arrive, issue, passed, require, resume

Host = tuple[State, Forecast | None]


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


@njit(cache=True)  # type: ignore[untyped-decorator]
def run(state: State, forecast: Forecast | None, host: Host, clock: Clock, course: Course, ends: Float64) -> None:  # noqa: PLR0917
    """All passes; `ends` [P] is filled with the time at which each has ended."""
    L, E = state.chance.shape
    waves = np.empty((2, 2, E), np.int32)  # this wave's and the next one's: slots, experts
    tokens = np.zeros(E, np.int32)
    future = np.zeros(E, np.int64)
    for p in range(len(course.rows)):
        clock.now[PASS], clock.now[RUNNING] = p, -1
        begin(state, forecast, course.fresh[p])
        if not course.entered:
            _look(state, forecast, host, clock, course, -1)
        for layer in range(L):
            if course.entered:
                _look(state, forecast, host, clock, course, layer - 1)
            began = clock.dial[TIME]
            count(clock, layer, DENSE, work(clock, course.dense[layer, course.rows[p]]))
            note(clock, DENSE_EVENT, began, layer, -1, 0.0)
            first, last = course.starts[p * L + layer], course.starts[p * L + layer + 1]
            if first == last:
                continue
            for i in range(first, last):
                tokens[course.experts[i]] = course.tokens[i]
                if len(course.future) > 0:
                    future[course.experts[i]] = course.future[i]
            _layer(state, forecast, host, clock, course, layer, course.experts[first:last], waves, tokens, future)
        work(clock, course.around[course.rows[p]])
        ends[p] = clock.dial[TIME]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _layer(  # noqa: PLR0917
    state: State,
    forecast: Forecast | None,
    host: Host,
    clock: Clock,
    course: Course,
    layer: int,
    wanted: Int32,
    waves: Int32,
    tokens: Int32,
    future: Int64,
) -> None:
    """One mixture layer's turn, as `foregate.runtime.runner.Runner.run` takes it."""
    clock.now[RUNNING] = layer
    served = _demand(state, forecast, host, clock, course, layer, wanted, waves[0], future)
    passed(clock, layer)
    rest, which = len(wanted) - served, 0
    if rest == 0 and not course.entered:
        _look(state, forecast, host, clock, course, layer)
    while rest > 0:
        left = state.desk[REST, :rest].copy()
        later = _demand(state, forecast, host, clock, course, layer, left, waves[1 - which], future)
        rest -= later
        if rest == 0 and not course.entered:
            _look(state, forecast, host, clock, course, layer)
        _compute(clock, host, layer, waves[which], served, tokens, course.expert)
        which, served = 1 - which, later
    _compute(clock, host, layer, waves[which], served, tokens, course.expert)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _demand(  # noqa: PLR0917
    state: State,
    forecast: Forecast | None,
    host: Host,
    clock: Clock,
    course: Course,
    layer: int,
    wanted: Int32,
    wave: Int32,
    future: Int64,
) -> int:
    """Returns: how many are in the wave; the rest is on the desk."""
    if len(course.future) > 0:
        uses = np.empty(len(wanted), np.int64)
        for i in range(len(wanted)):
            uses[i] = future[wanted[i]]
    else:
        uses = course.future
    served, reads = demand(state, forecast, layer, wanted, uses)
    for i in range(served):
        wave[0, i], wave[1, i] = state.desk[SLOT, i], state.desk[EXPERT, i]
    issue(clock, host, state, reads, layer, False)
    require(clock, host, state, served, layer)
    return served


@njit(cache=True)  # type: ignore[untyped-decorator]
def _look(state: State, forecast: Forecast | None, host: Host, clock: Clock, course: Course, layer: int) -> None:  # noqa: PLR0917
    """Ask about the layers that follow, then read ahead for them, the nearest first."""
    p, L = clock.now[PASS], len(state.known)
    last = min(layer + course.chance.shape[2], L - 1)
    if last <= layer or not asks(state):
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


@njit(cache=True)  # type: ignore[untyped-decorator]
def _compute(  # noqa: PLR0917
    clock: Clock, host: Host, layer: int, wave: Int32, served: int, tokens: Int32, expert: Float64
) -> None:
    """Each expert of a wave, those that are there first."""
    waiting = served
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
            seconds += clock.dial[WAKING] if waited >= LONG else 0.0
            count(clock, layer, STALL, waited)
            note(clock, STALL_EVENT, began, layer, only, 0.0)
            kept = waiting - 1
            for i in range(kept):
                wave[0, i], wave[1, i] = wave[0, i + 1], wave[1, i + 1]
        began = clock.dial[TIME]
        count(clock, layer, COMPUTE, work(clock, seconds))
        note(clock, COMPUTE_EVENT, began, layer, only, 0.0)
        waiting = kept
