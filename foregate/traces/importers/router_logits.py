"""`router-logits`: a CSV of printed tensors, a row per prompt, as published for Switch-base-32's decoder.

    <hash>,0,"[tensor([0.5499, 0.1392, ...]), tensor([11]), tensor([...]), tensor([13]), ...]",tensor(0),1,"[...]",...

After the hash come triplets: step, then logits and chosen id of each layer in turn, then the token that went in. The
weight of an expert is the softmax of its layer's logits, derived from four printed digits. Read by pattern, never run.
"""

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from foregate.arrays import Float64, Int32, Int64
from foregate.errors import SourceError
from foregate.spec import MoESpec
from foregate.traces.importers.delimited import FIELD_LIMIT
from foregate.traces.importers.interface import fits, impossible, names_differ, origin
from foregate.traces.schema import Prompt, Trace, smallest_int
from foregate.traces.sources import Document, Meter, documents

UNKNOWN = "unknown (router-logits)"
DATASET = "router-logits"
VECTOR = re.compile(r"tensor\(\s*\[([^\]]*)\][^)]*\)")
SCALAR = re.compile(r"tensor\(\s*(\d+)[^)]*\)")
NUMBER = re.compile(r"[-+.\deE]+")


@dataclass(frozen=True)
class _Decoded:
    """One prompt: T steps."""

    name: str
    where: str
    tokens: Int64  # [T]
    logits: Float64  # [T, L, E]
    chosen: Int64  # [T, L]


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
    found = [prompt for document in documents(sources, ".csv", meter) for prompt in _read(document, experts)]
    _alike(found)
    prompts = tuple(Prompt(p.name, dataset or DATASET, prefill=0) for p in found)
    names_differ(prompts, [p.where for p in found])
    logits = np.concatenate([p.logits for p in found])
    chosen = np.concatenate([p.chosen for p in found])
    T, L, E = logits.shape
    fits(layers, L, found[0].where)
    lengths = [len(p.tokens) for p in found]
    trace = Trace(
        spec=MoESpec(model or UNKNOWN, "decoder", layers or tuple(range(L)), E, 1),
        sequence=np.repeat(np.arange(len(found), dtype=np.int32), lengths),
        position=np.concatenate([np.arange(n, dtype=np.int32) for n in lengths]),
        step=np.arange(T, dtype=np.int32),
        token_id=_tokens(found),
        experts=chosen[:, :, None].astype(smallest_int(E - 1)),
        weights=_softmax_of(logits, chosen)[:, :, None].astype(np.float32),
        hidden=None,
        prompts=prompts,
        provenance=origin(sources, "router-logits", *_notes(found, layers)),
    )
    agreed = float((logits.argmax(axis=2) == chosen).mean())
    return replace(trace, provenance=replace(trace.provenance, self_check=agreed))


def _read(document: Document, experts: int | None) -> Iterator[_Decoded]:
    csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(io.StringIO(document.data.decode(errors="replace"), newline=""))
    line = 1
    for row in reader:
        if row:
            yield _decode(document, row, line, experts)
        line = reader.line_num + 1


def _decode(document: Document, row: list[str], line: int, experts: int | None) -> _Decoded:
    if len(row) < 4 or len(row) % 3 != 1:
        what = f"a row of {len(row)} fields is not a name and triplets of step, tensors, token; get the whole file"
        raise document.wrong(what, line)
    steps = [_step(document, row, i, line) for i in range(1, len(row), 3)]
    shape = steps[0][1].shape
    for number, (_, logits, _) in enumerate(steps):
        if logits.shape != shape:
            what = f"step {number} has logits of {logits.shape[0]} layers x {logits.shape[1]} experts, step 0 of"
            raise document.wrong(f"{what} {shape[0]} x {shape[1]}; every step needs every layer", line)
    if experts not in (None, shape[1]):
        raise document.wrong(f"has logits of {shape[1]} experts, not {experts}; leave --experts out", line)
    tokens, logits, chosen = (np.array(values) for values in zip(*steps, strict=True))
    if bad := impossible(chosen, shape[1]):
        raise document.wrong(f"in step {bad[0]}, {bad[1]}", line)
    return _Decoded(row[0], f"{document.origin}, line {line}", tokens, logits, chosen)


def _step(document: Document, row: list[str], i: int, line: int) -> tuple[int, Float64, Int64]:
    """Token, logits [L, E] and chosen ids [L] of the triplet that begins at field `i`."""
    number = (i - 1) // 3
    token, tensors = SCALAR.fullmatch(row[i + 2].strip()), VECTOR.findall(row[i + 1])
    if row[i].strip() != str(number) or token is None or not tensors or len(tensors) % 2:
        what = f"the triplet of step {number} is not that step, pairs of tensors and a token; get the whole file"
        raise document.wrong(what, line)
    try:
        vectors = [[_number(text) for text in tensor.split(",")] for tensor in tensors]
        logits = np.array(vectors[0::2], dtype=np.float64)
        chosen = np.array([int(text) for text in tensors[1::2]], dtype=np.int64)
    except ValueError as error:
        what = f"step {number} has a tensor that is not plain numbers, as many in each layer"
        raise document.wrong(what, line) from error
    return int(token[1]), logits, chosen


def _number(text: str) -> float:
    """A finite number. Raises: ValueError for anything else, `nan` and `inf` among it."""
    if not NUMBER.fullmatch(text.strip()):
        raise ValueError(text)
    return float(text)


def _alike(found: list[_Decoded]) -> None:
    first = found[0]
    for prompt in found[1:]:
        if prompt.logits.shape[1:] != first.logits.shape[1:]:
            (L, E), (m, e) = prompt.logits.shape[1:], first.logits.shape[1:]
            raise SourceError(
                f"{prompt.where} has {L} layers x {E} experts, but {first.where} has {m} x {e}; import one model"
            )


def _softmax_of(logits: Float64, chosen: Int64) -> Float64:
    """[T, L] the softmax of the chosen expert."""
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    share: Float64 = np.take_along_axis(powers, chosen[:, :, None], axis=2)[:, :, 0] / powers.sum(axis=2)
    return share


def _tokens(found: list[_Decoded]) -> Int32:
    return np.concatenate([p.tokens for p in found]).astype(np.int32)


def _notes(found: list[_Decoded], layers: tuple[int, ...] | None) -> tuple[str, ...]:
    notes = ["weights are derived: the softmax of router logits that the source prints with about four digits"]
    starts = {int(p.tokens[0]) for p in found}
    if starts == {0}:
        notes.append("every prompt's first token is 0, the decoder start: tokens are those that went in")
    else:
        notes.append(f"prompts begin with tokens {sorted(starts)[:4]}: whether tokens went in or came out is not known")
    if layers is None:
        L = found[0].logits.shape[1]
        notes.append(f"the source does not number its layers: they are 0 to {L - 1} in its order (--layers names them)")
    return tuple(notes)
