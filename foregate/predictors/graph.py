"""A predictor as an ONNX graph: what it must offer for that, and the few lines that build one. Nothing is run here.

A predictor that offers `features` and `graph` can be exported; both are in its own file, beside `predict`.
"""

import json
from typing import Any, Protocol, runtime_checkable

import numpy as np

from foregate.errors import need
from foregate.history import Query
from foregate.spec import MoESpec

Array = np.ndarray[Any, Any]
OPSET = 17
IR = 8  # what onnxruntime has read since 2021


@runtime_checkable
class Exportable(Protocol):
    """What a predictor offers that can be written as a graph."""

    def features(self, query: Query) -> dict[str, Array] | None:
        """What the graph takes for a query, by input name; None where the predictor answers by its back-off."""

    def graph(self, spec: MoESpec) -> "Graph":
        """From those inputs to scores [N, E], as `predict` gives them for the model that it was fitted on; `answer` was
        called.
        """


class Graph:
    """An ONNX graph in the making: names of values go in, names of values come out.

    graph = Graph()
    rows = graph.input("rows", np.float32, "N", 37)
    graph.answer(graph("Softmax", graph("MatMul", rows, graph.constant(weights)), axis=1), experts=8)
    """

    def __init__(self) -> None:
        self._onnx = need("onnx", "export")
        self._nodes: list[Any] = []
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._constants: list[Any] = []

    def input(self, name: str, kind: Any, *shape: str | int) -> str:
        """An input; a dimension that is text may have any size."""
        self._inputs.append(self._onnx.helper.make_tensor_value_info(name, self._kind(kind), list(shape)))
        return name

    def constant(self, value: Any) -> str:
        """A learned array, or a number."""
        name = f"c{len(self._constants)}"
        self._constants.append(self._onnx.numpy_helper.from_array(np.asarray(value), name))
        return name

    def __call__(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Apply an operator of ONNX (https://onnx.ai/onnx/operators)."""
        name = f"v{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def row(self, table: Any, place: str) -> str:
        """One entry of a learned array's first axis."""
        return self("Gather", self.constant(table), place)

    def whole(self, value: str) -> str:
        """As int64, to look up by."""
        return self("Cast", value, to=self._kind(np.int64))

    def answer(self, scores: str, experts: int) -> None:
        """Which value the graph answers with: scores [N, experts]."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [scores], ["scores"]))
        info = self._onnx.helper.make_tensor_value_info("scores", self._kind(np.float32), ["N", experts])
        self._outputs.append(info)

    def model(self, header: dict[str, Any], version: str) -> Any:
        """The whole, as an onnx.ModelProto whose metadata says what it is and what goes in."""
        helper = self._onnx.helper
        assert self._outputs, "answer was not called"
        graph = helper.make_graph(self._nodes, "foregate", self._inputs, self._outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        model.producer_name, model.producer_version = "foregate", version
        texts = {"foregate.json": json.dumps(header), "inputs": json.dumps(self.inputs())}
        helper.set_model_props(model, texts)
        self._onnx.checker.check_model(model, full_check=True)
        return model

    def inputs(self) -> dict[str, str]:
        """Each input's type and shape: {"rows": "float32 [N, 37]"}."""
        names = {}
        for value in self._inputs:
            tensor = value.type.tensor_type
            kind = self._onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
            sizes = ", ".join(d.dim_param or str(d.dim_value) for d in tensor.shape.dim)
            names[value.name] = f"{kind} [{sizes}]"
        return names

    def _kind(self, kind: Any) -> int:
        return int(self._onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))


PARTS, ROUNDS = 16, 7  # a level is looked for in a sixteenth of the range, so many times over
ROOM = 20.0  # beyond the logits on either side


def share_out(graph: Graph, logits: str, top_k: int) -> str:
    """What `chances.shares` makes of logits [N, E] (E > top_k), to 1e-6: logistic functions of their distance from each
    row's own level, at which they sum to top_k, made to sum to one.
    """
    constant = graph.constant
    low = graph("Sub", graph("ReduceMin", logits, axes=[1]), constant(np.float32(ROOM)))
    high = graph("Add", graph("ReduceMax", logits, axes=[1]), constant(np.float32(ROOM)))
    part = graph("Mul", graph("Sub", high, low), constant(np.float32(1 / PARTS)))
    steps = constant(np.arange(1, PARTS, dtype=np.float32)[None])
    columns = graph("Unsqueeze", logits, constant(np.array([2])))
    for _ in range(ROUNDS):
        levels = graph("Unsqueeze", graph("Add", low, graph("Mul", part, steps)), constant(np.array([1])))
        sums = graph("ReduceSum", graph("Sigmoid", graph("Sub", columns, levels)), constant(np.array([1])), keepdims=0)
        above = graph("Cast", graph("Greater", sums, constant(np.float32(top_k))), to=1)
        low = graph("Add", low, graph("Mul", part, graph("ReduceSum", above, constant(np.array([1])))))
        part = graph("Mul", part, constant(np.float32(1 / PARTS)))
    chances = graph("Sigmoid", graph("Sub", logits, low))
    return graph("Div", chances, graph("ReduceSum", chances, constant(np.array([1]))))


def unit(graph: Graph, state: str) -> str:
    """What `heads.unit` makes of states [N, D]."""
    mean = graph("ReduceMean", graph("Mul", state, state), axes=[1])
    return graph("Div", state, graph("Sqrt", graph("Add", mean, graph.constant(np.float32(1e-12)))))


def draw_out(graph: Graph, logits: str, top_k: int) -> str:
    """What `chances.drawn` makes of logits [N, E] (E > top_k), to 1e-6: the logarithm of the draws is looked for as in
    `share_out`.
    """
    constant = graph.constant
    share = graph("Softmax", logits, axis=1)
    columns = graph("Unsqueeze", share, constant(np.array([2])))
    none = graph("ReduceSum", graph("Mul", share, constant(np.float32(0))), constant(np.array([1])))
    low = graph("Add", none, constant(np.float32(np.log(top_k) - 1e-3)))
    part = graph("Add", none, constant(np.float32(3 * ROOM / PARTS)))
    steps = constant(np.arange(1, PARTS, dtype=np.float32)[None])
    for _ in range(ROUNDS):
        draws = graph("Exp", graph("Add", low, graph("Mul", part, steps)))
        missed = graph("Exp", graph("Neg", graph("Mul", columns, graph("Unsqueeze", draws, constant(np.array([1]))))))
        sums = graph("ReduceSum", graph("Sub", constant(np.float32(1)), missed), constant(np.array([1])), keepdims=0)
        below = graph("Cast", graph("Less", sums, constant(np.float32(top_k))), to=1)
        low = graph("Add", low, graph("Mul", part, graph("ReduceSum", below, constant(np.array([1])))))
        part = graph("Mul", part, constant(np.float32(1 / PARTS)))
    missed = graph("Exp", graph("Neg", graph("Mul", share, graph("Exp", low))))
    chances = graph("Sub", constant(np.float32(1)), missed)
    return graph("Div", chances, graph("ReduceSum", chances, constant(np.array([1]))))
