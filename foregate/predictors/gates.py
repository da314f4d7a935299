"""A predictor that needs no training but the model: the next router, asked early."""

from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import everywhere, layer_frequency
from foregate.traces.schema import Trace


@final
@dataclass
class NextGate(Predictor):
    """The target layer's own norm and router, applied to the residual stream as it stands at the last routed layer.

    A trace holds router inputs, which are the residual stream after its RMS norm; since that norm forgets scale,
    dividing by this layer's gain gives the residual's direction back, and the target's gain makes it that router's
    input.

    model  name or path of the model; by default the one that the trace was recorded from

    Source: the speculative loading of "Fast Inference of MoE Language Models with Offloading" (Eliseev, Mazur 2023).
    """

    model: str = ""
    frequency_: Float32 = field(init=False, repr=False)
    gain_: Float32 = field(init=False, repr=False)  # [L, D]
    router_: Float32 = field(init=False, repr=False)  # [L, E, D]
    bias_: Float32 = field(init=False, repr=False)  # [L, E]
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"hidden"})

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        from foregate.models import load, next_gate_tables

        model, _ = load(self.model or trace.spec.model)
        self.gain_, self.router_, bias = next_gate_tables(model, stack=trace.spec.stack)
        self.bias_ = np.zeros(self.router_.shape[:2], dtype=np.float32) if bias is None else bias
        self.frequency_ = layer_frequency(trace)
        return self

    def predict(self, query: Query) -> Float32:
        if query.hidden is None:
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        gain = self.gain_[query.layer]
        residual = np.where(gain == 0, 0, query.hidden.astype(np.float32) / np.where(gain == 0, 1, gain))
        residual /= np.sqrt((residual**2).mean(axis=1, keepdims=True) + 1e-12)
        logits = (residual * self.gain_[query.target]) @ self.router_[query.target].T + self.bias_[query.target]
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Float32 = (scores / scores.sum(axis=1, keepdims=True)).astype(np.float32)
        return shares

    def covers(self, query: Query) -> Bool:
        return everywhere(query) if query.hidden is not None else ~everywhere(query)
