"""A predictor that learns nothing beforehand: it remembers the sequence, and asks who routed like this before."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Int, Int64
from foregate.errors import ChoiceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import layer_frequency
from foregate.predictors.memory.likeness import gates, likeness, shares, spread
from foregate.predictors.space import Choice, Options, Range
from foregate.traces.schema import Trace

VOTES = ("gates", "set")


@final
@dataclass
class Memory(Predictor):
    """Softmax-weighted vote of this sequence's latest tokens.

    An earlier token votes with its gate weights in the target layer. Its vote counts
    exp(beta * sum over routed layers of decay^(layers back) * overlap + context * mean overlap of the two tokens before
    - recency * log(age)), with overlaps as in `likeness`. Layer frequency answers for a token with no past, and breaks
    ties. A prediction costs what `window` tokens cost, however long the sequence.

    beta     how sharply likeness counts
    decay    how much less each layer further back counts
    context  how much it counts that the tokens before were routed alike, over all layers ("induction")
    recency  how much nearer tokens count
    prior    weight of layer frequency beside the best vote
    votes    "gates": an expert gets its gate's part of a vote; "set": all experts of a set get the same
    window   how many of the latest tokens vote
    """

    beta: float = 3.0
    decay: float = 0.85
    context: float = 3.0
    recency: float = 0.3
    prior: float = 0.5
    votes: str = "gates"
    window: int = 512
    frequency_: Float32 = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = {
        "beta": Range(0.3, 30.0, log=True),
        "decay": Range(0.5, 1.0),
        "context": Range(0.0, 20.0),
        "recency": Range(0.0, 2.0),
        "prior": Range(0.01, 10.0, log=True),
        "votes": Options(VOTES),
    }

    def __post_init__(self) -> None:
        if self.votes not in VOTES:
            raise ChoiceError(f"there are no votes {self.votes!r}; choose one of {', '.join(VOTES)}")
        if self.window < 1:
            raise ChoiceError(f"a window of {self.window} tokens remembers nothing; choose 1 or more")

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        return self

    def predict(self, query: Query) -> Float32:
        scores = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        layers = query.spec.num_layers
        worth = (self.beta * self.decay ** np.arange(query.layer, -1, -1)).astype(np.float32)
        context = np.full(layers if self.context else 0, self.context / layers, dtype=np.float32)
        past = (query.past.experts, gates(query.past.weights), self.votes == "gates")
        asked = (query.seen, query.target, self.window)
        _vote((query.routed, gates(query.weights)), past, asked, (worth, context, self.recency, self.prior), scores)
        return scores

    def covers(self, query: Query) -> Bool:
        return query.seen > 0


@njit(cache=True)  # type: ignore[untyped-decorator]
def _vote(
    own: tuple[Int, Float32],
    past: tuple[Int, Float32, bool],
    asked: tuple[Int64, int, int],
    settings: tuple[Float32, Float32, float, float],
    scores: Float32,
) -> None:
    """Replace prior scores [N, E] by the vote of each row's latest `window` tokens."""
    routed, routed_weights = own
    experts, weights, by_gate = past
    seen, target, window = asked
    worth, context, recency, prior = settings
    now = np.zeros((experts.shape[1], scores.shape[1] + 1), dtype=np.float32)
    before = np.zeros_like(now)
    part = np.zeros(experts.shape[2], dtype=np.float32)
    votes = np.zeros(scores.shape[1])
    for n in range(len(seen)):
        P = seen[n]
        first = max(P - window, 0)
        if P == 0:
            continue
        spread(routed, routed_weights, n, len(worth), now)
        spread(experts, weights, P - 1, len(context), before)
        score = np.empty(P - first)
        for p in range(first, P):
            score[p - first] = likeness(now, experts, weights, p, worth) - recency * np.log(P - p)
            if p > 0:
                score[p - first] += likeness(before, experts, weights, p - 1, context)
        best = score.max()
        votes[:] = 0
        total = 0.0
        for p in range(first, P):
            if shares(experts, weights if by_gate else weights[:0], p, target, part):
                count = np.exp(score[p - first] - best)
                total += count
                for slot in range(len(part)):
                    if part[slot] > 0:
                        votes[experts[p, target, slot]] += count * part[slot]
        for e in range(scores.shape[1]):
            scores[n, e] = (votes[e] + prior * scores[n, e]) / (total + prior)
