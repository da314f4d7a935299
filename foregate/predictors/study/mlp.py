"""A small neural network on the study's columns. What it is and how it answers, in numpy; `training` fits it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32, Int64
from foregate.errors import TraceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import everywhere, layer_frequency
from foregate.predictors.graph import Graph
from foregate.predictors.space import Choice, Range
from foregate.predictors.study.features import Columns, Examples, table
from foregate.predictors.study.training import SLOPE, Recipe, train
from foregate.spec import MoESpec
from foregate.splits import held_out
from foregate.traces.schema import Trace


@final
@dataclass
class MLP(Predictor):
    """Embedded experts and layer, weights and position through hidden layers of Linear, BatchNorm, LeakyReLU, Dropout
    to the target's primary expert, or its routed set where the trace ranks none; layer frequency before the first
    layer and farther ahead than it learned.

    It keeps the epoch that is best on the validation trace. Where none is given, a tenth of the training prompts is
    held out for that, or of fewer than three prompts the last tenth of each one's tokens.

    width, depth             of the hidden layers
    expert_size, layer_size  of the embeddings
    dropout, learning_rate, batch, epochs, seed
    horizon                  the largest distance it learns
    threads                  CPU threads that fit; with one, a seed gives the same weights however many there are
    device                   where torch fits, "cpu" or "cuda"; it always answers in numpy

    Source: the MLP of "Cross-Layer Routing Patterns for MoE Optimization". Its embeddings have 5 and 7 numbers; which
    is whose is not published. Here the layer, which has more values, gets the wider one.
    """

    width: int = 512
    depth: int = 2
    expert_size: int = 5
    layer_size: int = 7
    dropout: float = 0.18
    learning_rate: float = 5.36e-4
    batch: int = 512
    epochs: int = 30
    horizon: int = 1
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    frequency_: Float32 = field(init=False, repr=False)
    inputs_: dict[str, Float32] = field(
        init=False, repr=False
    )  # layer [L, l], expert [E + 1, e], mean, scale [numbers]
    weights_: dict[str, Float32] = field(init=False, repr=False)  # "0".."depth": [in, out], batch norm folded in
    biases_: dict[str, Float32] = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = {
        "learning_rate": Range(5e-5, 5e-3, log=True),
        "expert_size": Range(2, 32, log=True),
        "layer_size": Range(2, 32, log=True),
        "dropout": Range(0.0, 0.5),
        "depth": Range(1, 4),
        "width": Range(64, 1024, log=True),
    }

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        examples = Examples.of(trace, self.horizon)
        if validation is not None:
            learned, judged = examples, Examples.of(validation, self.horizon)
        else:
            held = held_out(trace, self.seed)[examples.token]
            learned, judged = examples.take(~held), examples.take(held)
        if len(learned) < 2 or len(judged) == 0:
            raise TraceError(f"{len(examples)} training rows are too few to train on some and judge by others")
        network = train(
            self._recipe(), learned, judged, trace.spec.num_experts, told=self.on_epoch, session=self.session
        )
        self.inputs_, self.weights_, self.biases_ = network.inputs, network.weights, network.biases
        return self

    def predict(self, query: Query) -> Float32:
        if not self._learned(query):
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        state = self._embedded(table(query, self.horizon), Columns.of(query.spec, self.horizon))
        for i in range(self.depth):
            state = state @ self.weights_[str(i)] + self.biases_[str(i)]
            state = np.maximum(state, SLOPE * state)
        logits = state @ self.weights_[str(self.depth)] + self.biases_[str(self.depth)]
        scores = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares: Float32 = scores / scores.sum(axis=1, keepdims=True)
        return shares

    def features(self, query: Query) -> dict[str, Float32] | None:
        """rows [N, columns]: see `features.table`."""
        return {"rows": table(query, self.horizon)} if self._learned(query) else None

    def graph(self, spec: MoESpec) -> Graph:
        """What `predict` does, as a graph."""
        columns, graph = Columns.of(spec, self.horizon), Graph()
        rows = graph.input("rows", np.float32, "N", columns.width)
        layer = graph.whole(graph("Gather", rows, graph.constant(np.int64(0)), axis=1))
        ids = graph.whole(graph("Gather", rows, graph.constant(np.array(columns.experts)), axis=1))
        experts = graph("Gather", graph.constant(self.inputs_["expert"]), ids)
        numbers = graph("Gather", rows, graph.constant(np.array(columns.numbers)), axis=1)
        centred = graph("Sub", numbers, graph.constant(self.inputs_["mean"]))
        scaled = graph("Mul", centred, graph.constant(self.inputs_["scale"]))
        known = graph("Where", graph("IsNaN", scaled), graph.constant(np.float32(0)), scaled)
        parts = (graph("Gather", graph.constant(self.inputs_["layer"]), layer), graph("Flatten", experts), known)
        state = graph("Concat", *parts, axis=1)
        for i in range(self.depth + 1):
            linear = graph("MatMul", state, graph.constant(self.weights_[str(i)]))
            state = graph("Add", linear, graph.constant(self.biases_[str(i)]))
            if i < self.depth:
                state = graph("LeakyRelu", state, alpha=SLOPE)
        graph.answer(graph("Softmax", state, axis=1), spec.num_experts)
        return graph

    def covers(self, query: Query) -> Bool:
        return everywhere(query) if self._learned(query) else ~everywhere(query)

    def _learned(self, query: Query) -> bool:
        return query.layer >= 0 and query.distance <= self.horizon

    def _embedded(self, rows: Float32, columns: Columns) -> Float32:
        """[N, inputs] what enters the first hidden layer; absent experts (-1) take the table's last row."""
        layer = self.inputs_["layer"][rows[:, 0].astype(np.int64)]
        ids: Int64 = rows[:, columns.experts].astype(np.int64)
        experts = self.inputs_["expert"][ids].reshape(len(rows), -1)
        numbers = (rows[:, columns.numbers] - self.inputs_["mean"]) * self.inputs_["scale"]
        return np.concatenate([layer, experts, np.nan_to_num(numbers)], axis=1)

    def _recipe(self) -> Recipe:
        return Recipe(
            width=self.width,
            depth=self.depth,
            expert_size=self.expert_size,
            layer_size=self.layer_size,
            dropout=self.dropout,
            learning_rate=self.learning_rate,
            batch=self.batch,
            epochs=self.epochs,
            seed=self.seed,
            threads=self.threads,
            device=self.device,
        )
