"""Recorded routing as the passes of a run: which experts each layer of each pass needs, and for how many tokens.

Says nothing of caches or time.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from foregate.arrays import Bool, Int32, Int64
from foregate.errors import ChoiceError, TraceError
from foregate.memory.replay import next_uses
from foregate.traces.schema import Trace


@dataclass(frozen=True, eq=False)
class Passes:
    """P forward passes through L mixture layers of E experts each; n experts are demanded in all.

    layers, num_experts, top_k
    as_decode                  every token had a pass of its own, and could see all tokens before
    starts   Int64[P * L + 1]  layer l of pass p demands experts[starts[p * L + l] : starts[p * L + l + 1]]
    experts  Int32[n]          ascending, each once
    tokens   Int32[n]          rows that it computes there
    rows     Int32[P]          tokens that the pass carries
    fresh    Bool[P]           its sequences are all new: the pass resets what is known of the last ones
    prefill  Bool[P]           it carries tokens of a prefill, as such
    prompt   Int32[P]          the first of its sequences, as the trace counts them
    row_of   Int64[T]          rows of the trace, pass by pass
    firsts   Int64[P + 1]      pass p carries row_of[firsts[p] : firsts[p + 1]]
    """

    layers: int
    num_experts: int
    top_k: int
    as_decode: bool
    starts: Int64
    experts: Int32
    tokens: Int32
    rows: Int32
    fresh: Bool
    prefill: Bool
    prompt: Int32
    row_of: Int64
    firsts: Int64

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def demanded(self) -> int:
        """Experts demanded in all."""
        return len(self.experts)

    @property
    def largest(self) -> int:
        """Experts of the largest set."""
        return int(np.diff(self.starts).max(initial=0))

    @property
    def carried(self) -> int:
        """Tokens of all passes."""
        return int(self.rows.sum())

    def next_uses(self) -> Int64:
        """[n] the layer of the run (pass * L + layer) that uses each expert next; far away where none does."""
        keys = np.repeat(np.arange(len(self.starts) - 1) % self.layers, np.diff(self.starts)) * self.num_experts
        found: Int64 = next_uses((keys + self.experts).astype(np.int32), self.starts, self.layers * self.num_experts)
        return found


def passes_of(
    trace: Trace, *, as_decode: bool = False, batch: int | None = None, max_tokens: int | None = None
) -> Passes:
    """The passes of a trace.

    as_decode   a pass for every token, a prefill's too; otherwise the passes that ran
    batch       so many sequences at a time: their first passes together, then their second ones, and so on, until all
                have ended; None: as they ran (as decode: one sequence after the other)
    max_tokens  of each sequence, from its start; None: all

    Raises: ChoiceError for an impossible batch, TraceError for a trace without tokens.
    """
    for name, value in (("batch", batch), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ChoiceError(f"{name} is {value}; it must be at least 1")
    if len(trace) == 0:
        raise TraceError("the trace has no tokens to simulate")
    spec = trace.spec
    order, number = _numbered(trace, as_decode, batch)
    if max_tokens is not None:
        lengths = np.diff([*(rows.start for rows in trace.sequences()), len(trace)])
        place = np.arange(len(trace)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        order = order[place[order] < max_tokens]
    ahead = np.zeros(len(trace), np.bool_) if as_decode else trace.prefill
    firsts = np.r_[np.flatnonzero(np.r_[True, np.diff(number[order]) != 0]), len(order)].astype(np.int64)
    experts = np.ascontiguousarray(trace.experts).astype(np.int32)
    starts, ids, tokens = _sets(experts, order, firsts, spec.num_experts)
    return Passes(
        spec.num_layers,
        spec.num_experts,
        spec.top_k,
        as_decode,
        starts,
        ids,
        tokens,
        rows=np.diff(firsts).astype(np.int32),
        fresh=_fresh(trace.sequence[order].astype(np.int64), firsts),
        prefill=np.maximum.reduceat(ahead[order], firsts[:-1]),
        prompt=trace.sequence[order[firsts[:-1]]].astype(np.int32),
        row_of=order,
        firsts=firsts,
    )


def _numbered(trace: Trace, as_decode: bool, batch: int | None) -> tuple[Int64, Int64]:
    """Rows in the order of their passes, and the number of each row's pass."""
    if batch is None and not as_decode:
        number = trace.step.astype(np.int64)
        return np.argsort(number, kind="stable"), number
    inner = np.empty(len(trace), np.int64)  # a row's pass within its sequence
    for rows in trace.sequences():
        steps = trace.step[rows]
        inner[rows] = np.arange(len(steps)) if as_decode else np.r_[0, np.cumsum(np.diff(steps) != 0)]
    group = trace.sequence.astype(np.int64) // (batch or 1)
    number = group * (int(inner.max()) + 1) + inner
    return np.argsort(number, kind="stable"), number


@njit(cache=True)  # type: ignore[untyped-decorator]
def _fresh(sequence: Int64, firsts: Int64) -> Bool:
    seen = np.zeros(sequence.max() + 1, np.bool_)
    fresh = np.ones(len(firsts) - 1, np.bool_)
    for p in range(len(fresh)):
        for row in range(firsts[p], firsts[p + 1]):
            fresh[p] &= not seen[sequence[row]]
        for row in range(firsts[p], firsts[p + 1]):
            seen[sequence[row]] = True
    return fresh


@njit(cache=True)  # type: ignore[untyped-decorator]
def _sets(experts: Int32, order: Int64, firsts: Int64, num_experts: int) -> tuple[Int64, Int32, Int32]:
    _, L, k = experts.shape
    P = len(firsts) - 1
    starts = np.zeros(P * L + 1, np.int64)
    ids, tokens = np.empty(experts.size, np.int32), np.empty(experts.size, np.int32)
    uses = np.zeros((L, num_experts), np.int32)
    n = 0
    for p in range(P):
        for row in range(firsts[p], firsts[p + 1]):
            for layer in range(L):
                for j in range(k):
                    if experts[order[row], layer, j] >= 0:
                        uses[layer, experts[order[row], layer, j]] += 1
        for layer in range(L):
            for e in range(num_experts):
                if uses[layer, e] > 0:
                    ids[n], tokens[n] = e, uses[layer, e]
                    uses[layer, e] = 0
                    n += 1
            starts[p * L + layer + 1] = n
    return starts, ids[:n].copy(), tokens[:n].copy()
