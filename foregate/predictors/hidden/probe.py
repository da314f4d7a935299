"""A linear look at the router input of the last routed layer: what of a later layer's choice stands in it already."""

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
from foregate.predictors.graph import Graph, share_out
from foregate.predictors.hidden import heads
from foregate.predictors.space import Choice, Range

if TYPE_CHECKING:
    from foregate.spec import MoESpec
    from foregate.traces.schema import Trace


@final
@dataclass
class Probe(Predictor):
    """A linear map for each last routed layer and target, from that layer's router input (the residual stream before
    its experts add to it, normed) to the routed set, by cross entropy. A temperature for each, fitted on what judges,
    makes probabilities of the scores.

    It keeps the epoch that is best on the validation trace, or on held-out training prompts (see MLP). Layer frequency
    where no router input is at hand, and farther ahead than it learned.

    rank      each map is the product of one to so many numbers and one from them; 0 = a full map
    learning_rate, weight_decay, batch (tokens), epochs, seed
    horizon   the largest distance it learns
    threads   CPU threads that fit; with one, a seed gives the same weights however many there are
    device    where torch fits, "cpu" or "cuda"; it always answers in numpy

    Source: linear probes, "Understanding intermediate layers using linear classifier probes" (Alain, Bengio 2016).
    """

    rank: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    batch: int = 256
    epochs: int = 12
    horizon: int = 1
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    frequency_: Float32 = field(init=False, repr=False)
    maps_: dict[str, Float32] = field(init=False, repr=False)  # "0" [C, D, E], or "0" [C, D, R] and "1" [C, R, E]
    bias_: Float32 = field(init=False, repr=False)  # [C, E]
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"hidden"})
    space: ClassVar[Mapping[str, Choice]] = {
        "rank": Range(0, 64),
        "learning_rate": Range(2e-4, 2e-2, log=True),
        "weight_decay": Range(1e-4, 1.0, log=True),
    }

    def fit(self, trace: "Trace", validation: "Trace | None" = None) -> Self:
        if trace.hidden is None:
            raise TraceError(f"the trace of {trace.spec.model} has no hidden states; record it with --hidden")
        if self.rank < 0:
            raise ChoiceError(f"rank is {self.rank}; it must be 0 (a full map) or more")
        pairs = heads.Pairs.of(trace.spec, self.horizon, first=0)
        self.frequency_ = layer_frequency(trace)
        mean, scale = heads.standard(trace.hidden)

        def inputs(part: "Trace", rows: Int64) -> tuple[Float32]:
            assert part.hidden is not None
            return ((part.hidden[rows] - mean) * scale,)

        learned, judged = heads.parted(trace, validation, pairs, inputs, self.seed)
        shape = (trace.hidden.shape[2], self.rank, trace.spec.num_experts)
        module = heads.fit(lambda: _network(pairs, shape), heads.cross_entropy, learned, judged, self)
        state = {name: tensor.numpy() for name, tensor in module.state_dict().items()}
        maps = [state[f"maps.{i}"] for i in range(2 if self.rank else 1)]
        cooled = 1 / heads.temperatures(module, judged)
        maps[-1], bias = maps[-1] * cooled[:, None, None], state["bias"][:, 0] * cooled[:, None]
        maps[0] = maps[0] * scale[pairs.layer][:, :, None]  # what standardizes becomes part of the map
        whole = maps[0] @ maps[1] if self.rank else maps[0]
        self.bias_ = bias - np.einsum("cd,cde->ce", mean[pairs.layer], whole)
        self.maps_ = {str(i): array for i, array in enumerate(maps)}
        return self

    def predict(self, query: Query) -> Float32:
        place = heads.place_of(query, self.horizon, first=0)
        if place is None or query.hidden is None:
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        state = query.hidden.astype(np.float32)
        for i in range(len(self.maps_)):
            state = state @ self.maps_[str(i)][place]
        return chances.shares(state + self.bias_[place], query.spec.top_k)

    def features(self, query: Query) -> dict[str, Any] | None:
        """hidden [N, D] the router input of the last routed layer; place, of that layer and the target (place_of)."""
        place = heads.place_of(query, self.horizon, first=0)
        if place is None or query.hidden is None:
            return None
        return {"hidden": query.hidden.astype(np.float32), "place": np.array(place)}

    def graph(self, spec: "MoESpec") -> Graph:
        """What `predict` does, as a graph."""
        graph = Graph()
        state, place = graph.input("hidden", np.float32, "N", self.maps_["0"].shape[1]), graph.input("place", np.int64)
        for i in range(len(self.maps_)):
            state = graph("MatMul", state, graph.row(self.maps_[str(i)], place))
        logits = graph("Add", state, graph.row(self.bias_, place))
        graph.answer(share_out(graph, logits, spec.top_k), spec.num_experts)
        return graph

    def covers(self, query: Query) -> Bool:
        known = query.hidden is not None and heads.place_of(query, self.horizon, first=0) is not None
        return everywhere(query) if known else ~everywhere(query)


def _network(pairs: heads.Pairs, shape: tuple[int, int, int]) -> Any:
    torch = need("torch", "train")
    (D, R, E), C = shape, len(pairs)
    layer = torch.from_numpy(pairs.layer)

    class Network(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            shapes = [(C, D, R), (C, R, E)] if R else [(C, D, E)]
            self.maps = torch.nn.ParameterList(heads.uniform(torch, *shape) for shape in shapes)
            self.bias = torch.nn.Parameter(torch.zeros(C, 1, E))

        def forward(self, hidden: Any) -> Any:
            state = hidden.transpose(0, 1)[layer]
            for one in self.maps:
                state = torch.bmm(state, one)
            return state + self.bias

    return Network()
