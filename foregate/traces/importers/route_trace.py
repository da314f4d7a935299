"""`route-trace`: the `# route_trace v1` CSV of llama.cpp forks, a row per (token, layer, slot).

    # route_trace v1
    # model=/data/Qwen3-30B-A3B-Q4_K_M.gguf arch=qwen3moe n_layer=48 n_expert=128 n_expert_used=6
    # layer=0 expert_bytes=3059712 dense_bytes=11953152
    turn,phase,step,layer,slot,expert,weight,residency,expert_bytes

A turn is one sequence. `step` counts its tokens, from 0. Phase 0 is the prompt, which llama.cpp carries in one forward
pass (some builds route only its last token through the last layer, for no other is needed), so its tokens share one
step. Phase 1 is decode, a step a token. What the recorder's own cache did (residency, bytes read) is not kept.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

import numpy as np
import pyarrow as pa

from foregate.arrays import Bool, Float, Int, Int64
from foregate.errors import SourceError
from foregate.spec import MoESpec
from foregate.traces.importers.delimited import integers, read_columns
from foregate.traces.importers.interface import impossible, join, layer_numbers, origin, plural
from foregate.traces.schema import Prompt, Trace, smallest_int
from foregate.traces.sources import Document, Meter, documents

MAGIC = b"# route_trace v1"
NUMBERS = ("turn", "phase", "step", "layer", "slot", "expert")


@dataclass(frozen=True)
class _Rows:
    """The table of one file, R rows."""

    first: int  # line of the first row
    numbers: dict[str, Int64]  # [R] each
    weights: Float  # [R]


@dataclass(frozen=True)
class _Header:
    """The comment lines at the top of a file."""

    lines: int
    model: str
    experts: int
    top_k: int
    bytes_of: dict[int, int]  # layer -> bytes of one of its experts


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
    traces: list[Trace] = []
    origins: list[str] = []
    for document in documents(sources, ".csv", meter):
        trace = _read(document, layers, experts, dataset)
        if traces and trace.spec != traces[0].spec:
            raise document.wrong(
                f"is of {trace.spec.model}, but {origins[0]} of {traces[0].spec.model} or of other layers; "
                "import one model at a time"
            )
        traces.append(trace)
        origins.append(document.origin)
    trace = join(traces, origins)
    spec = replace(trace.spec, model=model or trace.spec.model)
    notes = (*trace.provenance.notes, "tokens are not in the source; the recorder's own cache state is left out")
    return replace(trace, spec=spec, provenance=origin(sources, "route-trace", *notes))


def _read(document: Document, layers: tuple[int, ...] | None, experts: int | None, dataset: str | None) -> Trace:
    header = _header(document)
    if experts not in (None, header.experts):
        raise document.wrong(f"has {header.experts} experts a layer, not {experts}; leave --experts out", 2)
    columns = read_columns(document, (*NUMBERS, "weight"), skip=header.lines)
    skip, first = header.lines, header.lines + 2
    numbers = {name: integers(document, columns, name, skip=skip) for name in NUMBERS}
    if bad := impossible(numbers["expert"][:, None], header.experts):
        raise document.wrong(bad[1], first + bad[0])
    slot = numbers["slot"]
    if ((slot < 0) | (slot >= header.top_k)).any():
        row = int(((slot < 0) | (slot >= header.top_k)).argmax())
        raise document.wrong(f"slot {slot[row]} is outside 0..{header.top_k - 1}", first + row)
    own = layer_numbers(np.unique(numbers["layer"]).tolist(), layers, document.origin)
    rows = _Rows(first, numbers, _weights(document, columns["weight"], first))
    return _build(document, header, own, rows, dataset)


def _header(document: Document) -> _Header:
    if not document.data.startswith(MAGIC):
        raise document.wrong(f"does not begin with {MAGIC.decode()!r}", 1)
    lines = []
    for line in document.data.split(b"\n"):
        if not line.startswith(b"#"):
            break
        lines.append(line.decode(errors="replace"))
    values = {key: value for line in lines for key, value in re.findall(r"(model|n_expert\w*)=(\S+)", line)}
    try:
        model = PureWindowsPath(values["model"]).name  # splits at / as well as \
        experts, top_k = int(values["n_expert"]), int(values["n_expert_used"])
    except (KeyError, ValueError) as error:
        raise document.wrong(f"lacks model=, n_expert= or n_expert_used= in its header ({error})", 2) from error
    sizes = re.findall(r"layer=(\d+) expert_bytes=(\d+)", "\n".join(lines))
    return _Header(len(lines), model, experts, top_k, {int(layer): int(size) for layer, size in sizes})


def _weights(document: Document, texts: pa.Array, first: int) -> Float:
    """The printed weights: float32 where each prints back as it was read, else float64."""
    printed = texts.to_pylist()
    try:
        exact = np.array([float(text) for text in printed], dtype=np.float64)
    except ValueError:
        row = next(i for i, text in enumerate(printed) if not re.fullmatch(r"[-+.\deE]+", text.strip()))
        raise document.wrong(f"weight is {printed[row]!r}, not a number", first + row) from None
    if not np.isfinite(exact).all():
        row = int((~np.isfinite(exact)).argmax())
        raise document.wrong(f"weight is {printed[row]}, not a number", first + row)
    narrow = exact.astype(np.float32)
    back = (float(f"{value:.{_digits(text)}g}") for value, text in zip(narrow.tolist(), printed, strict=True))
    return narrow if all(b == e for b, e in zip(back, exact.tolist(), strict=True)) else exact


def _digits(text: str) -> int:
    """Significant digits of a printed number."""
    mantissa = re.sub(r"[eE].*|[-+.\s]", "", text)
    return max(len(mantissa.lstrip("0")), 1)


def _build(
    document: Document,
    header: _Header,
    own: tuple[int, ...],
    rows: _Rows,
    dataset: str | None,
) -> Trace:
    """Slots scattered into rows: a row per (turn, step), ordered by both."""
    numbers = rows.numbers
    tokens, row = np.unique(numbers["turn"] << 32 | numbers["step"], return_inverse=True)
    turns, sequence = np.unique(tokens >> 32, return_inverse=True)
    T, L, k = len(tokens), len(own), header.top_k
    layer = np.searchsorted(np.array(own), numbers["layer"])
    cell = (row * L + layer) * k + numbers["slot"]
    _refuse_repeats(document, rows, cell)
    experts = np.full(T * L * k, -1, dtype=smallest_int(header.experts - 1))
    experts[cell] = numbers["expert"]
    routed = experts.reshape(T, L, k)
    _refuse_part_cells(document, own, tokens, routed)
    mixed = np.zeros(T * L * k, dtype=rows.weights.dtype)
    mixed[cell] = rows.weights
    prefill = _prefill(document, numbers, sequence, row)
    stem = header.model.removesuffix(".gguf")
    name = document.name.removesuffix(".csv")
    lengths = np.bincount(sequence, weights=prefill).astype(int)
    starts = np.searchsorted(sequence, np.arange(len(turns)))
    passes = ~prefill | np.isin(np.arange(T), starts)  # the first token of a prompt opens its one pass
    return Trace(
        spec=MoESpec(header.model, "decoder", own, header.experts, k, _sizes(header, own)),
        sequence=sequence.astype(np.int32),
        position=(np.arange(T) - starts[sequence]).astype(np.int32),
        step=(np.cumsum(passes) - 1).astype(np.int32),
        token_id=np.full(T, -1, dtype=np.int32),
        experts=routed,
        weights=mixed.reshape(T, L, k),
        hidden=None,
        prompts=tuple(
            Prompt(f"{name}/turn-{t}", dataset or stem, n) for t, n in zip(turns, lengths.tolist(), strict=True)
        ),
        provenance=origin([], "route-trace", *_absent(document, own, routed, prefill), *_unsized(header, own)),
    )


def _prefill(document: Document, numbers: dict[str, Int64], sequence: Int64, row: Int64) -> Bool:
    """[T] whether a token is of its turn's prompt; prompts come before what was decoded."""
    phase = np.zeros(len(sequence), dtype=np.int64)
    phase[row] = numbers["phase"]
    turned_back = (np.diff(phase) < 0) & (np.diff(sequence) == 0)
    if not set(np.unique(phase).tolist()) <= {0, 1} or turned_back.any():
        raise document.wrong("has phases other than 0 (prompt), then 1 (decode), within a turn; record it again")
    prefill: Bool = phase == 0
    return prefill


def _refuse_repeats(document: Document, rows: _Rows, cell: Int64) -> None:
    order = np.argsort(cell, kind="stable")
    again = order[1:][np.diff(cell[order]) == 0]
    if len(again):
        row = int(again.min())
        where = ", ".join(f"{name} {rows.numbers[name][row]}" for name in ("turn", "step", "layer", "slot"))
        raise document.wrong(f"a second row of {where}; keep one", rows.first + row)


def _refuse_part_cells(document: Document, own: tuple[int, ...], tokens: Int64, routed: Int) -> None:
    filled = (routed >= 0).sum(axis=2)
    part = (filled > 0) & (filled < routed.shape[2])
    if part.any():
        token, layer = np.argwhere(part)[0]
        where = f"turn {tokens[token] >> 32}, step {tokens[token] & 0xFFFFFFFF}, layer {own[layer]}"
        raise SourceError(
            f"{document.origin} has {filled[token, layer]} of {routed.shape[2]} slots at {where}; get the whole file"
        )


def _absent(document: Document, own: tuple[int, ...], routed: Int, prefill: Bool) -> tuple[str, ...]:
    """Notes on cells without a row."""
    gone = routed[:, :, 0] < 0  # [T, L]
    last = int(gone[prefill, -1].sum())
    rest = int(gone.sum()) - last
    notes: tuple[str, ...] = ()
    if last:
        notes += (
            f"{document.name} has no routing of {plural(last, 'prompt token')} in its last layer ({own[-1]}): they are "
            "-1 there",
        )
    return (*notes, f"{document.name} lacks {plural(rest, 'other cell')}: they are -1") if rest else notes


def _sizes(header: _Header, own: tuple[int, ...]) -> tuple[int, ...] | None:
    return tuple(header.bytes_of[i] for i in own) if set(own) <= set(header.bytes_of) else None


def _unsized(header: _Header, own: tuple[int, ...]) -> tuple[str, ...]:
    return () if _sizes(header, own) else ("the header does not give expert_bytes of every layer: sizes are unknown",)
