"""The Mixtral study's columns, for any number of layers, experts and top-k. What a row says; nothing is learned here.

    layer, experts after the primary [k - 1], weights [k], position, primaries of the layers so far [L]

with the last routed layer's experts and weights by rank: 37 columns for Mixtral's 32 layers of top-2. The distance to
the target follows where more than one is learned. Position is how many earlier tokens the row may read, so tokens of
one prefill pass all stand at its start. Absent experts and layers that are not routed yet are -1, absent weights NaN.
Where a trace does not rank its experts, they are taken as they come, and any of the routed set is as good an answer.

Source: "Cross-Layer Routing Patterns for MoE Optimization", its XGBoost and MLP.
"""

from dataclasses import dataclass, replace

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float, Float32, Int, Int64
from foregate.errors import TraceError
from foregate.history import Query, Replay
from foregate.spec import MoESpec
from foregate.traces.schema import Trace


@dataclass(frozen=True)
class Columns:
    """Where what stands in a row."""

    layers: int
    top_k: int
    horizon: int

    @classmethod
    def of(cls, spec: MoESpec, horizon: int) -> "Columns":
        """The columns of a model's rows."""
        return cls(spec.num_layers, spec.top_k, horizon)

    @property
    def width(self) -> int:
        """How many there are."""
        return 2 * self.top_k + 1 + self.layers + (self.horizon > 1)

    @property
    def experts(self) -> list[int]:
        """Those that hold expert ids."""
        k = self.top_k
        return [*range(1, k), *range(2 * k + 1, 2 * k + 1 + self.layers)]

    @property
    def numbers(self) -> list[int]:
        """Those that hold quantities: weights, position, distance."""
        k = self.top_k
        return [*range(k, 2 * k + 1), *range(2 * k + 1 + self.layers, self.width)]


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows with their answers: token[n] at layer[n], asked distance[n] layers ahead, is routed to answers[n].

    experts [T, L, k], weights [T, L, k] or [0, 0, 0], seen [T]; token, layer, distance [N]
    answers [N, 1] the primary; [N, k] the routed set, -1 = absent, where the trace does not rank its experts
    """

    columns: Columns
    experts: Int
    weights: Float32
    seen: Int64
    token: Int64
    layer: Int64
    distance: Int64
    answers: Int64

    @classmethod
    def of(cls, trace: Trace, horizon: int) -> "Examples":
        """Every row that has an answer which may be used. Raises: TraceError if there is none."""
        token, layer, distance, answers = [], [], [], []
        for target in range(1, trace.spec.num_layers):
            known = _answers(trace, target)
            rows = np.flatnonzero((known >= 0).any(axis=1))
            for ahead in range(1, min(horizon, target) + 1):
                token.append(rows)
                layer.append(np.full(len(rows), target - ahead))
                distance.append(np.full(len(rows), ahead))
                answers.append(known[rows].astype(np.int64))
        if not sum(map(len, token)):
            raise TraceError("no training row has an answer after the first layer; there is nothing to learn")
        return cls(
            columns=Columns.of(trace.spec, horizon),
            experts=_plain(trace.experts),
            weights=_weights(trace.weights),
            seen=np.concatenate([Replay(trace.take(rows)).seen() for rows in trace.sequences()]),
            token=np.concatenate(token),
            layer=np.concatenate(layer),
            distance=np.concatenate(distance),
            answers=np.concatenate(answers),
        )

    def __len__(self) -> int:
        return len(self.token)

    def take(self, rows: Int64 | Bool) -> "Examples":
        """Some of the rows, in this order."""
        token, layer, distance = self.token[rows], self.layer[rows], self.distance[rows]
        return replace(self, token=token, layer=layer, distance=distance, answers=self.answers[rows])

    def drawn(self, seed: int) -> Int64:
        """[N] one answer of each row, any of them alike."""
        draw = np.random.default_rng(seed).random(self.answers.shape)
        chosen = np.where(self.answers >= 0, draw, -1).argmax(axis=1)
        return np.take_along_axis(self.answers, chosen[:, None], axis=1)[:, 0]

    def table(self, rows: Int64 | slice = slice(None)) -> Float32:
        """[N, columns] of some rows."""
        place = (self.token[rows], self.layer[rows], self.distance[rows])
        return _table((self.experts, self.weights, self.seen), place, self.columns)


def table(query: Query, horizon: int) -> Float32:
    """[N, columns] of a query's rows; it must be at most `horizon` layers ahead, after the first layer."""
    assert query.layer >= 0
    assert query.distance <= horizon
    routing = (_plain(query.routed), _weights(query.weights), query.seen)
    rows = np.arange(query.rows)
    place = (rows, np.full(query.rows, query.layer), np.full(query.rows, query.distance))
    return _table(routing, place, Columns.of(query.spec, horizon))


def _table(routing: tuple[Int, Float32, Int64], place: tuple[Int64, Int64, Int64], columns: Columns) -> Float32:
    """Rows `place` (token, layer, distance) of `routing` (experts, weights, seen)."""
    out = np.full((len(place[0]), columns.width), -1, dtype=np.float32)
    _fill(out, routing, place, columns.layers)
    return out


@njit(cache=True)  # type: ignore[untyped-decorator]
def _fill(out: Float32, routing: tuple[Int, Float32, Int64], place: tuple[Int64, Int64, Int64], layers: int) -> None:
    experts, weights, seen = routing
    token, layer, distance = place
    k = experts.shape[2]
    history = 2 * k + 1
    weighted = weights.shape[0] > 0
    for n in range(len(token)):
        t, last = token[n], layer[n]
        out[n, 0] = last
        out[n, 2 * k] = seen[t]
        for at in range(last + 1):
            best = 0
            if weighted:
                for i in range(1, k):
                    if experts[t, at, i] < 0:
                        continue
                    if experts[t, at, best] < 0 or weights[t, at, i] > weights[t, at, best]:
                        best = i
            out[n, history + at] = experts[t, at, best]
        for i in range(k):
            rank = i
            if weighted:
                rank = 0
                for j in range(k):
                    rank += _before(experts[t, last], weights[t, last], j, i)
            if rank > 0:
                out[n, rank] = experts[t, last, i]
            out[n, k + rank] = weights[t, last, i] if weighted and experts[t, last, i] >= 0 else np.nan
        if out.shape[1] > history + layers:
            out[n, history + layers] = distance[n]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _before(experts: Int, weights: Float32, j: int, i: int) -> bool:
    """Whether place j ranks before place i: by weight, equal ones as they come, absent ones last."""
    if (experts[j] < 0) != (experts[i] < 0):
        return bool(experts[i] < 0)
    if experts[i] < 0 or weights[j] == weights[i]:
        return j < i
    return bool(weights[j] > weights[i])


def _answers(trace: Trace, layer: int) -> Int:
    """[T, 1] the primary, or [T, k] the routed set."""
    if trace.primary is None:
        return trace.answers_at(layer)
    primary = trace.primary[:, layer, None]
    return primary if trace.answers is None else np.where(trace.answers[:, layer, None], primary, -1)


def _plain(experts: Int) -> Int:
    """One type and layout, so that the columns are compiled once."""
    return np.ascontiguousarray(experts, dtype=np.int16)


def _weights(weights: Float | None) -> Float32:
    return np.empty((0, 0, 0), dtype=np.float32) if weights is None else np.ascontiguousarray(weights, dtype=np.float32)
