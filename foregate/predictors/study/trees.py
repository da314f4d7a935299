"""Gradient-boosted trees on the study's columns. XGBoost does the learning; this says on what."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import numpy as np
import numpy.typing as npt

from foregate.arrays import Bool, Float32
from foregate.errors import SourceError, need
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import everywhere, layer_frequency
from foregate.predictors.space import Choice, Range
from foregate.predictors.study.features import Examples, table
from foregate.traces.schema import Trace


@final
@dataclass
class XGBoost(Predictor):
    """One classifier over all layers for the target's primary expert, or where the trace ranks none for one drawn from
    its routed set; layer frequency before the first layer and farther ahead than it learned. Every round counts, with
    or without a validation trace.

    rounds         boosting rounds; each grows a tree per expert
    depth          of a tree
    learning_rate  shrinkage of each round
    horizon        the largest distance it learns
    seed           of XGBoost's draws and of that one
    threads        CPU threads that fit; 0 = all

    Source: the XGBoost of "Cross-Layer Routing Patterns for MoE Optimization"; softprob in place of its softmax, which
    learns the same and also says how sure it is.
    """

    rounds: int = 100
    depth: int = 6
    learning_rate: float = 0.1
    horizon: int = 1
    seed: int = 0
    threads: int = 0
    frequency_: Float32 = field(init=False, repr=False)
    booster_: npt.NDArray[np.uint8] = field(init=False, repr=False)  # XGBoost's own JSON
    booster: Any = field(init=False, repr=False, default=None)  # the same, ready to be asked
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = {
        "rounds": Range(20, 400, log=True),
        "depth": Range(2, 10),
        "learning_rate": Range(0.01, 0.5, log=True),
    }

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        xgboost = need("xgboost", "train")
        self.frequency_ = layer_frequency(trace)
        train = self._matrix(trace)
        parameters = {
            "objective": "multi:softprob",
            "num_class": trace.spec.num_experts,
            "max_depth": self.depth,
            "learning_rate": self.learning_rate,
            "tree_method": "hist",
            "eval_metric": "merror",
            "seed": self.seed,
            "nthread": self.threads,
        }
        watched: dict[str, Any] = {}
        if self.on_epoch is not None and validation is not None:
            asked = self._matrix(validation, like=train)
            watched = {"evals": [(asked, "validation")], "callbacks": [_listener(self.on_epoch)], "verbose_eval": False}
        booster = xgboost.train(parameters, train, self.rounds, **watched)
        self.booster_ = np.frombuffer(booster.save_raw("json"), dtype=np.uint8).copy()
        self.booster = None
        return self

    def predict(self, query: Query) -> Float32:
        if not self._learned(query):
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        scores: Float32 = self._ready().inplace_predict(table(query, self.horizon), validate_features=False)
        return scores

    def covers(self, query: Query) -> Bool:
        return everywhere(query) if self._learned(query) else ~everywhere(query)

    def _learned(self, query: Query) -> bool:
        return query.layer >= 0 and query.distance <= self.horizon

    def _matrix(self, trace: Trace, like: Any = None) -> Any:
        xgboost = need("xgboost", "train")
        examples = Examples.of(trace, self.horizon)
        return xgboost.QuantileDMatrix(examples.table(), label=examples.drawn(self.seed), ref=like)

    def _ready(self) -> Any:
        """The booster, loaded from what was saved: fitted or read from a file, the same trees answer."""
        if self.booster is None:
            xgboost = need("xgboost", "train")
            # One thread: a runtime asks for a row at a time, and waking others costs more than it saves.
            booster = xgboost.Booster({"nthread": 1})
            try:
                booster.load_model(bytearray(self.booster_.tobytes()))
            except xgboost.core.XGBoostError:
                raise SourceError("the saved trees cannot be read by this xgboost; train them again") from None
            booster.set_param({"nthread": 1})
            self.booster = booster
        return self.booster


def _listener(told: Any) -> Any:
    """A callback of XGBoost's that says each round's validation top-1."""
    xgboost = need("xgboost", "train")

    class Listener(xgboost.callback.TrainingCallback):  # type: ignore[name-defined,misc]
        def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
            told(epoch + 1, 1 - evals_log["validation"]["merror"][-1])
            return False

    return Listener()
