"""`vllm-logger`: JSON lines of a vLLM routing logger, one file per logged layer, rows aligned across the files.

    {"type": "meta", "model_id": "Qwen/Qwen1.5-MoE-A2.7B-Chat", "layers_logged": [0], "top_k": 4, ...}
    {"type": "route", "req_id": "r1", "token_idx": 0, "layer": 0, "topk_ids": [43, 5, 7, 58], "topk_weights": [...]}

`token_idx` restarts at 0 in each forward call; requests are not named. So calls are found from the restarts, and:

- Warm-up: leading calls of two rows or more that are all alike in every layer are the engine's dummy batches; dropped.
- Decode begins at the first call that has as many rows as the call after it, for a batch keeps its size from step to
  step while prompts differ in length. From there on calls may not grow; the calls before it are prefill.
- A prefill call is one sequence (how many prompts it carried is unknown), one step.
- In decode, `token_idx` is the batch slot. A slot keeps its request while the batch keeps its size, so each (run of
  calls of one size, slot) is a sequence. When a request ends, slots shift, and the others go on under new names.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from foregate.arrays import Float64, Int, Int64
from foregate.spec import MoESpec
from foregate.traces.importers.interface import expert_count, impossible, layer_numbers, origin, plural
from foregate.traces.importers.jsonlines import column, line_of, list_column, read_table
from foregate.traces.schema import Prompt, Trace, narrowest_float, smallest_int
from foregate.traces.sources import Document, Meter, documents

DATASET = "vllm-logger"
FRAGMENTS = (
    "requests are not named in the source: a request decodes as several sequences, one per batch size, so a split by "
    "prompt may put parts of one request on both sides"
)
SCHEMA = pa.schema(
    [
        ("type", pa.string()),
        ("model_id", pa.string()),
        ("layers_logged", pa.list_(pa.int32())),
        ("req_id", pa.string()),
        ("token_idx", pa.int32()),
        ("layer", pa.int32()),
        ("topk_ids", pa.list_(pa.int32())),
        ("topk_weights", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class _Layer:
    """What one file logged of one layer, R rows."""

    document: Document
    model: str
    layer: int
    rows: Int64  # [R] row of the file, its meta line being row 0
    slot: Int64  # [R] token_idx
    experts: Int  # [R, k]
    weights: Float64  # [R, k]

    def line(self, row: int) -> int:
        """The line of one row."""
        return line_of(self.document, int(self.rows[row]))


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
    found = [layer for document in documents(sources, ".jsonl", meter) for layer in _read(document, experts)]
    found.sort(key=lambda layer: layer.layer)
    _aligned(found)
    names = [layer.layer for layer in found]
    own = layer_numbers(names, layers or tuple(names), "the source")
    edges = _calls(found[0])
    routed = np.stack([layer.experts for layer in found], axis=1)  # [R, L, k]
    weights = np.stack([layer.weights for layer in found], axis=1)
    warm = _warm_up(edges, routed, weights)
    if warm == len(edges) - 1:
        raise found[0].document.wrong("holds nothing but the engine's warm-up; record some requests")
    count, notes = expert_count(int(routed.max()), experts)
    first = int(edges[warm])
    dropped = (f"{plural(first, 'warm-up row')} dropped: {plural(warm, 'leading call')} with all rows alike",)
    order, placed, prompts = _sequences(found[0], edges[warm:], dataset or DATASET)
    sequence, position, step = placed[order].T
    told = (*(dropped if warm else ()), *notes, *_phases_told(prompts), FRAGMENTS)
    return Trace(
        spec=MoESpec(model or found[0].model, "decoder", own, count, routed.shape[2]),
        sequence=sequence.astype(np.int32),
        position=position.astype(np.int32),
        step=step.astype(np.int32),
        token_id=np.full(len(order), -1, dtype=np.int32),
        experts=routed[first:][order].astype(smallest_int(count - 1)),
        weights=narrowest_float(weights[first:][order]),
        hidden=None,
        prompts=prompts,
        provenance=origin(sources, "vllm-logger", *told, ranked=bool((weights[:, :, :1] >= weights).all())),
    )


def _read(document: Document, experts: int | None) -> list[_Layer]:
    table = read_table(document, SCHEMA)
    kinds = column(document, table, "type").to_pylist()
    model = table.column("model_id")[0].as_py()
    logged = table.column("layers_logged")[0].as_py()
    if kinds[0] != "meta" or model is None or not logged:
        raise document.wrong("is not the meta line, with model_id and layers_logged, that the logger begins with", 1)
    strange = [i for i, kind in enumerate(kinds[1:], 1) if kind != "route"]
    if strange:
        what = f"type is {kinds[strange[0]]!r}; only route rows may follow the first line"
        raise document.wrong(what, line_of(document, strange[0]))
    if len(kinds) == 1:
        raise document.wrong("has a meta line but no rows; record some requests")
    return _split(document, table.slice(1), model, sorted(logged), experts)


def _split(document: Document, table: pa.Table, model: str, logged: list[int], experts: int | None) -> list[_Layer]:
    """The rows of each layer that the file logged."""
    ids = list_column(document, table, "topk_ids", skip=1)
    weights = list_column(document, table, "topk_weights", skip=1)
    if bad := impossible(ids, experts):
        raise document.wrong(bad[1], line_of(document, 1 + bad[0]))
    if weights.shape != ids.shape or not np.isfinite(weights).all():
        row = 0 if weights.shape != ids.shape else int((~np.isfinite(weights)).any(axis=1).argmax())
        what = f"topk_weights are not {ids.shape[1]} numbers, one for each of topk_ids"
        raise document.wrong(what, line_of(document, 1 + row))
    layer = column(document, table, "layer", skip=1).to_numpy()
    slot = column(document, table, "token_idx", skip=1).to_numpy().astype(np.int64)
    requests = column(document, table, "req_id", skip=1).unique()
    if len(requests) > 1:
        raise document.wrong(f"names {len(requests)} requests in req_id; this format has one name for all rows")
    own = layer_numbers(np.unique(layer).tolist(), tuple(logged), document.origin)
    rows = [np.flatnonzero(layer == number) for number in own]
    return [
        _Layer(document, model, n, r + 1, slot[r], ids[r], weights[r].astype(np.float64))
        for n, r in zip(own, rows, strict=True)
    ]


def _aligned(found: list[_Layer]) -> None:
    """All layers must be of one model and have the same calls."""
    first = found[0]
    for before, layer in itertools.pairwise(found):
        where = layer.document
        if layer.model != first.model:
            raise where.wrong(f"is of {layer.model}, but {first.document.origin} of {first.model}; import one model")
        if layer.layer == before.layer:
            raise where.wrong(f"has layer {layer.layer}, and so has {before.document.origin}; leave one out")
        if layer.experts.shape[1] != first.experts.shape[1]:
            what = (
                f"routes to {layer.experts.shape[1]} experts, but {first.document.origin} to {first.experts.shape[1]}"
            )
            raise where.wrong(f"{what}; import one model")
        R = min(len(layer.slot), len(first.slot))
        differs = layer.slot[:R] != first.slot[:R]
        if differs.any():
            row = int(differs.argmax())
            what = f"token_idx is {layer.slot[row]}, but {first.slot[row]} in the same row of {first.document.origin}"
            raise where.wrong(f"{what}; the files are not of one run", layer.line(row))
        if len(layer.slot) != len(first.slot):
            what = f"has {len(layer.slot)} rows, but {first.document.origin} has {len(first.slot)}"
            raise where.wrong(f"{what}; get whole files of one run")


def _calls(layer: _Layer) -> Int64:
    """[calls + 1] first row of each forward call, and the end."""
    starts = np.flatnonzero(layer.slot == 0)
    if not len(starts) or starts[0] != 0:
        raise layer.document.wrong(f"token_idx begins at {layer.slot[0]}, not at 0", layer.line(0))
    edges = np.append(starts, len(layer.slot))
    odd = layer.slot != np.arange(len(layer.slot)) - np.repeat(starts, np.diff(edges))
    if odd.any():
        row = int(odd.argmax())
        what = f"token_idx is {layer.slot[row]} after {layer.slot[row - 1]}; within a call it counts up by one"
        raise layer.document.wrong(what, layer.line(row))
    return edges


def _warm_up(edges: Int64, routed: Int, weights: Float64) -> int:
    """How many leading calls are dummy batches."""
    for call, (start, stop) in enumerate(itertools.pairwise(edges.tolist())):
        alike = (routed[start:stop] == routed[start]).all() and (weights[start:stop] == weights[start]).all()
        if stop - start < 2 or not alike:
            return call
    return len(edges) - 1


def _first_decode(sizes: list[int]) -> int:
    """The first call that has as many rows as its successor."""
    return next((i for i, (a, b) in enumerate(itertools.pairwise(sizes)) if a == b), len(sizes))


def _sequences(layer: _Layer, edges: Int64, dataset: str) -> tuple[Int64, Int64, tuple[Prompt, ...]]:
    """Which sequence, position and step each row after the warm-up has [R, 3], in what order to put the rows."""
    sizes = np.diff(edges).tolist()
    decode = _first_decode(sizes)
    _refuse_growth(layer, edges, sizes, decode)
    prompts = [Prompt(f"prefill-{i}", dataset, prefill=n) for i, n in enumerate(sizes[:decode])]
    placed = [np.stack([np.full(n, i), np.arange(n), np.full(n, i)], axis=1) for i, n in enumerate(sizes[:decode])]
    call = decode
    for run, (size, calls) in enumerate(itertools.groupby(sizes[decode:])):
        slots = np.arange(size) + len(prompts)
        prompts += [Prompt(f"decode-{run}/slot-{slot}", dataset, prefill=0) for slot in range(size)]
        for position, _ in enumerate(calls):
            placed.append(np.stack([slots, np.full(size, position), np.full(size, call)], axis=1))
            call += 1
    rows = np.concatenate(placed)
    return np.lexsort((rows[:, 1], rows[:, 0])), rows, tuple(prompts)


def _refuse_growth(layer: _Layer, edges: Int64, sizes: list[int], decode: int) -> None:
    for call in range(decode + 1, len(sizes)):
        if sizes[call] > sizes[call - 1]:
            what = (
                f"a call of {sizes[call]} rows follows one of {sizes[call - 1]}: new requests joined while others ran"
            )
            raise layer.document.wrong(
                f"{what}, and which rows are theirs is not in the source; import the part before this line",
                layer.line(int(edges[call])),
            )


def _phases_told(prompts: tuple[Prompt, ...]) -> tuple[str, ...]:
    calls = [p.prefill for p in prompts if p.prefill]
    if not calls:
        return ()
    return (
        f"{plural(len(calls), 'prefill call')} of {', '.join(map(str, calls[:8]))} tokens: each is one sequence, for "
        "where its prompts begin is not in the source",
    )
