"""`memory` with a past from before the sequence: training tokens vote too, and what a vote is worth is learned."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Float64, Int, Int32, Int64
from foregate.errors import ChoiceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import everywhere, layer_frequency
from foregate.predictors.memory.bank_fit import learn
from foregate.predictors.memory.candidates import WHOLE, gather, room
from foregate.predictors.memory.likeness import EVEN, gates, shares, spread
from foregate.predictors.memory.nearby import BITS, keys
from foregate.predictors.memory.terms import (
    AGE,
    BEFORE,
    FADE,
    MEAN,
    PRIOR,
    TINY,
    basis,
    count_set,
    distribution,
    log_lifts,
    surroundings,
    weigh,
)
from foregate.predictors.space import Choice, Range
from foregate.traces.schema import Trace


@final
@dataclass
class Bank(Predictor):
    """Vote of this sequence's latest tokens and of training tokens that end in the same tokens, weighed by how alike
    they were routed, now and a token before. What counts how much is learned from the training prompts, each asked with
    the others as its bank (see `terms`, `bank_fit`); no option has to be chosen by hand.

    Training tokens are found by token id and the two ids before it. Where the bank is small (`candidates.WHOLE`),
    all of it votes; a larger one without token ids does not vote at all.

    window      how many of the sequence's latest tokens vote
    neighbours  how many training tokens vote at most
    samples     training cells that the worth of votes is learned from
    horizon     the largest distance that it is learned for; farther ahead that of the largest is used
    """

    window: int = 256
    neighbours: int = 128
    samples: int = 3000
    horizon: int = 1
    seed: int = 0
    frequency_: Float32 = field(init=False, repr=False)
    terms_: Float64 = field(init=False, repr=False)  # [horizon, 2, 25] see `terms`: at the middle layer, and by depth
    experts_: Int = field(init=False, repr=False)  # [T, L, k]
    weights_: Float32 = field(init=False, repr=False)
    follows_: Bool = field(init=False, repr=False)  # [T] whether the row before is of the same sequence
    ordered_: Int64 = field(init=False, repr=False)  # [T] keys in order, see `nearby`
    order_: Int32 = field(init=False, repr=False)  # [T] the row of each
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = {"window": Range(32, 512, log=True), "neighbours": Range(16, 512, log=True)}

    def __post_init__(self) -> None:
        for name in ("window", "neighbours", "samples", "horizon"):
            if getattr(self, name) < 1:
                raise ChoiceError(f"bank:{name}={getattr(self, name)} asks nobody; choose 1 or more")

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        # Only what may be learned as an answer is kept, even where it would be a context.
        self.experts_ = np.stack([trace.answers_at(layer) for layer in range(trace.spec.num_layers)], axis=1)
        self.weights_ = gates(trace.weights)
        starts = np.array([rows.start for rows in trace.sequences()], dtype=np.int64)
        place = np.arange(len(trace)) - starts[np.searchsorted(starts, np.arange(len(trace)), side="right") - 1]
        self.follows_ = place > 0
        unordered = keys(trace.token_id, place)
        self.order_ = np.argsort(unordered, kind="stable").astype(np.int32)
        self.ordered_ = unordered[self.order_]
        bank = ((self.experts_, self.weights_), (self.ordered_, self.order_, self.follows_))
        limits = (self.window, self.neighbours, self.samples)
        thetas = [
            learn(bank, (trace.token_id, starts), trace.spec.num_experts, limits, (distance, self.seed))
            for distance in range(1, self.horizon + 1)
        ]
        self.terms_ = np.stack(thetas)
        return self

    def predict(self, query: Query) -> Float32:
        return self.recall(query, range(0))

    def recall(self, query: Query, without: range) -> Float32:
        """As `predict`, but some rows of the training trace do not vote: for training tokens, their own prompt's."""
        layers = query.spec.num_layers
        scores = np.empty((query.rows, query.spec.num_experts), dtype=np.float32)
        start, slope = self.terms_[min(query.distance, self.horizon) - 1]
        theta = start + slope * (query.target / layers - 0.5)
        worth = (theta[: MEAN + 1] @ basis(query.layer)).astype(np.float32)
        context = (theta[BEFORE:AGE] @ surroundings(query.target, layers)).astype(np.float32)
        weights = gates(query.past.weights)
        # A trace with weights and a bank without (or the other way round) meet as equal gates.
        both = len(self.weights_) > 0 and query.weights is not None
        own = (query.token_id, query.routed, gates(query.weights) if both else EVEN)
        past = (query.past.token_id, query.past.experts, weights if both else EVEN)
        bank = (self.experts_, self.weights_ if both else EVEN)
        index = (self.ordered_, self.order_, self.follows_)
        asked = (query.seen, query.target, self.window, (self.neighbours, without.start, without.stop))
        learned = (theta, self.frequency_[query.target], (worth, context))
        _vote((own, past), (bank, index), asked, learned, scores)
        return scores

    def covers(self, query: Query) -> Bool:
        if len(self.order_) <= WHOLE:
            return everywhere(query)
        return (query.seen > 0) | self._known(query.token_id)

    def _known(self, token_id: Int32) -> Bool:
        """[N] whether the bank holds the token."""
        wanted = keys(token_id, np.zeros(len(token_id), dtype=np.int64))
        place = np.minimum(np.searchsorted(self.ordered_, wanted), len(self.ordered_) - 1)
        return np.asarray((token_id >= 0) & (self.ordered_[place] >> 2 * BITS == wanted >> 2 * BITS))


@njit(cache=True)  # type: ignore[untyped-decorator]
def _add(source: tuple[Int, Float32], cell: tuple[int, int], count: float, part: Float32, votes: Float64) -> None:
    """Add one candidate's vote, its row's set in the target layer, to votes [E]."""
    experts, weights = source
    row, target = cell
    if shares(experts, weights, row, target, part):
        for slot in range(len(part)):
            if part[slot] > 0:
                votes[experts[row, target, slot]] += count * part[slot]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _vote(
    sequence: tuple[tuple[Int32, Int, Float32], tuple[Int32, Int, Float32]],
    known: tuple[tuple[Int, Float32], tuple[Int64, Int32, Bool]],
    asked: tuple[Int64, int, int, tuple[int, int, int]],
    learned: tuple[Float64, Float32, tuple[Float32, Float32]],
    scores: Float32,
) -> None:
    """Write each row's scores [N, E].

    sequence  the asking tokens, and those before: ids, experts, weights
    known     the bank, and its index (see `candidates.gather`)
    asked     seen, target, window, neighbours
    learned   theta, frequency [E], worths (see `terms.weigh`)
    """
    (own_id, routed, routed_weights), (past_id, experts, weights) = sequence
    bank, index = known
    seen, target, window, limits = asked
    theta, frequency, worths = learned
    E = scores.shape[1]
    now = np.zeros((experts.shape[1], E + 1), dtype=np.float32)
    before = np.zeros_like(now)
    part = np.zeros(experts.shape[2], dtype=np.float32)
    counts, lifts, late = np.zeros((2, E)), np.zeros((2, E)), FADE ** np.arange(window + 1)
    found = room(window, limits[0])
    row, follows, age, same = found
    exponent = np.empty(len(row))
    for n in range(len(seen)):
        P = seen[n]
        since = max(P - window, 0)
        spread(routed, routed_weights, n, len(worths[0]), now)
        before[:] = 0
        if P > 0:
            spread(experts, weights, P - 1, experts.shape[1], before)
        asking = (past_id, own_id[n], P, since)
        count = gather(asking, index, limits, found)
        best = theta[PRIOR]
        for c in range(count):
            candidate = (row[c], follows[c], age[c], same[c])
            if age[c] > 0:
                exponent[c] = weigh((now, before), (experts, weights), candidate, worths, theta)
            else:
                exponent[c] = weigh((now, before), bank, candidate, worths, theta)
            best = max(best, exponent[c])
        votes = max(np.exp(theta[PRIOR] - best), TINY) * frequency.astype(np.float64)
        counts[:] = 0
        for c in range(count):
            if age[c] > 0:
                _add((experts, weights), (row[c], target), np.exp(exponent[c] - best), part, votes)
                count_set(experts[row[c], target], late[age[c]], counts)
            else:
                _add(bank, (row[c], target), np.exp(exponent[c] - best), part, votes)
        log_lifts(counts, frequency, lifts)
        distribution(votes, lifts, frequency, theta, scores[n])
