"""Heuristics of an earlier speculation engine: the last layers' experts again, and a mix of such guesses. They look at
routed ids only, and take an expert id to mean the same in every layer; `speculation` knows the engine's names for them.

Source: the "Enhanced Pre-gated MoE" engine, which extends "Pre-gated MoE" (Hwang et al. 2024).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32, Int
from foregate.errors import ChoiceError
from foregate.history import Query, Replay
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import Cooccur, everywhere, layer_frequency, one_hot
from foregate.predictors.space import Choice, Range
from foregate.traces.schema import Trace

TIES = 1e-3
"""Share of layer frequency in a guess that gives most experts nothing: it orders them, and outvotes nobody."""


@final
@dataclass
class MultiLayer(Predictor):
    """The expert ids of the last layers, the nearest counting most: of 4 layers .4, .3, .2, .1, as many as there are.

    reach  how many layers; 1 is `repeat` as a distribution
    """

    reach: int = 4
    frequency_: Float32 = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = {"reach": Range(1, 8)}

    def __post_init__(self) -> None:
        if self.reach < 1:
            raise ChoiceError(f"multi-layer:reach={self.reach} looks at no layer; choose 1 or more")

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        return self

    def predict(self, query: Query) -> Float32:
        prior = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        guess = np.zeros_like(prior)
        for back in range(min(self.reach, query.layer + 1)):
            guess += (self.reach - back) * one_hot(query.routed[:, -1 - back], query.spec.num_experts)
        total = guess.sum(axis=1, keepdims=True)
        scores: Float32 = np.where(total > 0, (1 - TIES) * guess / np.maximum(total, 1) + TIES * prior, prior)
        return scores

    def covers(self, query: Query) -> Bool:
        return np.asarray((query.routed[:, -self.reach :] >= 0).any(axis=(1, 2)))


@final
@dataclass
class Adaptive(Predictor):
    """The other modes' guesses mixed: the last layer, the last four, transition counts. Each counts as much as it is
    surer of this token than usual (the probability of its k first experts), times how much more of the routed set it
    found in the target layer than luck would, on the validation trace, else on the training trace's first tokens.

    horizon  the largest distance it learns
    judged   tokens of that trace that are looked at
    """

    horizon: int = 1
    judged: int = 5000
    frequency_: Float32 = field(init=False, repr=False)
    members_: tuple[Predictor, ...] = field(init=False, repr=False)
    trust_: Float32 = field(init=False, repr=False)  # [horizon, L, members] what one's sureness is worth
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        members = (MultiLayer(reach=1), MultiLayer(), Cooccur(horizon=self.horizon))
        self.members_ = tuple(member.fit(trace) for member in members)
        L = trace.spec.num_layers
        self.trust_ = np.ones((self.horizon, L, len(members)), dtype=np.float32)
        judged = (trace if validation is None else validation).take(slice(0, self.judged))
        for distance in range(1, self.horizon + 1):
            for target in range(distance, L):
                query = Replay(judged).query(target - distance, target)  # no member reads the past
                self.trust_[distance - 1, target] = [
                    _worth(member.predict(query), judged.answers_at(target)) for member in self.members_
                ]
        return self

    def predict(self, query: Query) -> Float32:
        if query.layer < 0:
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        trust = self.trust_[min(query.distance, self.horizon) - 1, query.target]
        scores = np.zeros((query.rows, query.spec.num_experts), dtype=np.float32)
        total = np.zeros((query.rows, 1), dtype=np.float32)
        for member, worth in zip(self.members_, trust, strict=True):
            guess = member.predict(query)
            sure = _sureness(guess, query.spec.top_k)
            scores += worth * sure * guess
            total += worth * sure
        return scores / total

    def covers(self, query: Query) -> Bool:
        return everywhere(query) if query.layer >= 0 else ~everywhere(query)


def _sureness(guess: Float32, k: int) -> Float32:
    """[N, 1] probability of the k first experts."""
    mass: Float32 = np.sort(guess, axis=1)[:, -k:].sum(axis=1, keepdims=True)
    return mass


def _worth(guess: Float32, answers: Int) -> float:
    """(share of the routed experts among the k first guesses - what luck finds) / usual sureness, and above zero."""
    k, there = answers.shape[1], answers >= 0
    first = np.argsort(-guess, axis=1, kind="stable")[:, :k]
    found = (answers[:, :, None] == first[:, None, :]).any(axis=2) & there
    share = found.sum() / max(there.sum(), 1)
    return float(max(share - k / guess.shape[1], TIES) / _sureness(guess, k).mean())
