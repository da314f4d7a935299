"""What `fusion` reads, from a query or from a whole trace: sets as rows of a table, and plain numbers. Nothing is
learned here.

A target's table has a row for every expert of every layer before it, one for every expert of the target (of the
previous token), and one for every distance. The numbers are the mean of the latest sets at the target, and bank's vote,
plain and as a logarithm.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float, Float32, Int, Int64
from foregate.history import Query, Replay
from foregate.predictors.counting import one_hot
from foregate.predictors.memory.bank import Bank
from foregate.predictors.memory.likeness import gates
from foregate.spec import MoESpec
from foregate.traces.schema import Trace

FLOOR = 1e-3  # added to bank's vote before its logarithm


@dataclass(frozen=True)
class Inputs:
    """Where what stands."""

    layers: int
    experts: int
    top_k: int
    horizon: int

    @classmethod
    def of(cls, spec: MoESpec, horizon: int) -> "Inputs":
        """The inputs of a model."""
        return cls(spec.num_layers, spec.num_experts, spec.top_k, horizon)

    def rows(self, target: int) -> int:
        """Of a target's table."""
        return (target + 1) * self.experts + self.horizon

    @property
    def columns(self) -> int:
        """Of the numbers."""
        return 3 * self.experts

    @property
    def log_vote(self) -> slice:
        """The numbers that are bank's log vote."""
        return slice(2 * self.experts, 3 * self.experts)


@dataclass(frozen=True, eq=False)
class Asked:
    """Rows of one target, with the tokens before them: rows first[n]..end[n] of the past.

    routed [N, layer + 1, k], weights the same or none at all; past, past_weights [P, L, k]; first, end [N]
    """

    target: int
    distance: int
    routed: Int
    weights: Float32
    past: Int
    past_weights: Float32
    first: Int64
    end: Int64

    @classmethod
    def of(cls, query: Query) -> "Asked":
        """A query's rows."""
        weights, past = gates(query.weights), query.past
        first = np.zeros(query.rows, dtype=np.int64)
        return cls(
            query.target, query.distance, query.routed, weights, past.experts, gates(past.weights), first, query.seen
        )

    def sets(self, inputs: Inputs) -> tuple[Int64, Float32]:
        """[N, I] rows of the target's table, -1 = nothing, and what each is worth: an expert's weight in multiples of
        its set's mean.
        """
        N, known, k = self.routed.shape
        rows = np.full((N, (known + 1) * k + 1), -1, dtype=np.int64)
        worth = np.ones(rows.shape, dtype=np.float32)
        past = (self.past, self.past_weights, self.first, self.end)
        _sets((self.routed, self.weights), past, (self.target, inputs.experts), rows, worth)
        rows[:, -1] = (self.target + 1) * inputs.experts + self.distance - 1
        return rows, worth

    def numbers(self, inputs: Inputs, vote: Float, window: int) -> Float32:
        """[N, columns], given bank's vote [N, E]."""
        E = inputs.experts
        found = np.zeros((len(self.end), inputs.columns), dtype=np.float32)
        _means(self.past, (self.first, self.end), (self.target, window), found)
        found[:, : 2 * E] *= inputs.top_k
        found[:, E : 2 * E] = vote.astype(np.float32) * inputs.top_k
        found[:, inputs.log_vote] = np.log(vote.astype(np.float32) + FLOOR)
        return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sets(
    own: tuple[Int, Float32],
    earlier: tuple[Int, Float32, Int64, Int64],
    asked: tuple[int, int],
    rows: Int64,
    worth: Float32,
) -> None:
    routed, weights = own
    past, past_weights, first, end = earlier
    target, E = asked
    known, k = routed.shape[1], past.shape[2]
    for n in range(len(end)):
        for layer in range(known):
            for slot in range(k):
                if routed[n, layer, slot] >= 0:
                    rows[n, layer * k + slot] = layer * E + routed[n, layer, slot]
                    if len(weights):
                        worth[n, layer * k + slot] = k * weights[n, layer, slot]
        if end[n] > first[n]:
            for slot in range(k):
                if past[end[n] - 1, target, slot] >= 0:
                    rows[n, known * k + slot] = target * E + past[end[n] - 1, target, slot]
                    if len(past_weights):
                        worth[n, known * k + slot] = k * past_weights[end[n] - 1, target, slot]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _means(past: Int, span: tuple[Int64, Int64], asked: tuple[int, int], into: Float32) -> None:
    """Add to into [N, E..] the share of the set's places that each expert had in the latest `window` tokens."""
    first, end = span
    target, window = asked
    for n in range(len(end)):
        start = max(first[n], end[n] - window)
        for p in range(start, end[n]):
            for slot in range(past.shape[2]):
                if past[p, target, slot] >= 0:
                    into[n, past[p, target, slot]] += np.float32(1 / ((end[n] - start) * past.shape[2]))


@dataclass(frozen=True, eq=False)
class Examples:
    """Queries of a trace with their answers, and bank's vote on each: one layer ahead, and if the horizon is larger,
    each prompt once more for each target from a distance of its own.

    near, far  [L, T, E] float16 votes; far is None where the horizon is 1
    ahead      [prompts, L] the distance of `far`, 0 = there is none
    rows       [T] which tokens are meant
    start      [T] the first row of each one's sequence
    """

    trace: Trace
    inputs: Inputs
    window: int
    near: Float
    far: Float | None
    ahead: Int64
    rows: Bool
    start: Int64

    @classmethod
    def of(cls, trace: Trace, inputs: Inputs, bank: Bank, *, seed: int, inside: bool = False) -> "Examples":
        """All queries of a trace, replayed as decoding. inside: bank was fitted on this trace, so a prompt's own rows
        have no vote on it. Cells that a split masked are not read.
        """
        experts = np.stack([trace.answers_at(layer) for layer in range(inputs.layers)], axis=1)
        trace = replace(trace, experts=experts)
        rng = np.random.default_rng(seed)
        L, E = inputs.layers, inputs.experts
        ahead = np.zeros((len(trace.prompts), L), dtype=np.int64)
        for target in range(1, L if inputs.horizon > 1 else 0):
            ahead[:, target] = rng.integers(2, min(inputs.horizon, target + 1) + 1, len(trace.prompts))
        near = np.zeros((L, len(trace), E), dtype=np.float16)
        far = np.zeros_like(near) if inputs.horizon > 1 else None
        for prompt, rows in enumerate(trace.sequences()):
            replay = Replay(trace.take(rows), as_decode=True)
            without = range(rows.start, rows.stop) if inside else range(0)
            for target in range(L):
                near[target, rows] = bank.recall(replay.query(target - 1, target), without)
                distance = int(ahead[prompt, target])
                if far is not None and distance:
                    far[target, rows] = bank.recall(replay.query(target - distance, target), without)
        start = np.concatenate([np.full(rows.stop - rows.start, rows.start) for rows in trace.sequences()])
        return cls(trace, inputs, bank.window, near, far, ahead, np.ones(len(trace), dtype=np.bool_), start)

    def only(self, rows: Bool) -> "Examples":
        """Those of some tokens."""
        return replace(self, rows=self.rows & rows)

    def lessons(self, size: int, seed: int) -> list[tuple[int, int, Int64]]:
        """All questions once, in random order, as (target, distance, up to about `size` token rows)."""
        rng = np.random.default_rng(seed)
        found: list[tuple[int, int, Int64]] = []
        for target in range(self.inputs.layers):
            usable = self.rows & (self.trace.answers_at(target) >= 0).any(axis=1)
            for distance, rows in self._apart(target):
                chosen = rng.permutation(rows[usable[rows]])
                if len(chosen):
                    parts = np.array_split(chosen, max(1, round(len(chosen) / size)))
                    found += [(target, distance, np.sort(part)) for part in parts]
        return [found[i] for i in rng.permutation(len(found))]

    def lesson(self, target: int, distance: int, rows: Int64) -> tuple[Float32, Float32, Int64, Float32]:
        """[N, rows of its table] what each row is worth, [N, columns] numbers, [N] token ids, [N, E] the routed
        set that may be learned.
        """
        trace, known = self.trace, target - distance + 1
        weights = gates(trace.weights)
        asked = Asked(
            target,
            distance,
            trace.experts[rows, :known],
            weights[rows, :known] if len(weights) else weights,
            trace.experts,
            weights,
            self.start[rows],
            rows,
        )
        places, worth = asked.sets(self.inputs)
        table = np.zeros((len(rows), self.inputs.rows(target) + 1), dtype=np.float32)
        np.put_along_axis(table, places, worth, axis=1)  # -1 falls into a column of its own
        votes = self.near if distance == 1 or self.far is None else self.far
        found = asked.numbers(self.inputs, votes[target, rows], self.window)
        answers = one_hot(trace.answers_at(target)[rows], self.inputs.experts)
        return table[:, :-1], found, trace.token_id[rows].astype(np.int64), answers

    def _apart(self, target: int) -> Iterator[tuple[int, Int64]]:
        """Distances, and the token rows that are asked from there."""
        yield 1, np.arange(len(self.trace))
        for distance in range(2, self.inputs.horizon + 1):
            yield distance, np.flatnonzero(self.ahead[self.trace.sequence, target] == distance)
