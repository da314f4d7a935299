"""An importer of your own: `rows`, a file for each prompt; a line for each token: its id, then each layer's experts.

17<TAB>3,7<TAB>0,2
"""

import numpy as np

from foregate import MoESpec, Trace
from foregate.traces.importers import IMPORTERS
from foregate.traces.importers.interface import expert_count, fits, impossible, join, origin
from foregate.traces.schema import Prompt, smallest_int
from foregate.traces.sources import documents


def read(sources, *, model=None, experts=None, layers=None, dataset=None, meter=None):
    """See `Importer`, which says what all of these are."""
    files = [(document, *_rows(document)) for document in documents(sources, ".rows", meter)]
    for document, _, routed in files:
        if bad := impossible(routed.reshape(len(routed), -1), experts):
            raise document.wrong(bad[1], line=bad[0] + 1)
        fits(layers, routed.shape[1], document.origin)
    count, inferred = expert_count(max(int(routed.max()) for *_, routed in files), experts)
    L, k = files[0][2].shape[1:]
    spec = MoESpec(model or "unknown (rows)", "decoder", layers or tuple(range(L)), count, k)
    said = origin(sources, "rows", *inferred, "every token is taken as decode; weights are not known", ranked=False)
    traces = [_trace(spec, said, Prompt(d.stem, dataset or "rows", prefill=0), ids, r) for d, ids, r in files]
    return join(traces, [document.origin for document, *_ in files])


def _rows(document):
    """Token ids [T] and experts [T, L, k] of one file."""
    ids, routed = [], []
    for number, line in enumerate(document.data.decode(errors="replace").splitlines(), 1):
        try:
            token, *sets = line.split("\t")
            ids.append(int(token))
            routed.append([[int(expert) for expert in cell.split(",")] for cell in sets])
            if np.shape(routed[-1]) != np.shape(routed[0]) or not sets:
                raise ValueError
        except ValueError:
            raise document.wrong("is no token id and one set of experts for each layer", line=number) from None
    return np.array(ids), np.array(routed)


def _trace(spec, said, prompt, ids, routed):
    T = np.arange(len(ids), dtype=np.int32)  # one pass a token
    experts = routed.astype(smallest_int(spec.num_experts - 1))
    return Trace(spec, np.zeros_like(T), T, T, ids.astype(np.int32), experts, None, None, (prompt,), said)


IMPORTERS["rows"] = read
