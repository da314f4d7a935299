"""What `fusion` reads, from a query or from a whole trace: routed sets as rows of tables, and plain numbers. Nothing is
learned here.

A token's own sets, and those of the token before, are rows of tables with a row for every expert of every layer, which
all targets share. A target's own table has a row for every expert of the layer before it (once that is routed), one for
every expert of its own (what the token before was routed to there), and one for every distance. The numbers are the
mean of the latest sets at the target, and bank's vote, plain and as a logarithm.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

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
TOKENS = 2  # the token itself and the one before
ALL = slice(None)


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

    @property
    def shared(self) -> int:
        """Rows of the tables that targets share."""
        return self.layers * self.experts

    @property
    def own(self) -> int:
        """Rows of a target's own table."""
        return 2 * self.experts + self.horizon

    @property
    def columns(self) -> int:
        """Of the numbers."""
        return 3 * self.experts

    @property
    def log_vote(self) -> slice:
        """The numbers that are bank's log vote."""
        return slice(2 * self.experts, 3 * self.experts)


class Rows(NamedTuple):
    """Rows of a table for N tokens: place [N, I], -1 = nothing; and what each is worth [N, I], an expert's weight in
    multiples of its set's mean.
    """

    place: Int64
    worth: Float32

    @classmethod
    def of(cls, experts: Int, weights: Float32, which: Int64, num_experts: int) -> "Rows":
        """Of sets [P, l, k], weights the same or none at all; which [N] of them are meant, -1 = none."""
        size = experts.shape[1] * experts.shape[2]
        place = np.full((len(which), size), -1, dtype=np.int64)
        worth = np.ones(place.shape, dtype=np.float32)
        _fill((experts, weights), which, num_experts, place, worth)
        return cls(place, worth)

    def at(self, target: int, distance: int, before: "Rows", inputs: Inputs) -> "Rows":
        """What of a token's sets [N, l * k] and of those of the token before [N, L * k] is in the target's own table:
        [N, 2k + 1], the layer before the target, if it is one layer ahead; what the token before had there; distance.
        """
        E, k = inputs.experts, inputs.top_k
        place = np.full((len(self.place), 2 * k + 1), -1, dtype=np.int64)
        worth = np.ones(place.shape, dtype=np.float32)
        if distance == 1 and target:
            last = slice((target - 1) * k, target * k)
            place[:, :k] = np.maximum(self.place[:, last] - (target - 1) * E, -1)
            worth[:, :k] = self.worth[:, last]
        there = slice(target * k, (target + 1) * k)
        known = before.place[:, there]
        place[:, k : 2 * k] = np.where(known < 0, -1, known - (target - 1) * E)
        worth[:, k : 2 * k] = before.worth[:, there]
        place[:, 2 * k] = 2 * E + distance - 1
        return Rows(place, worth)

    def of_tokens(self, which: Int64) -> "Rows":
        """Those of some tokens."""
        return Rows(self.place[which], self.worth[which])


class Question(NamedTuple):
    """What one target is asked, from one distance, about M of a lesson's tokens (`which`): the inputs that are its own,
    and the routed sets [M, E] that may be learned.
    """

    target: int
    distance: int
    which: Int64
    numbers: Float32
    own: Rows
    answers: Float32


class Lesson(NamedTuple):
    """Some tokens of a trace, and all that is asked about them.

    sets [N, L * k] and before, the same of the token before; tokens [N, TOKENS]
    """

    sets: Rows
    before: Rows
    tokens: Int64
    questions: tuple[Question, ...]


@dataclass(frozen=True, eq=False)
class Asked:
    """Tokens with those before them: each may read rows first[n]..end[n] of the past.

    token_id [N], routed [N, l, k], weights the same or none at all; past_token_id [P], past, past_weights [P, L, k];
    first, end [N]
    """

    inputs: Inputs
    token_id: Int
    routed: Int
    weights: Float32
    past_token_id: Int
    past: Int
    past_weights: Float32
    first: Int64
    end: Int64

    @classmethod
    def of(cls, query: Query, horizon: int) -> "Asked":
        """A query's rows."""
        past = query.past
        return cls(
            inputs=Inputs.of(query.spec, horizon),
            token_id=query.token_id,
            routed=query.routed,
            weights=gates(query.weights),
            past_token_id=past.token_id,
            past=past.experts,
            past_weights=gates(past.weights),
            first=np.zeros(query.rows, dtype=np.int64),
            end=query.seen,
        )

    def sets(self) -> Rows:
        """The token's own sets so far, [N, l * k] rows of a shared table."""
        return Rows.of(self.routed, self.weights, np.arange(len(self.end)), self.inputs.experts)

    def before(self) -> Rows:
        """All sets of the token before, [N, L * k] rows of a shared table."""
        return Rows.of(self.past, self.past_weights, self._last, self.inputs.experts)

    def tokens(self) -> Int64:
        """[N, TOKENS] ids of the token and the one before, -1 = unknown or none."""
        last, found = self._last, np.full((len(self.end), TOKENS), -1, dtype=np.int64)
        found[:, 0] = self.token_id
        found[last >= 0, 1] = self.past_token_id[last[last >= 0]]
        return found

    def numbers(self, target: int, vote: Float, window: int, which: Int64 | slice = ALL) -> Float32:
        """[M, columns] of some of the tokens, given bank's vote on them [M, E]."""
        E, first, end = self.inputs.experts, self.first[which], self.end[which]
        found = np.zeros((len(end), self.inputs.columns), dtype=np.float32)
        _means(self.past, (first, end), (target, window), found)
        found[:, : 2 * E] *= self.inputs.top_k
        found[:, E : 2 * E] = vote.astype(np.float32) * self.inputs.top_k
        found[:, self.inputs.log_vote] = np.log(vote.astype(np.float32) + FLOOR)
        return found

    @property
    def _last(self) -> Int64:
        """[N] the row of the token before, -1 = none."""
        return np.where(self.end > self.first, self.end - 1, -1)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _fill(sets: tuple[Int, Float32], which: Int64, E: int, place: Int64, worth: Float32) -> None:
    experts, weights = sets
    _, layers, k = experts.shape
    for n in range(len(which)):
        if which[n] < 0:
            continue
        for layer in range(layers):
            for slot in range(k):
                expert = experts[which[n], layer, slot]
                if expert >= 0:
                    place[n, layer * k + slot] = layer * E + expert
                    if len(weights):
                        worth[n, layer * k + slot] = k * weights[which[n], layer, slot]


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

    @cached_property
    def tokens(self) -> Int64:
        """The rows that are meant and have something to learn."""
        return np.flatnonzero(self.rows & self._asked.any(axis=1))

    def lessons(self, size: int, seed: int) -> list[Int64]:
        """All `tokens` once, in random order, up to about `size` of them at a time."""
        rows = np.random.default_rng(seed).permutation(self.tokens)
        parts = np.array_split(rows, max(1, round(len(rows) / size))) if len(rows) else []
        return [np.sort(part) for part in parts]

    def lesson(self, rows: Int64) -> Lesson:
        """All that is asked about some tokens."""
        asked = self._about(rows)
        sets, before = asked.sets(), asked.before()
        questions = []
        for target in range(self.inputs.layers):
            for distance, which in self._apart(target, rows):
                if not len(which):
                    continue
                votes = self.near if distance == 1 or self.far is None else self.far
                chosen = rows[which]
                questions.append(
                    Question(
                        target,
                        distance,
                        which,
                        asked.numbers(target, votes[target, chosen], self.window, which),
                        sets.of_tokens(which).at(target, distance, before.of_tokens(which), self.inputs),
                        one_hot(self.trace.answers_at(target)[chosen], self.inputs.experts),
                    )
                )
        return Lesson(sets, before, asked.tokens(), tuple(questions))

    def _about(self, rows: Int64) -> Asked:
        """Tokens of the trace, with their sets at all layers."""
        trace, weights = self.trace, gates(self.trace.weights)
        return Asked(
            inputs=self.inputs,
            token_id=trace.token_id[rows],
            routed=trace.experts[rows],
            weights=weights[rows] if len(weights) else weights,
            past_token_id=trace.token_id,
            past=trace.experts,
            past_weights=weights,
            first=self.start[rows],
            end=rows,
        )

    @cached_property
    def _asked(self) -> Bool:
        """[T, L] whether a token's set at a target may be learned."""
        return np.asarray((self.trace.experts >= 0).any(axis=2))

    def _apart(self, target: int, rows: Int64) -> Iterator[tuple[int, Int64]]:
        """Distances, and which of some token rows are asked from there."""
        known = self._asked[rows, target]
        yield 1, np.flatnonzero(known)
        ahead = self.ahead[self.trace.sequence[rows], target]
        for distance in range(2, self.inputs.horizon + 1):
            yield distance, np.flatnonzero(known & (ahead == distance))
