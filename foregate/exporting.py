"""A fitted predictor as an ONNX file: that it scores the same, and what both cost. The graph is the predictor's own."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foregate.errors import ChoiceError, need
from foregate.history import History, Query, Replay
from foregate.predictors import PREDICTORS
from foregate.predictors.base import HIDDEN, Predictor
from foregate.predictors.graph import Exportable
from foregate.predictors.storage import header_of
from foregate.spec import MoESpec
from foregate.traces.schema import Trace
from foregate.traces.storage import replacing

BATCHES = (1, 8)
STEPS = 20  # forward passes that are asked about, for each batch
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Cost:
    """Microseconds of one prediction for one layer, its features included: the median over layers and steps.

    batch     tokens of a step
    foregate  by `predict`
    onnx      by onnxruntime on one thread
    """

    batch: int
    foregate: float
    onnx: float


@dataclass(frozen=True)
class Export:
    """What came of it.

    inputs      the graph's inputs, their types and shapes
    difference  the largest between a score of `predict` and onnxruntime's
    queries     how many were asked
    routing     what they were: "random", or the traces' model
    costs       for each of BATCHES
    """

    inputs: dict[str, str]
    difference: float
    queries: int
    routing: str
    costs: tuple[Cost, ...]


def export(predictor: Predictor, spec: MoESpec, path: Path, trace: Trace | None = None) -> Export:
    """Write a predictor's graph, and hold it against the predictor.

    spec   the model that it was fitted on
    trace  whose routing both are asked about; None: random routing

    Raises: ChoiceError for a predictor without a graph, or one that needs what only a trace has.
    """
    if not isinstance(predictor, Exportable):
        raise ChoiceError(f"{_name(predictor)} cannot be written as a graph; those that can: {', '.join(exportable())}")
    if trace is None and predictor.needs & HIDDEN:
        raise ChoiceError(f"{_name(predictor)} reads hidden states; give a --trace that has them")
    graph = predictor.graph(spec)
    model = graph.model(header_of(predictor, spec), _version()).SerializeToString()
    session = _session(model)
    differences: list[float] = []
    costs = []
    for batch in BATCHES:
        queries = list(_random(spec, batch) if trace is None else _recorded(trace, batch))
        costs.append(_held_against(predictor, session, queries, differences, batch))
    assert max(differences) <= TOLERANCE, f"the graph of {_name(predictor)} differs by {max(differences):.1e}"
    with replacing(path) as temporary:
        temporary.write_bytes(model)
    routing = "random" if trace is None else trace.spec.model
    return Export(graph.inputs(), max(differences), len(differences), routing, tuple(costs))


def exportable() -> list[str]:
    """Names of the predictors that have a graph."""
    return sorted(name for name, kind in PREDICTORS.items() if issubclass(kind, Exportable))


def _held_against(predictor: Any, session: Any, queries: Sequence[Query], differences: list[float], batch: int) -> Cost:
    """What a prediction costs either way; `differences` grows by one a query."""
    ours, theirs = [], []
    for query in queries:
        features = predictor.features(query)
        if features is None:
            continue
        answered = session.run(None, features)[0]
        differences.append(float(np.abs(answered - predictor.predict(query)).max()))
        ours.append(_timed(lambda query=query: predictor.predict(query)))  # type: ignore[misc]
        theirs.append(_timed(lambda query=query: session.run(None, predictor.features(query))))  # type: ignore[misc]
    if not ours:
        raise ChoiceError(f"{_name(predictor)} learned nothing that these {len(queries)} queries ask for")
    return Cost(batch, float(np.median(ours)), float(np.median(theirs)))


def _timed(call: Callable[[], Any]) -> float:
    """Microseconds."""
    started = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - started) / 1e3


def _random(spec: MoESpec, batch: int) -> Iterator[Query]:
    """Every layer of STEPS forward passes of `batch` tokens, routed at random."""
    rng = np.random.default_rng(0)
    live = History(spec)
    for _ in range(STEPS):
        live.begin(rng.integers(1000, size=batch))
        for layer in range(spec.num_layers - 1):
            experts = rng.random((batch, spec.num_experts)).argsort(axis=1)[:, : spec.top_k]
            weights = -np.sort(-rng.dirichlet(np.ones(spec.top_k), size=batch).astype(np.float32), axis=1)
            live.observe(layer, experts, weights)
            yield live.query(layer + 1)


def _recorded(trace: Trace, batch: int) -> Iterator[Query]:
    """Every layer of STEPS forward passes of `batch` tokens, each its prompt's next ones."""
    steps = 0
    for rows in trace.sequences():
        replay = Replay(trace.take(rows), as_decode=True)
        for start in range(0, len(replay.trace) - batch + 1, batch):
            if steps == STEPS:
                return
            steps += 1
            for target in range(1, trace.spec.num_layers):
                yield replay.query(target - 1, target, slice(start, start + batch))


def _session(model: bytes) -> Any:
    runtime = need("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return runtime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _name(predictor: Predictor) -> str:
    return next(name for name, kind in PREDICTORS.items() if kind is type(predictor))


def _version() -> str:
    import foregate

    return foregate.__version__
