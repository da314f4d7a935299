"""A predictor that needs no training but the model: the next router, asked early."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32
from foregate.errors import ChoiceError, ModelError, TraceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.chances import softmax
from foregate.predictors.counting import everywhere, layer_frequency
from foregate.predictors.hidden.heads import unit
from foregate.predictors.space import Choice, Options
from foregate.traces.schema import Trace


@final
@dataclass
class NextGate(Predictor):
    """The target layer's own norm and router, applied to the residual stream as it stands before the target: at any
    distance, since nothing is learned but the model.

    state  router: as it stood before the last routed layer's experts. A router's input is the residual stream after
           its RMS norm; since that norm forgets scale, dividing by its gain gives the residual's direction back, and
           the target's gain makes it that router's input.
           residual: as it enters the layer after the last routed one, with what its experts added; known a little
           later, and before the first layer too
    model  name or path of the model; by default the one that the trace was recorded from

    Source: the speculative loading of "Fast Inference of MoE Language Models with Offloading" (Eliseev, Mazur 2023).
    """

    state: str = "router"
    model: str = ""
    frequency_: Float32 = field(init=False, repr=False)
    gain_: Float32 = field(init=False, repr=False)  # [L, D]
    router_: Float32 = field(init=False, repr=False)  # [L, E, D]
    bias_: Float32 = field(init=False, repr=False)  # [L, E]
    probabilities: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Choice]] = {"state": Options(("router", "residual"))}

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({"residual" if self.state == "residual" else "hidden"})

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        from foregate.models import load, next_gate_tables

        if self.state not in ("router", "residual"):
            raise ChoiceError(f"state is {self.state!r}; choose one of router, residual")
        given = trace.residual if self.state == "residual" else trace.hidden
        if given is None:
            raise TraceError(f"the trace of {trace.spec.model} has no hidden states; record it with --hidden")
        name = self.model or trace.spec.model
        model, _ = load(name)
        self.gain_, self.router_, bias = next_gate_tables(model, stack=trace.spec.stack)
        shape = (trace.spec.num_layers, trace.spec.num_experts, given.shape[2])
        if self.router_.shape != shape:
            raise ModelError(
                f"{name} has routers of {_named(self.router_.shape)}, the trace of {trace.spec.model} is of "
                f"{_named(shape)}; name the model that it was recorded from, model=NAME"
            )
        self.bias_ = np.zeros(self.router_.shape[:2], dtype=np.float32) if bias is None else bias
        self.frequency_ = layer_frequency(trace)
        return self

    def predict(self, query: Query) -> Float32:
        residual = self._residual(query)
        if residual is None:
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        target = query.target
        return softmax((residual * self.gain_[target]) @ self.router_[target].T + self.bias_[target])

    def covers(self, query: Query) -> Bool:
        known = (query.residual if self.state == "residual" else query.hidden) is not None
        return everywhere(query) if known else ~everywhere(query)

    def _residual(self, query: Query) -> Float32 | None:
        """[N, D] its direction."""
        if self.state == "residual":
            return None if query.residual is None else unit(query.residual)
        if query.hidden is None:
            return None
        gain = self.gain_[query.layer]
        return unit(np.where(gain == 0, 0, query.hidden / np.where(gain == 0, 1, gain)))


def _named(shape: tuple[int, ...]) -> str:
    layers, experts, width = shape
    return f"{layers} layers x {experts} experts on {width} numbers"
