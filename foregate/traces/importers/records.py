"""`records`: JSON lines, a record per (token, layer), as published for Mixtral. Repairs nothing; says what is missing.

    {"dataset": "humaneval", "problem_id": 0, "layer": 0, "experts": [6, 5], "gating_probs": [0.7, 0.3], "token_idx": 0}

The fields `dataset` (where --dataset is given) and `gating_probs` may be left out. A token whose record is missing in
some layers is kept, with -1 in those cells. All tokens are decode, and the source does not say which tokens they were.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from foregate.arrays import Bool, Float64, Int, Int64
from foregate.errors import SourceError
from foregate.spec import MoESpec
from foregate.traces.importers.interface import (
    expert_count,
    impossible,
    join,
    layer_numbers,
    origin,
    plural,
)
from foregate.traces.importers.jsonlines import column, line_of, list_column, read_table
from foregate.traces.schema import Prompt, Trace, narrowest_float, smallest_int
from foregate.traces.sources import Document, Meter, documents

UNKNOWN = "unknown (records)"
NAMED = 8  # problems that a note names before it says "and so many more"
SCHEMA = pa.schema(
    [
        ("dataset", pa.string()),
        ("layer", pa.int32()),
        ("experts", pa.list_(pa.int32())),
        ("gating_probs", pa.list_(pa.float64())),
        ("token_idx", pa.int32()),
    ]
)


@dataclass(frozen=True)
class _Records:
    """One file's records, R of them, in its order."""

    document: Document
    prompts: tuple[Prompt, ...]
    prompt: Int64  # [R] index into `prompts`
    layer: Int64  # [R] the file's own number
    token: Int64  # [R]
    experts: Int  # [R, k]
    weights: Float64 | None  # [R, k]


def read(
    sources: Sequence[Path],
    *,
    model: str | None = None,
    experts: int | None = None,
    layers: tuple[int, ...] | None = None,
    dataset: str | None = None,
    meter: Meter | None = None,
) -> Trace:
    """See `Importer`."""
    files = [_read(document, dataset, experts) for document in documents(sources, ".jsonl", meter)]
    _alike(files)
    own = layer_numbers(np.unique(files[0].layer).tolist(), layers, files[0].document.origin)
    for file in files[1:]:
        layer_numbers(np.unique(file.layer).tolist(), own, file.document.origin)
    count, notes = expert_count(max(int(file.experts.max()) for file in files), experts)
    spec = MoESpec(model or UNKNOWN, "decoder", own, count, files[0].experts.shape[1])
    traces = [_build(file, spec) for file in files]
    trace = join(traces, [file.document.origin for file in files])
    ranked = all(t.provenance.ranked for t in traces)
    said = (*notes, *trace.provenance.notes, "every token is taken as decode; which tokens they were is not known")
    return replace(trace, provenance=origin(sources, "records", *said, ranked=ranked))


def _read(document: Document, dataset: str | None, experts: int | None) -> _Records:
    table = read_table(document, SCHEMA, infer=True)
    ids = list_column(document, table, "experts")
    if bad := impossible(ids, experts):
        raise document.wrong(bad[1], line_of(document, bad[0]))
    numbers = {name: column(document, table, name).to_numpy().astype(np.int64) for name in ("layer", "token_idx")}
    for name, values in numbers.items():
        if values.min() < 0:
            raise document.wrong(f"{name} is negative", line_of(document, int(values.argmin())))
    prompts, prompt = _prompts(document, table, dataset)
    weights = _weights(document, table, ids.shape[1])
    return _Records(document, prompts, prompt, numbers["layer"], numbers["token_idx"], ids, weights)


def _prompts(document: Document, table: pa.Table, dataset: str | None) -> tuple[tuple[Prompt, ...], Int64]:
    """The prompts in order of first appearance, and each record's index into them."""
    problem = column(document, table, "problem_id").dictionary_encode()
    if not (pa.types.is_integer(problem.type.value_type) or pa.types.is_string(problem.type.value_type)):
        raise document.wrong(f"has problem_id of type {problem.type.value_type}; it must be a number or a string")
    named = pa.array([dataset] * table.num_rows) if dataset else column(document, table, "dataset")
    source = named.dictionary_encode()
    problems, sources = problem.dictionary.to_pylist(), source.dictionary.to_pylist()
    codes = source.indices.to_numpy().astype(np.int64) * len(problems) + problem.indices.to_numpy()
    kept, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.argsort(order)
    pairs = [(sources[code // len(problems)], problems[code % len(problems)]) for code in kept[order].tolist()]
    return tuple(Prompt(f"{d}/{p}", d, prefill=0) for d, p in pairs), rank[inverse]


def _weights(document: Document, table: pa.Table, k: int) -> Float64 | None:
    if table.column("gating_probs").null_count == table.num_rows:
        return None
    weights = list_column(document, table, "gating_probs")
    if weights.shape[1] != k:
        raise document.wrong(f"gating_probs has {weights.shape[1]} entries, but experts has {k}", line_of(document, 0))
    bad = np.flatnonzero(~np.isfinite(weights).all(axis=1))
    if len(bad):
        raise document.wrong("gating_probs holds a weight that is not a number", line_of(document, int(bad[0])))
    return weights


def _alike(files: list[_Records]) -> None:
    """Only files of one model, with the same columns, make one trace."""
    first = files[0]
    for file in files[1:]:
        if file.experts.shape[1] != first.experts.shape[1]:
            raise SourceError(
                f"{file.document.origin} routes to {file.experts.shape[1]} experts a token, but "
                f"{first.document.origin} to {first.experts.shape[1]}; import one model at a time"
            )
        if (file.weights is None) != (first.weights is None):
            bare, full = (file, first) if file.weights is None else (first, file)
            raise SourceError(
                f"{bare.document.origin} has no gating_probs, but {full.document.origin} has; import them one at a time"
            )


def _build(file: _Records, spec: MoESpec) -> Trace:
    """Records scattered into rows: a row per (prompt, token_idx), ordered by both."""
    keys, row = np.unique(file.prompt << 32 | file.token, return_inverse=True)
    sequence, position = keys >> 32, keys & 0xFFFFFFFF
    layer = np.searchsorted(np.array(spec.layer_ids), file.layer)
    cell = row * spec.num_layers + layer
    _refuse_repeats(file, cell)
    T, L, k = len(keys), spec.num_layers, spec.top_k
    experts = np.full((T * L, k), -1, dtype=smallest_int(spec.num_experts - 1))
    experts[cell] = file.experts
    weights = None
    ranked = False
    if file.weights is not None:
        narrow = narrowest_float(file.weights)
        weights = np.zeros((T * L, k), dtype=narrow.dtype)
        weights[cell] = narrow
        ranked = bool((file.weights[:, :1] >= file.weights).all())
    counts = np.bincount(file.prompt * L + layer, minlength=len(file.prompts) * L).reshape(-1, L)
    rows = np.bincount(sequence, minlength=len(file.prompts))
    ends = np.zeros_like(counts)
    np.maximum.at(ends, (file.prompt, layer), file.token + 1)
    notes = _missing(file, counts, rows, (ends == counts).all(axis=1))
    if weights is None:
        notes = (*notes, f"{file.document.name} has no gating_probs: the order of its ids is not taken as a ranking")
    return Trace(
        spec=spec,
        sequence=sequence.astype(np.int32),
        position=position.astype(np.int32),
        step=np.arange(T, dtype=np.int32),
        token_id=np.full(T, -1, dtype=np.int32),
        experts=experts.reshape(T, L, k),
        weights=None if weights is None else weights.reshape(T, L, k),
        hidden=None,
        prompts=file.prompts,
        provenance=origin([], "records", *notes, ranked=ranked),
    )


def _refuse_repeats(file: _Records, cell: Int64) -> None:
    order = np.argsort(cell, kind="stable")
    again = order[1:][np.diff(cell[order]) == 0]
    if len(again):
        row = int(again.min())
        what = f"{file.prompts[file.prompt[row]].name} has a second record of token_idx {file.token[row]}"
        raise file.document.wrong(f"{what} in layer {file.layer[row]}; keep one", line_of(file.document, row))


def _missing(file: _Records, counts: Int64, rows: Int64, gapless: Bool) -> tuple[str, ...]:
    """Notes on missing records.

    counts [P, L] records; rows [P] tokens; gapless [P] every layer numbers its records 0, 1, 2, ...: whoever dropped
    records numbered afterwards, and a hole's place in its layer is lost.
    """
    L = counts.shape[1]
    lost = rows * L - counts.sum(axis=1)
    holed = np.flatnonzero(lost)
    if not len(holed):
        return ()
    parts = [
        f"{file.prompts[p].name} lacks {lost[p]:,} of {rows[p] * L:,} (layers hold {counts[p].min()} to "
        f"{counts[p].max()} tokens)"
        for p in holed[:NAMED]
    ]
    parts += [f"{len(holed) - NAMED} more problems lack {lost[holed[NAMED:]].sum():,}"] if len(holed) > NAMED else []
    notes: tuple[str, ...] = (
        f"{plural(int(lost.sum()), 'record')} missing in {file.document.name}: {'; '.join(parts)}",
    )
    shifted = np.flatnonzero((lost > 0) & gapless)
    if len(shifted):
        short = counts[shifted] < rows[shifted, None]
        cells = int(counts[shifted][short].sum())
        notes += (
            f"{file.document.name} numbers token_idx without gaps in each layer, so where a layer lacks records, every "
            f"later one of it may sit on a token too early: up to {cells:,} of {int(counts.sum()):,} cells are in such "
            "layers",
        )
    return notes
