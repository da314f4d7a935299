"""A trace as JSON lines, the `records` format that `foregate import records` reads. No tokens, no hidden states.

One record per (token, layer), ordered by prompt, layer, token. A trace without weights gives records without
`gating_probs`. Absent cells give no record.
"""

import contextlib
import gzip
import json
import lzma
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from foregate.errors import TraceError
from foregate.traces.schema import Prompt, Trace
from foregate.traces.storage import replacing


def export_jsonl(trace: Trace, path: Path, advance: Callable[[float], None] = lambda share: None) -> int:
    """Write a trace's records to a file, compressed if it ends in .gz or .xz: whole, or not at all. Returns how many.

    advance  is told each share of the work that is done

    Raises: TraceError as `write_jsonl` does, StorageError where the disk refuses.
    """
    with replacing(path) as temporary, temporary.open("wb") as raw, _packed(raw, path.suffix) as out:
        return write_jsonl(trace, out, advance)


def write_jsonl(trace: Trace, out: BinaryIO, advance: Callable[[float], None] = lambda share: None) -> int:
    """Write a trace's records to an open stream. Returns how many; `advance` as in `export_jsonl`.

    Raises: TraceError if a cell has fewer experts than the others, which a record cannot say.
    """
    _refuse_part_cells(trace)
    numbers = _problem_numbers(trace.prompts)
    written = 0
    for rows in trace.sequences():
        prompt = int(trace.sequence[rows.start])
        head = f'{{"dataset": {json.dumps(trace.prompts[prompt].dataset)}, "problem_id": {json.dumps(numbers[prompt])}'
        for layer, own in enumerate(trace.spec.layer_ids):
            lines = list(_lines(trace, rows, layer, f'{head}, "layer": {own}, "experts": '))
            out.write("".join(lines).encode())
            written += len(lines)
        advance((rows.stop - rows.start) / len(trace))
    return written


def left_out(trace: Trace) -> tuple[str, ...]:
    """What the trace holds and records cannot carry."""
    parts = {
        "token ids": bool((trace.token_id >= 0).any()),
        "the text of tokens": trace.pieces is not None,
        "hidden states": trace.hidden is not None,
        "what was prefill": any(p.prefill for p in trace.prompts),
        "the number of experts": bool(trace.experts.max(initial=0) < trace.spec.num_experts - 1),
    }
    return tuple(name for name, there in parts.items() if there)


def _lines(trace: Trace, rows: slice, layer: int, head: str) -> Iterator[str]:
    experts, positions = trace.experts[rows, layer].tolist(), trace.position[rows].tolist()
    if trace.weights is None:
        for ids, position in zip(experts, positions, strict=True):
            if ids[0] >= 0:
                yield f'{head}{ids}, "token_idx": {position}}}\n'
        return
    weights = trace.weights[rows, layer].astype(np.float64).tolist()  # a double prints what JSON readers give back
    for ids, mixed, position in zip(experts, weights, positions, strict=True):
        if ids[0] >= 0:
            yield f'{head}{ids}, "gating_probs": {mixed}, "token_idx": {position}}}\n'


def _refuse_part_cells(trace: Trace) -> None:
    filled = (trace.experts >= 0).sum(axis=2)
    part = (filled > 0) & (filled < trace.spec.top_k)
    if part.any():
        row, layer = np.argwhere(part)[0]
        raise TraceError(
            f"token row {row}, layer {layer} has {filled[row, layer]} of {trace.spec.top_k} experts; "
            "records cannot say that some are absent, so this trace stays in Parquet"
        )


def _problem_numbers(prompts: tuple[Prompt, ...]) -> list[int] | list[str]:
    """`humaneval/0` of the data set `humaneval` is problem 0; if any name is not like that, all stay text."""
    names = [p.name.removeprefix(f"{p.dataset}/") for p in prompts]
    return [int(n) for n in names] if all(re.fullmatch(r"0|[1-9]\d{0,17}", n) for n in names) else names


@contextlib.contextmanager
def _packed(raw: BinaryIO, suffix: str) -> Iterator[BinaryIO]:
    if suffix == ".gz":
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", mtime=0) as out:  # no name, no time: same bytes
            yield cast(BinaryIO, out)
    elif suffix == ".xz":
        with lzma.LZMAFile(raw, "wb") as out:
            yield cast(BinaryIO, out)
    else:
        yield raw
