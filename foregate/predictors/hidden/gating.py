"""The published per-layer gating models as one family: small networks on a router's input and the routing so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32, Int, Int64
from foregate.errors import ChoiceError, TraceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.chances import shares
from foregate.predictors.counting import everywhere, layer_frequency, one_hot
from foregate.predictors.hidden import heads
from foregate.predictors.hidden.gating_networks import ATTENTION_HEADS, NETWORKS, Shape
from foregate.predictors.space import Choice, Options, Range

if TYPE_CHECKING:
    from foregate.traces.schema import Trace


@final
@dataclass
class Gating(Predictor):
    """A network for each last routed layer and target, on the router input of that layer and the routed sets of the
    last `context` layers, by cross entropy against the target's routed set. A temperature for each, fitted on what
    judges, makes probabilities of the scores.

    It keeps the epoch that is best on the validation trace, or on held-out training prompts (see MLP). Layer frequency
    where no router input is at hand, and farther ahead than it learned.

    preset    contextual: a hidden layer on all of it side by side
              transformer: the hidden state attends to the embedded routed sets of the layers, one to each position
              hierarchical: as contextual, but first a group of experts is chosen, then the expert in it; a group
              is neighbouring ids, as expert parallelism puts them on one device, about as many groups as each has
              members
    width     of the hidden layer
    context   layers whose routed sets are looked at
    dropout, learning_rate, weight_decay, batch (tokens), epochs, seed
    horizon   the largest distance it learns
    threads   CPU threads that fit; with one, a seed gives the same weights however many there are
    device    where torch fits, "cpu" or "cuda"; it always answers in numpy

    Source: the contextual, transformer and hierarchical gating models of an enhanced Pre-gated MoE engine. Of these no
    more than what they look at is published; sizes are ours.
    """

    preset: str = "contextual"
    width: int = 128
    context: int = 4
    dropout: float = 0.1
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch: int = 256
    epochs: int = 8
    horizon: int = 1
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    frequency_: Float32 = field(init=False, repr=False)
    mean_: Float32 = field(init=False, repr=False)  # [L, D] of router inputs
    scale_: Float32 = field(init=False, repr=False)  # [L, D]
    weights_: dict[str, Float32] = field(init=False, repr=False)  # name -> [C, ...], see gating_networks
    cooled_: Float32 = field(init=False, repr=False)  # [C] one over each pair's temperature
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"hidden"})
    space: ClassVar[Mapping[str, Choice]] = {
        "preset": Options(("contextual", "transformer", "hierarchical")),
        "width": Range(32, 512, log=True),
        "context": Range(1, 8),
        "dropout": Range(0.0, 0.5),
        "learning_rate": Range(2e-4, 1e-2, log=True),
    }

    def fit(self, trace: "Trace", validation: "Trace | None" = None) -> Self:
        if trace.hidden is None:
            raise TraceError(f"the trace of {trace.spec.model} has no hidden states; record it with --hidden")
        network = heads.choice("preset", self.preset, NETWORKS)
        if self.context < 1 or self.width < 1 or self.width % ATTENTION_HEADS:
            raise ChoiceError(
                f"context is {self.context} and width {self.width}; they need at least 1 and a multiple of "
                f"{ATTENTION_HEADS}"
            )
        pairs = heads.Pairs.of(trace.spec, self.horizon, first=0)
        self.frequency_ = layer_frequency(trace)
        self.mean_, self.scale_ = heads.standard(trace.hidden)
        learned, judged = heads.parted(trace, validation, pairs, self._inputs, self.seed)
        shape = Shape(trace.hidden.shape[2], trace.spec.num_experts, self.context, self.width, self.dropout)
        module = heads.fit(lambda: network.module(shape, pairs), heads.cross_entropy, learned, judged, self)
        self.weights_ = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        self.cooled_ = np.reciprocal(heads.temperatures(module, judged))
        return self

    def predict(self, query: Query) -> Float32:
        place = heads.place_of(query, self.horizon, first=0)
        if place is None or query.hidden is None:
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        hidden = (query.hidden - self.mean_[query.layer]) * self.scale_[query.layer]
        gates = self._gates(query.routed, query.layer, query.spec.num_experts)
        weights = {name: array[place] for name, array in self.weights_.items()}
        logits = NETWORKS[self.preset].forward(weights, hidden, gates) * self.cooled_[place]
        return shares(logits, query.spec.top_k)

    def covers(self, query: Query) -> Bool:
        known = query.hidden is not None and heads.place_of(query, self.horizon, first=0) is not None
        return everywhere(query) if known else ~everywhere(query)

    def _inputs(self, trace: "Trace", rows: Int64) -> tuple[Float32, Float32]:
        """[B, L, D] standardized router inputs, and [B, L, context, E] gates."""
        assert trace.hidden is not None
        experts, E = trace.experts[rows], trace.spec.num_experts
        gates = [self._gates(experts, layer, E) for layer in range(trace.spec.num_layers)]
        return (trace.hidden[rows] - self.mean_) * self.scale_, np.stack(gates, axis=1)

    def _gates(self, routed: Int, layer: int, experts: int) -> Float32:
        """[N, context, E] 1 where an expert is routed to, the last layer first; 0 before the first layer."""
        gates = np.zeros((len(routed), self.context, experts), dtype=np.float32)
        for back in range(min(self.context, layer + 1)):
            gates[:, back] = one_hot(routed[:, layer - back], experts)
        return gates
