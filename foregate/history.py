"""All that a predictor may know at a moment: Query. Two sources make it, and only these: `Replay` from a trace, and
`History` from a running model. Neither lets the future in.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.arrays import Float, Int, Int32, Int64
from foregate.spec import MoESpec
from foregate.traces.schema import Trace


@dataclass(frozen=True, eq=False)
class Past:
    """One sequence's tokens, whole; a query's row n may read the first `seen[n]` of them and nothing else.

    token_id [P], experts [P, L, k], weights [P, L, k] or None, residual [P, L, D] or None (see `Trace.residual`)
    """

    token_id: Int32
    experts: Int
    weights: Float | None
    residual: Float | None = None


@dataclass(frozen=True, eq=False)
class Query:
    """Which experts will `target` route these tokens to, when the layers up to `layer` have been routed?

    layer     the last routed layer; -1 before the first (then only token ids and the past are known)
    target    the layer asked about, > layer; `target - layer` is the distance
    token_id  [N]                 the tokens themselves, -1 = unknown
    routed    [N, layer + 1, k]   their routed sets so far, -1 = absent
    weights   [N, layer + 1, k]   or None
    past      earlier tokens of the same sequence
    seen      [N]                 how many of them each row may read
    hidden    [N, D]              router input of `layer`, or None
    residual  [N, D]              residual stream that enters the transformer layer of mixture `layer + 1`, or None. It
                                  is known once `layer`'s experts have run, or where dense layers follow, once they have
    """

    spec: MoESpec
    layer: int
    target: int
    token_id: Int32
    routed: Int
    weights: Float | None
    past: Past
    seen: Int64
    hidden: Float | None = None
    residual: Float | None = None

    @property
    def rows(self) -> int:
        """How many tokens are asked about (N)."""
        return len(self.token_id)

    @property
    def distance(self) -> int:
        """How many layers ahead it looks."""
        return self.target - self.layer


@dataclass(frozen=True, eq=False)
class Replay:
    """Queries of one recorded sequence.

    trace      the rows of one sequence
    as_decode  replay a prefill as if its tokens had come one by one (teacher-forced decoding); otherwise tokens
               that one forward pass carried cannot see each other, as when it ran
    """

    trace: Trace
    as_decode: bool = False

    def seen(self) -> Int64:
        """[T] how many earlier tokens each token may read."""
        if self.as_decode:
            return np.arange(len(self.trace), dtype=np.int64)
        return np.searchsorted(self.trace.step, self.trace.step, side="left").astype(np.int64)

    def query(self, layer: int, target: int, rows: slice | Int = slice(None)) -> Query:
        """Ask about `target` for some of the sequence's tokens, knowing their routing up to `layer`."""
        trace = self.trace
        return Query(
            spec=trace.spec,
            layer=layer,
            target=target,
            token_id=trace.token_id[rows],
            routed=trace.experts[rows, : layer + 1],
            weights=None if trace.weights is None else trace.weights[rows, : layer + 1],
            past=Past(trace.token_id, trace.experts, trace.weights, trace.residual),
            seen=self.seen()[rows],
            hidden=None if trace.hidden is None or layer < 0 else trace.hidden[rows, layer],
            residual=None if trace.residual is None else trace.residual[rows, layer + 1],
        )


class History:
    """One live sequence: `begin` a forward pass, `observe` each layer as its router decides, `query` in between.

    Where the residual stream is wanted too, `enter` hands it over before each mixture's transformer layer runs; asked
    between `observe` and `enter`, a query holds none. All of it is kept, 4 * L * D bytes a token.

    Buffers grow by doubling; queries are views.
    """

    def __init__(self, spec: MoESpec, *, weights: bool = True, hidden: bool = False, capacity: int = 256) -> None:
        shape = (capacity, spec.num_layers, spec.top_k)
        self.spec = spec
        self._token_id: Any = np.full(capacity, -1, dtype=np.int32)
        self._experts: Any = np.full(shape, -1, dtype=np.int16)
        self._weights: Any = np.zeros(shape, dtype=np.float32) if weights else None
        self._keep_hidden = hidden
        self._hidden: Float | None = None
        self._residual: Any = None  # [capacity, L, D], from the first `enter` on
        self._entered = -1  # the last layer that was entered
        self._past = 0  # tokens of earlier passes
        self._now = 0  # tokens of this pass
        self._layer = -1

    def begin(self, token_id: Int) -> None:
        """A forward pass starts on these tokens [N]; the previous pass is over."""
        self._past += self._now
        self._now = len(token_id)
        self._layer = self._entered = -1
        self._hidden = None
        self._grow(self._past + self._now)
        self._token_id[self._rows()] = token_id

    def observe(self, layer: int, experts: Int, weights: Float | None = None, hidden: Float | None = None) -> None:
        """The router of `layer` chose experts [N, k] with weights [N, k] on inputs hidden [N, D]."""
        assert layer > self._layer, f"layer {layer} was observed after layer {self._layer}"
        self._experts[self._rows(), layer] = experts
        if self._weights is not None and weights is not None:
            self._weights[self._rows(), layer] = weights
        self._hidden = hidden if self._keep_hidden else None
        self._layer = layer

    def enter(self, layer: int, residual: Float) -> None:
        """The residual stream [N, D] enters the transformer layer of mixture `layer`, the next to be observed."""
        assert layer == self._layer + 1, f"layer {layer} was entered after layer {self._layer} was observed"
        if not self._keep_hidden:
            return
        if self._residual is None:
            self._residual = np.zeros((*self._experts.shape[:2], residual.shape[1]), dtype=np.float32)
        self._residual[self._rows(), layer] = residual
        self._entered = layer

    def rewind(self, length: int) -> None:
        """The pass is over, and of all tokens only the first `length` stay: guesses that were rejected go."""
        end = self._past + self._now
        assert 0 <= length <= end, f"{length} of {end} tokens cannot stay"
        self._experts[length:end] = -1
        self._past, self._now = length, 0
        self._layer = self._entered = -1
        self._hidden = None

    @property
    def carried(self) -> Past:
        """Every token so far, those of this pass too; views."""
        end = self._past + self._now
        return Past(
            self._token_id[:end],
            self._experts[:end],
            None if self._weights is None else self._weights[:end],
            None if self._residual is None else self._residual[:end],
        )

    def query(self, target: int) -> Query:
        """Ask about a later layer for the tokens of this pass."""
        rows = self._rows()
        weights = self._weights
        return Query(
            spec=self.spec,
            layer=self._layer,
            target=target,
            token_id=self._token_id[rows],
            routed=self._experts[rows, : self._layer + 1],
            weights=None if weights is None else weights[rows, : self._layer + 1],
            past=self.carried,
            seen=np.full(self._now, self._past, dtype=np.int64),
            hidden=self._hidden,
            residual=self._residual[rows, self._layer + 1] if self._entered > self._layer else None,
        )

    def _rows(self) -> slice:
        return slice(self._past, self._past + self._now)

    def _grow(self, needed: int) -> None:
        if needed <= len(self._token_id):
            return
        extra = max(needed, 2 * len(self._token_id)) - len(self._token_id)
        self._token_id = _extend(self._token_id, extra, -1)
        self._experts = _extend(self._experts, extra, -1)
        if self._weights is not None:
            self._weights = _extend(self._weights, extra, 0)
        if self._residual is not None:
            self._residual = _extend(self._residual, extra, 0)


def _extend(array: Any, extra: int, fill: int) -> Any:
    return np.concatenate([array, np.full((extra, *array.shape[1:]), fill, dtype=array.dtype)])
