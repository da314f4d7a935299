"""A predictor whose confidence is another's, corrected on held-out prompts. How it is corrected is in `calibration`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32
from foregate.errors import ChoiceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.calibration import KNOTS, curves, follow, temperatures
from foregate.predictors.chances import softmax
from foregate.predictors.mixing.members import Hearing, beliefs, needs, routed
from foregate.predictors.space import Choice, Options
from foregate.traces.schema import Trace

METHODS = ("temperature", "isotonic")


@final
@dataclass
class Calibrated(Predictor):
    """One predictor, its order of experts kept, its scores made probabilities: min(1, k * score) is how likely the
    expert is routed. Fitted for each layer and distance on rows that the member was not fitted on: the validation
    trace's, or held out (see Hearing.hold).

    member   with its options in parentheses, or the file of a fitted predictor: rules(order=2)
    method   temperature: the member's logits times a factor; isotonic: its confidence along a rising curve
    rows     held-out rows that are asked at most, at each distance
    horizon  the largest distance it learns; farther ahead it corrects as at that
    seed     of what is held out

    Source: "On Calibration of Modern Neural Networks" (Guo et al. 2017); "Transforming Classifier Scores into Accurate
    Multiclass Probability Estimates" (Zadrozny & Elkan 2002).
    """

    member: str = "memory"
    method: str = "temperature"
    rows: int = 100_000
    horizon: int = 1
    seed: int = 0
    members_: tuple[Predictor, ...] = field(init=False, repr=False)  # the one
    sharpness_: Float32 = field(init=False, repr=False)  # [horizon, L]
    curves_: Float32 = field(init=False, repr=False)  # [horizon, L, 2, KNOTS]
    probabilities: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Choice]] = {"method": Options(METHODS)}

    @property
    def needs(self) -> frozenset[Need]:
        """What its member needs."""
        return needs(self.member, vars(self).get("members_", ()))

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        if self.method not in METHODS:
            raise ChoiceError(f"there is no method {self.method!r}; choose one of {', '.join(METHODS)}")
        self.members_, said = Hearing(self.member, self.horizon, self.rows, self.seed).hold(trace, validation)
        if len(self.members_) != 1:
            raise ChoiceError(f"{self.member!r} is not one predictor; mix several with ensemble or blend")
        layers, k = trace.spec.num_layers, trace.spec.top_k
        self.sharpness_ = np.ones((self.horizon, layers), dtype=np.float32)
        self.curves_ = np.zeros((self.horizon, layers, 2, KNOTS), dtype=np.float32)
        for at, rows in enumerate(said):
            logits = rows.beliefs[0]
            if self.method == "temperature":
                self.sharpness_[at] = temperatures(logits, rows.answers, rows.layer, layers)
            else:
                confidence = np.minimum(1, k * softmax(logits))
                self.curves_[at] = curves(confidence, routed(rows, logits.shape[1]) > 0, rows.layer, layers)
        return self

    def predict(self, query: Query) -> Float32:
        at, layer = min(query.distance, self.horizon) - 1, query.target
        logits = beliefs(self.members_, query)[0]
        if self.method == "temperature":
            return softmax(logits * self.sharpness_[at, layer])
        worth = follow(self.curves_[at, layer], np.minimum(1, query.spec.top_k * softmax(logits)))
        scores: Float32 = worth / worth.sum(axis=1, keepdims=True)
        return scores

    def covers(self, query: Query) -> Bool:
        return self.members_[0].covers(query)
