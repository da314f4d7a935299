"""A trace of some of its mixture layers alone: the same routing, cheaper to learn."""

from dataclasses import replace

from foregate.errors import ChoiceError
from foregate.traces.schema import Trace


def some_layers(trace: Trace, first: int, last: int) -> Trace:
    """The trace of mixture layers first..last alone, both included and counted from 0.

    Raises: ChoiceError if it has no such layers.
    """
    layers = trace.spec.num_layers
    if not 0 <= first < last < layers:
        raise ChoiceError(f"layers {first}-{last} are not two or more of this trace's 0-{layers - 1}")
    part = slice(first, last + 1)
    spec, sizes = trace.spec, trace.spec.expert_bytes
    return replace(
        trace,
        spec=replace(spec, layer_ids=spec.layer_ids[part], expert_bytes=None if sizes is None else sizes[part]),
        experts=trace.experts[:, part],
        weights=None if trace.weights is None else trace.weights[:, part],
        hidden=None if trace.hidden is None else trace.hidden[:, part],
        residual=None if trace.residual is None else trace.residual[:, part],
        answers=None if trace.answers is None else trace.answers[:, part],
    )
