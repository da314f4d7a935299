"""Makes a trace of the sequences that ran. Watches nothing: passes.py did."""

import numpy as np

from foregate.errors import TraceError
from foregate.runtime.passes import Sequence
from foregate.spec import MoESpec
from foregate.traces.schema import Prompt, Provenance, Trace, narrowest_float, smallest_int


def trace_of(sequences: list[Sequence], spec: MoESpec) -> Trace:
    """The trace, named by the order in which the sequences ran.

    Raises: TraceError if nothing ran.
    """
    sequences = [sequence for sequence in sequences if len(sequence)]
    if not sequences:
        raise TraceError(f"{spec.model} ran nothing since the last record")
    carried = [sequence.history.carried for sequence in sequences]
    lengths = [len(sequence) for sequence in sequences]
    _, step = np.unique(np.concatenate([s.steps for s in sequences]), return_inverse=True)
    weights = [past.weights for past in carried if past.weights is not None]
    return Trace(
        spec=spec,
        sequence=np.repeat(np.arange(len(sequences)), lengths).astype(np.int32),
        position=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        step=step.astype(np.int32),
        token_id=np.concatenate([past.token_id for past in carried]).astype(np.int32),
        experts=np.concatenate([past.experts for past in carried]).astype(smallest_int(spec.num_experts - 1)),
        weights=narrowest_float(np.concatenate(weights)),
        hidden=None,
        prompts=tuple(Prompt(f"run/{i}", "run", s.prefill) for i, s in enumerate(sequences)),
        provenance=Provenance((spec.model,), "recorded", notes=("recorded while the model ran from slots",)),
    )
