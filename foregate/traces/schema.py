"""What a trace is: the routing decisions that a model really executed, a row per token. No files here."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from foregate.arrays import Bool, Float, Int, Int32
from foregate.errors import TraceError
from foregate.spec import MoESpec


@dataclass(frozen=True)
class Prompt:
    """One sequence's origin.

    name      unique within its data set, e.g. "humaneval/0"
    dataset   what a split by data set goes by
    prefill   how many of the sequence's first positions were carried by prefill; the later ones were decoded
    """

    name: str
    dataset: str
    prefill: int


@dataclass(frozen=True)
class Provenance:
    """Where a trace comes from, and what was done to it.

    source      files or model it was made from
    format      the importer's name, or "recorded"
    ranked      the first expert of a routed set is its primary (sources without weights may hold ids in any order)
    self_check  share of expert ids that re-running the routers reproduced; None where nothing could be re-run
    notes       what was dropped, repaired or must be known, a sentence each
    versions    libraries that made it
    settings    options that shaped it (batch size, dtype, ...)
    """

    source: tuple[str, ...]
    format: str
    ranked: bool = True
    self_check: float | None = None
    notes: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def note(self, *notes: str) -> "Provenance":
        """The same with more notes."""
        return replace(self, notes=(*self.notes, *notes))


@dataclass(frozen=True, eq=False)
class Trace:
    """Executed routing of one stack of mixture layers; rows are ordered by sequence, then position.

    sequence   [T]        index into `prompts`
    position   [T]        position in its sequence
    step       [T]        number of the forward pass that carried the token; unique over the whole trace
    token_id   [T]        the token that went in; -1 where the source does not say
    experts    [T, L, k]  routed ids, -1 = absent (capacity drop, missing record), the primary first where ranked
    weights    [T, L, k]  weights the experts' outputs were mixed with, or None
    hidden     [T, L, D]  router inputs (float16), or None
    residual   [T, L, D]  residual stream that entered the transformer layer of each mixture, before its norm and its
                          attention (float16, float32 where too large); at the model's first layer the embedding
    pieces                text of each token id, where the source names pieces of text instead of ids
    answers    [T, L]     cells that may be learned or tested as answers; None = all. Only leaking splits set it.
    """

    spec: MoESpec
    sequence: Int32
    position: Int32
    step: Int32
    token_id: Int32
    experts: Int
    weights: Float | None
    hidden: Float | None
    prompts: tuple[Prompt, ...]
    provenance: Provenance
    pieces: tuple[str, ...] | None = None
    answers: Bool | None = None
    residual: Float | None = None

    def __post_init__(self) -> None:
        T, L, k = len(self.sequence), self.spec.num_layers, self.spec.top_k
        for name, array, shape in (
            ("position", self.position, (T,)),
            ("step", self.step, (T,)),
            ("token_id", self.token_id, (T,)),
            ("experts", self.experts, (T, L, k)),
            ("weights", self.weights, (T, L, k)),
        ):
            if array is not None and array.shape != shape:
                raise TraceError(f"{name} has shape {array.shape}; {T} tokens of {self.spec.model} need {shape}")
        for name, array in (("hidden", self.hidden), ("residual", self.residual)):
            if array is not None and (array.ndim != 3 or array.shape[:2] != (T, L)):
                raise TraceError(f"{name} has shape {array.shape}; it must be {T} x {L} x its width")

    def __len__(self) -> int:
        return len(self.sequence)

    @property
    def has_tokens(self) -> bool:
        """Whether every token's id is known."""
        return len(self) > 0 and bool((self.token_id >= 0).all())

    @cached_property
    def primary(self) -> Int | None:
        """[T, L] the routed expert with the largest weight, -1 = absent; None where the source does not rank."""
        if self.weights is None:
            return self.experts[:, :, 0] if self.provenance.ranked else None
        weights = np.where(self.experts >= 0, self.weights, -np.inf)
        best = weights.argmax(axis=2)[:, :, None]
        primary: Int = np.take_along_axis(self.experts, best, axis=2)[:, :, 0]
        return primary

    @cached_property
    def prefill(self) -> Bool:
        """[T] whether the token was carried by prefill."""
        lengths = np.array([p.prefill for p in self.prompts], dtype=np.int64)
        prefill: Bool = self.position < lengths[self.sequence]
        return prefill

    def answers_at(self, layer: int) -> Int:
        """[T, k] routed ids of one layer that may be used as answers; all others are -1."""
        experts = self.experts[:, layer]
        if self.answers is None:
            return experts
        return np.where(self.answers[:, layer, None], experts, experts.dtype.type(-1))

    def take(self, rows: Int | Bool | slice) -> "Trace":
        """Some rows, in their order. Prompts that lose all rows leave the table."""
        sequence = self.sequence[rows]
        kept, renumbered = np.unique(sequence, return_inverse=True)
        return replace(
            self,
            sequence=renumbered.astype(np.int32).reshape(-1),
            position=self.position[rows],
            step=self.step[rows],
            token_id=self.token_id[rows],
            experts=self.experts[rows],
            weights=None if self.weights is None else self.weights[rows],
            hidden=None if self.hidden is None else self.hidden[rows],
            residual=None if self.residual is None else self.residual[rows],
            prompts=tuple(self.prompts[i] for i in kept),
            answers=None if self.answers is None else self.answers[rows],
        )

    def take_prompts(self, indices: Sequence[int]) -> "Trace":
        """The rows of some prompts (indices into `prompts`)."""
        return self.take(np.isin(self.sequence, np.asarray(indices, dtype=np.int64)))

    def sequences(self) -> Iterator[slice]:
        """The rows of each sequence, in order."""
        edges = np.flatnonzero(np.diff(self.sequence)) + 1
        bounds = [0, *edges.tolist(), len(self)] if len(self) else [0]
        for start, stop in itertools.pairwise(bounds):
            yield slice(start, stop)

    def steps(self) -> Iterator[Int]:
        """The rows of each forward pass, in the order the passes ran."""
        order = np.argsort(self.step, kind="stable")
        edges = np.flatnonzero(np.diff(self.step[order])) + 1
        yield from (rows for rows in np.split(order, edges) if len(rows))

    def without(self, *, weights: bool = False, hidden: bool = False) -> "Trace":
        """The same without its weights or hidden states (and residuals); `ranked` then says where the primary is."""
        trace = self
        if weights and self.weights is not None:
            order = np.argsort(np.where(self.experts >= 0, -self.weights, np.inf), axis=2, kind="stable")
            ranked = replace(self.provenance, ranked=True)
            experts = np.take_along_axis(self.experts, order, axis=2)
            trace = replace(trace, experts=experts, weights=None, provenance=ranked)
        return replace(trace, hidden=None, residual=None) if hidden else trace

    def equals(self, other: "Trace") -> bool:
        """Same routing, tokens, prompts and shape; where it came from does not matter."""
        same = self.spec == other.spec and self.prompts == other.prompts and self.pieces == other.pieces
        return same and all(
            _same(getattr(self, name), getattr(other, name))
            for name in ("sequence", "position", "step", "token_id", "experts", "weights", "hidden", "residual")
        )


def check(trace: Trace, where: str) -> Trace:
    """The trace, if what it says is possible.

    Raises: TraceError that names `where` and the first bad row.
    """
    if len(trace) == 0:
        raise TraceError(f"{where} holds no tokens")
    experts, top = trace.experts, trace.spec.num_experts
    _first_bad(where, (experts < -1) | (experts >= top), f"names an expert outside -1..{top - 1}")
    if trace.weights is not None:
        _first_bad(where, ~np.isfinite(trace.weights) & (experts >= 0), "holds a weight that is not a number")
    if (np.diff(trace.sequence) < 0).any() or trace.sequence.min() < 0 or trace.sequence.max() >= len(trace.prompts):
        raise TraceError(
            f"{where} has rows that are not ordered by sequence, or name a prompt that is not in its table"
        )
    same = np.diff(trace.sequence) == 0
    if (same & (np.diff(trace.position) <= 0)).any() or (same & (np.diff(trace.step) < 0)).any():
        raise TraceError(f"{where} has a sequence whose positions or steps do not increase")
    return trace


def concat(traces: Sequence[Trace]) -> Trace:
    """Several traces of one model as one; sequences and steps are renumbered.

    Raises: TraceError if they are of different models.
    """
    first = traces[0]
    if len(traces) == 1:
        return first
    for other in traces[1:]:
        if other.spec != first.spec:
            raise TraceError(
                f"cannot join {first.spec.model} ({_shape(first.spec)}) with {other.spec.model} "
                f"({_shape(other.spec)}); traces of different models are compared one at a time"
            )
    traces = _one_vocabulary(traces)
    sequence_shift = np.cumsum([0, *(len(t.prompts) for t in traces)])
    step_shift = np.cumsum([0, *(int(t.step.max(initial=-1)) + 1 for t in traces)])
    return Trace(
        spec=first.spec,
        sequence=np.concatenate([t.sequence + np.int32(s) for t, s in zip(traces, sequence_shift, strict=False)]),
        position=np.concatenate([t.position for t in traces]),
        step=np.concatenate([t.step + np.int32(s) for t, s in zip(traces, step_shift, strict=False)]),
        token_id=np.concatenate([t.token_id for t in traces]),
        experts=np.concatenate([t.experts for t in traces]),
        weights=_join([t.weights for t in traces]),
        hidden=_join([t.hidden for t in traces]),
        residual=_join([t.residual for t in traces]),
        prompts=tuple(p for t in traces for p in t.prompts),
        provenance=_join_provenance([t.provenance for t in traces]),
        pieces=traces[0].pieces,
    )


def smallest_int(top: int) -> np.dtype[Any]:
    """The smallest signed integer type that holds -1..top."""
    return np.dtype(np.min_scalar_type(-max(top, 1) - 1))


def narrowest_float(values: Float) -> Float:
    """The same numbers in the narrowest of float16, float32, float64 that loses none of them."""
    with np.errstate(over="ignore"):
        for kind in (np.float16, np.float32):
            narrow: Float = values.astype(kind)
            if np.array_equal(narrow.astype(values.dtype), values, equal_nan=True):
                return narrow
    return values


def _first_bad(where: str, bad: Bool, what: str) -> None:
    if bad.any():
        row, layer, _ = np.argwhere(bad)[0]
        raise TraceError(f"{where}: token row {row}, layer {layer} {what}")


def _same(a: Any, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return bool(np.array_equal(a, b, equal_nan=a.dtype.kind == "f"))


def _shape(spec: MoESpec) -> str:
    return f"{spec.stack}, {spec.num_layers} layers x {spec.top_k} of {spec.num_experts}"


def _join(arrays: list[Any]) -> Any:
    """Joined where all have it; a column that only some traces have is dropped."""
    return None if any(a is None for a in arrays) else np.concatenate(arrays)


def _join_provenance(parts: list[Provenance]) -> Provenance:
    checks = [p.self_check for p in parts]
    known = [c for c in checks if c is not None]
    return replace(
        parts[0],
        source=tuple(dict.fromkeys(s for p in parts for s in p.source)),
        ranked=all(p.ranked for p in parts),
        self_check=min(known) if len(known) == len(checks) else None,
        notes=tuple(dict.fromkeys(n for p in parts for n in p.notes)),
    )


def _one_vocabulary(traces: Sequence[Trace]) -> Sequence[Trace]:
    """Renumber token ids that stand for pieces of text, so that one piece has one id over all traces."""
    if all(t.pieces == traces[0].pieces for t in traces):
        return traces
    if any(t.pieces is None for t in traces):
        raise TraceError("cannot join a trace with token ids and one with pieces of text")
    pieces = tuple(dict.fromkeys(p for t in traces for p in t.pieces or ()))
    index = {piece: i for i, piece in enumerate(pieces)}
    joined = []
    for t in traces:
        table = np.array([index[p] for p in t.pieces or ()] + [-1], dtype=np.int32)
        joined.append(replace(t, token_id=table[t.token_id], pieces=pieces))
    return joined
