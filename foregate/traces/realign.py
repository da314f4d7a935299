"""Putting records back on their tokens, where a recorder dropped some and numbered the rest afterwards. An estimate.

A layer that lacks g of its prompt's T tokens holds its records in order, from position 0 on, and g holes at the end.
Where the holes belong is not written anywhere; but layers of one token go together. For each short layer, dynamic
programming chooses the places of its holes such that its records agree most with the layers around it of the tokens
they land on. Agreement is the log-odds of two experts in two layers on one token, counted on the other prompts only.

Nothing is invented or dropped: the same records, some of them some tokens later.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit

from foregate.arrays import Float64, Int, Int64
from foregate.cooccurrence import count_pairs
from foregate.errors import TraceError
from foregate.traces.schema import Trace

REACH = 8  # layers on either side that have a say
FADE = 0.8  # how much less a layer says than one a layer nearer
SHRINK = 200.0  # pseudo-tokens of independent layers, so that rare pairs do not shout
PASSES = 4  # short layers lean on each other, so they are placed again until none moves


@dataclass(frozen=True)
class Realignment:
    """What was done.

    trace  the result, with a note
    moved  cells that now sit on another token
    cells  cells that hold a record at all
    short  (prompt, layer) pairs that lacked records at their end, and were placed
    """

    trace: Trace
    moved: int
    cells: int
    short: int


@dataclass(frozen=True)
class Short:
    """A layer of one prompt (rows start..stop) whose records fill the first of its rows and not the last."""

    start: int
    stop: int
    layer: int
    records: int


def realign(trace: Trace, advance: Callable[[float], None] = lambda share: None) -> Realignment:
    """Place the holes of every short layer. `advance` is told each share of the work that is done.

    Raises: TraceError if no layer is short, or there are no other prompts to learn from.
    """
    short = short_layers(trace)
    if not short:
        raise TraceError("no layer of this trace lacks records at its end; there is nothing to realign")
    if len(trace.prompts) < 2:
        raise TraceError("realignment learns from the other prompts, and this trace has only one; join it with more")
    experts = trace.experts.copy()
    places = {at: np.arange(at.records) for at in short}
    for _ in range(PASSES):
        before = dict(places)
        for at in short:
            places[at] = _place(trace, experts, at)
            _fill(experts, trace.experts, at, places[at], -1)
            advance(1 / PASSES / len(short))
        if all(np.array_equal(before[at], places[at]) for at in short):
            break
    moved = sum(int((place != np.arange(len(place))).sum()) for place in places.values())
    cells = int((trace.experts[:, :, 0] >= 0).sum())
    return Realignment(_noted(_moved(trace, places), moved, cells, len(short)), moved, cells, len(short))


def short_layers(trace: Trace) -> list[Short]:
    """All of them, in the trace's order."""
    found = []
    for rows in trace.sequences():
        there = trace.experts[rows, :, 0] >= 0  # [t, L]
        count = there.sum(axis=0)
        gapless = (there == (np.arange(len(there))[:, None] < count)).all(axis=0)
        layers = np.flatnonzero(gapless & (count < len(there)) & (count > 0)).tolist()
        found += [Short(rows.start, rows.stop, layer, int(count[layer])) for layer in layers]
    return found


def _place(trace: Trace, experts: Int, at: Short) -> Int64:
    """[n] the row within its prompt that each record belongs to, given where all other layers are now."""
    near = np.array([m for m in range(trace.spec.num_layers) if 0 < abs(m - at.layer) <= REACH])
    others = np.ones(len(trace), dtype=np.bool_)
    others[at.start : at.stop] = False
    odds = _odds(experts[others], at.layer, near, trace.spec.num_experts)
    odds *= FADE ** (np.abs(near - at.layer) - 1)[:, None, None]
    beside = np.ascontiguousarray(experts[at.start : at.stop, near].swapaxes(0, 1))
    records = np.ascontiguousarray(trace.experts[at.start : at.start + at.records, at.layer])
    shifts: Int64 = _best_shifts(_agreement(records, beside, odds, at.stop - at.start - at.records))
    return np.arange(at.records) + shifts


def _odds(experts: Int, layer: int, near: Int64, num_experts: int) -> Float64:
    """[P, E, E] log-odds of expert a in `layer` and b in each near layer on one token, against chance."""
    later = np.ascontiguousarray(experts[:, near].swapaxes(0, 1))
    earlier = np.ascontiguousarray(np.broadcast_to(experts[:, layer], later.shape))
    counts = count_pairs(earlier, later, num_experts).astype(np.float64)
    total = counts.sum(axis=(1, 2), keepdims=True)
    rows = (counts.sum(axis=2, keepdims=True) + 1) / (total + num_experts)
    columns = (counts.sum(axis=1, keepdims=True) + 1) / (total + num_experts)
    odds: Float64 = np.log((counts + SHRINK * rows * columns) / ((total + SHRINK) * rows * columns))
    return odds


@njit(cache=True)  # type: ignore[untyped-decorator]
def _agreement(records: Int, beside: Int, odds: Float64, gaps: int) -> Float64:
    """[n, gaps + 1] how well record j agrees with the token j + s. records [n, k], beside [P, T, k], odds [P, E, E]."""
    n, k = records.shape
    scores = np.zeros((n, gaps + 1))
    for j in range(n):
        for s in range(gaps + 1):
            for p in range(len(beside)):
                for a in range(k):
                    for b in range(k):
                        if records[j, a] >= 0 and beside[p, j + s, b] >= 0:
                            scores[j, s] += odds[p, records[j, a], beside[p, j + s, b]]
    return scores


@njit(cache=True)  # type: ignore[untyped-decorator]
def _best_shifts(scores: Float64) -> Int64:
    """[n] shifts that never decrease and sum to the highest score [n, g + 1]; of equals, the smallest."""
    n, width = scores.shape
    came = np.zeros((n, width), dtype=np.int64)
    best = scores[0].copy()
    for j in range(1, n):
        lead = 0
        now = np.empty(width)
        for s in range(width):
            if best[s] > best[lead]:
                lead = s
            came[j, s] = lead
            now[s] = best[lead] + scores[j, s]
        best = now
    shifts = np.empty(n, dtype=np.int64)
    shifts[n - 1] = best.argmax()
    for j in range(n - 1, 0, -1):
        shifts[j - 1] = came[j, shifts[j]]
    return shifts


def _fill(into: Any, source: Any, at: Short, places: Int64, absent: int) -> None:
    """Write a layer's records, as `source` has them, to their places; all else of it becomes absent."""
    into[at.start : at.stop, at.layer] = absent
    into[at.start + places, at.layer] = source[at.start : at.start + at.records, at.layer]


def _moved(trace: Trace, places: dict[Short, Int64]) -> Trace:
    """Everything that belongs to a record goes with it."""
    arrays: dict[str, Any] = {name: getattr(trace, name) for name in ("experts", "weights", "hidden", "residual")}
    copies = {name: array.copy() for name, array in arrays.items() if array is not None}
    for at, place in places.items():
        for name, copy in copies.items():
            _fill(copy, arrays[name], at, place, -1 if name == "experts" else 0)
    return replace(trace, **copies)


def _noted(trace: Trace, moved: int, cells: int, short: int) -> Trace:
    note = (
        f"realigned: {moved:,} of {cells:,} cells moved to a later token of their layer ({short} short layers; holes "
        "placed by dynamic programming on agreement with the other layers, learned from the other prompts only); an "
        "estimate, not what was recorded"
    )
    return replace(trace, provenance=trace.provenance.note(note))
