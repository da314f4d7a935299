"""Which experts a layer will choose, from what enters it before its attention, or enters a layer before it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32, Int64
from foregate.errors import ChoiceError, TraceError, need
from foregate.history import Query
from foregate.predictors import chances
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import everywhere, layer_frequency
from foregate.predictors.graph import Graph, share_out, unit
from foregate.predictors.hidden import heads
from foregate.predictors.space import Choice, Options, Range

if TYPE_CHECKING:
    from foregate.spec import MoESpec
    from foregate.traces.schema import Trace

LEFT_OUT = 0.1  # of the tokens that are trained on are not shown the one before


@final
@dataclass
class PreAttention(Predictor):
    """Two linear maps with a ReLU between them, on the direction of the residual stream that enters the layer after the
    last routed one: at distance 1 the target itself, before its attention, with the first layer too; farther ahead
    the targets behind it.

    What attention will add is not in that state, but where it looks at the token before, that token's own residual
    stream tells: what entered the target with it is fed too, by a linear map of its own (`past`). In training it is
    left out of a tenth of the tokens, so that a token that may see none is answered as well. Before the ReLU the maps
    of a layer serve all distances, after it each pair of layer and target has its own.

    It keeps the epoch that is best on the validation trace, or on held-out training prompts (see MLP). Layer frequency
    where no residual stream is at hand, and farther ahead than it learned.

    rank      what the first map makes of the state's numbers
    past      whether the token before is looked at
    loss      ranking: each routed expert is to stand above every other by a margin; entropy: cross entropy. Either way
              a temperature for each layer and distance, fitted on what judges, makes probabilities of the scores
    dropout, learning_rate, weight_decay, batch (tokens), epochs, seed
    horizon   the largest distance it learns
    threads   CPU threads that fit; with one, a seed gives the same weights however many there are
    device    where torch fits, "cpu" or "cuda"; it always answers in numpy

    Source: "Pre-Attention Expert Prediction and Prefetching for Mixture-of-Experts Large Language Models" (Zhu et al.
    2025): two linear functions and a ranking loss. The ReLU, the token before and other distances are ours.
    """

    rank: int = 256
    past: bool = True
    loss: str = "ranking"
    dropout: float = 0.1
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    batch: int = 256
    epochs: int = 8
    horizon: int = 1
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    frequency_: Float32 = field(init=False, repr=False)
    state_: Float32 = field(init=False, repr=False)  # [L, D, R] of the residual stream, by the layer that it enters
    before_: Float32 = field(init=False, repr=False)  # [L, D, R] of the token before's, by target
    shift_: Float32 = field(init=False, repr=False)  # [C, R]
    scores_: Float32 = field(init=False, repr=False)  # [C, R, E], divided by the temperature
    bias_: Float32 = field(init=False, repr=False)  # [C, E]
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"residual"})
    space: ClassVar[Mapping[str, Choice]] = {
        "rank": Range(16, 512, log=True),
        "dropout": Range(0.0, 0.5),
        "learning_rate": Range(2e-4, 1e-2, log=True),
        "weight_decay": Range(1e-4, 0.3, log=True),
        "loss": Options(("ranking", "entropy")),
    }

    def fit(self, trace: "Trace", validation: "Trace | None" = None) -> Self:
        if trace.residual is None:
            raise TraceError(f"the trace of {trace.spec.model} has no residual stream; record it with --hidden")
        if self.rank < 1:
            raise ChoiceError(f"rank is {self.rank}; it must be at least 1")
        losses = heads.choice("loss", self.loss, {"ranking": heads.ranking, "entropy": heads.cross_entropy})
        pairs = heads.Pairs.of(trace.spec, self.horizon, first=-1)
        self.frequency_ = layer_frequency(trace)
        learned, judged = heads.parted(trace, validation, pairs, _inputs, self.seed)
        shape = (trace.spec.num_layers, trace.residual.shape[2], self.rank, trace.spec.num_experts)
        module = heads.fit(lambda: _network(self, pairs, shape), losses, learned, judged, self)
        scale = heads.temperatures(module, judged)[:, None]
        state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        self.state_, self.before_, self.shift_ = state["state"], state["before"], state["shift"][:, 0]
        self.scores_, self.bias_ = state["scores"] / scale[:, None], state["bias"][:, 0] / scale
        return self

    def predict(self, query: Query) -> Float32:
        place = self._place(query)
        if place is None or query.residual is None:
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        inner = heads.unit(query.residual) @ self.state_[query.layer + 1] + self.shift_[place]
        if self.past and query.past.residual is not None:
            rows = np.flatnonzero(query.seen > 0)
            if len(rows):
                before = query.past.residual[query.seen[rows] - 1, query.target]
                inner[rows] += heads.unit(before) @ self.before_[query.target]
        logits = np.maximum(inner, 0) @ self.scores_[place] + self.bias_[place]
        return chances.shares(logits, query.spec.top_k)

    def features(self, query: Query) -> dict[str, Any] | None:
        """state, before [N, D] the residual stream that enters the layer after the last routed one, and what entered
        the target with the token before, 0 where that may not be seen; entered, target: these layers; place, of the
        last routed layer and the target (place_of).
        """
        place = self._place(query)
        if place is None or query.residual is None:
            return None
        before = np.zeros_like(query.residual, dtype=np.float32)
        rows = np.flatnonzero(query.seen > 0)
        if self.past and query.past.residual is not None:
            before[rows] = query.past.residual[query.seen[rows] - 1, query.target]
        numbers = {"entered": query.layer + 1, "target": query.target, "place": place}
        whole = {name: np.array(number) for name, number in numbers.items()}
        return {"state": query.residual.astype(np.float32), "before": before, **whole}

    def graph(self, spec: "MoESpec") -> Graph:
        """What `predict` does, as a graph."""
        graph, D = Graph(), self.state_.shape[1]
        state, before = (graph.input(name, np.float32, "N", D) for name in ("state", "before"))
        entered, target, place = (graph.input(name, np.int64) for name in ("entered", "target", "place"))
        tables = ((state, self.state_, entered), (before, self.before_, target))
        inner = [graph("MatMul", unit(graph, stream), graph.row(table, layer)) for stream, table, layer in tables]
        shift = graph.row(self.shift_, place)
        state = graph("Relu", graph("Add", graph("Add", *inner), shift))
        scored = graph("MatMul", state, graph.row(self.scores_, place))
        logits = graph("Add", scored, graph.row(self.bias_, place))
        graph.answer(share_out(graph, logits, spec.top_k), spec.num_experts)
        return graph

    def covers(self, query: Query) -> Bool:
        known = query.residual is not None and self._place(query) is not None
        return everywhere(query) if known else ~everywhere(query)

    def _place(self, query: Query) -> int | None:
        return heads.place_of(query, self.horizon, first=-1)


def _inputs(trace: "Trace", rows: Int64) -> tuple[Float32, Float32]:
    """[B, L, D] what enters each layer with these tokens and with those before them (0 for a sequence's first)."""
    assert trace.residual is not None
    first = (rows == 0) | (trace.sequence[rows - 1] != trace.sequence[rows])
    before = heads.unit(trace.residual[rows - 1])
    before[first] = 0
    return heads.unit(trace.residual[rows]), before


def _network(settings: PreAttention, pairs: heads.Pairs, shape: tuple[int, int, int, int]) -> Any:
    torch = need("torch", "train")
    nn, (L, D, R, E), C = torch.nn, shape, len(pairs)
    entered, target = torch.from_numpy(pairs.layer + 1), torch.from_numpy(pairs.target)

    class Network(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.state = heads.uniform(torch, L, D, R)
            self.before = nn.Parameter(torch.zeros(L, D, R), requires_grad=settings.past)
            self.shift = nn.Parameter(torch.zeros(C, 1, R))
            self.scores = heads.uniform(torch, C, R, E)
            self.bias = nn.Parameter(torch.zeros(C, 1, E))

        def forward(self, state: Any, before: Any) -> Any:
            inner = torch.bmm(state.transpose(0, 1), self.state)[entered] + self.shift
            if settings.past:
                if self.training:
                    before = before * (torch.rand(len(before), 1, 1, device=before.device) > LEFT_OUT)
                inner = inner + torch.bmm(before.transpose(0, 1), self.before)[target]
            inner = heads.dropped(torch, inner.relu(), settings.dropout, self.training)
            return torch.bmm(inner, self.scores) + self.bias

    return Network()
