"""A recorded stream of demands run through the planner's own compiled functions, all at once. Counts; no clock.

Routed sets, layer by layer, as `Planner` takes them and with the same outcome.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.arrays import Float32, Int, Int32, Int64
from foregate.errors import ChoiceError
from foregate.memory.assemble import assemble
from foregate.memory.compiled import allocating, inner
from foregate.memory.core import begin, demand, expect, speculate
from foregate.memory.counts import Counts
from foregate.memory.eviction import eviction
from foregate.memory.interface import Eviction, Prefetch
from foregate.memory.predicted import Forecast
from foregate.memory.state import EVICTED, KEY_IN, REST, SLOT_IN, State

NEVER = 1 << 60
SAME_PASS, NEW_PASS, NEW_SEQUENCE = range(3)


@dataclass(frozen=True, eq=False)
class Stream:
    """Routed sets in the order they were demanded, S of them.

    layer    Int32[S]
    opens    Int32[S]      1 = a pass begins with this set, 2 = of another sequence, 0 = neither
    starts   Int64[S + 1]  set s is experts[starts[s] : starts[s + 1]]
    experts  Int32[n]      each once in a set
    """

    layer: Int32
    opens: Int32
    starts: Int64
    experts: Int32

    def at(self, layer: int) -> "Stream":
        """One layer's sets alone, as of a model that has no other."""
        mine = np.flatnonzero(self.layer == layer)
        # What opened between two of them has opened by the second.
        opens = (
            np.maximum.reduceat(self.opens[: mine[-1] + 1], np.r_[0, mine[:-1] + 1]) if len(mine) else self.opens[:0]
        )
        sizes = np.diff(self.starts)
        return Stream(
            np.zeros(len(mine), np.int32),
            np.maximum(opens, NEW_PASS).astype(np.int32),
            np.r_[0, np.cumsum(sizes[mine])].astype(np.int64),
            self.experts[np.repeat(self.layer == layer, sizes)],
        )


def stream_of(experts: Int, step: Int, sequence: Int) -> Stream:
    """The stream of a trace's `experts` [T, L, k] (-1 = absent), `step` [T] and `sequence` [T].

    A pass demands the union of its tokens' experts, in order of first mention; a layer without any is left out.
    """
    return Stream(*_sets(experts.astype(np.int32), step.astype(np.int64), sequence.astype(np.int64)))


def replay(
    stream: Stream,
    num_layers: int,
    num_experts: int,
    slots: int,
    eviction: Eviction | str = "lru",
    *,
    prefetch: Prefetch | str = "none",
    chance: Float32 | None = None,
    distance: int = 1,
    per_layer: bool = False,
    **options: Any,
) -> Counts:
    """What a planner would have counted on this stream, begun with empty slots.

    chance     [S, E]  probabilities for set s, told when set s - `distance` had been demanded; a negative first entry
                       = none. Nothing is read ahead across the start of a pass.
    per_layer  every layer has slots // num_layers of its own, and a cache of its own; without reading ahead
    options    `Planner`'s

    Raises: ChoiceError.
    """
    if per_layer:
        if chance is not None:
            raise ChoiceError("slots per layer are replayed without reading ahead; leave out the chances")
        return _by_layer(stream, num_layers, num_experts, slots, eviction, options)
    look = _Look(num_layers, num_experts, slots, _named(eviction), prefetch, chance, distance, options)
    return Counts(*_run(stream, look, 0)[0].counts.T.copy())


def transfers(
    stream: Stream,
    num_layers: int,
    num_experts: int,
    slots: int,
    eviction: Eviction | str = "lru",
    *,
    prefetch: Prefetch | str = "none",
    chance: Float32 | None = None,
    distance: int = 1,
    **options: Any,
) -> Int32:
    """Every read of the same replay, in order: [reads, 5] of set, key, slot, evicted key (-1 = none), speculative."""
    look = _Look(num_layers, num_experts, slots, _named(eviction), prefetch, chance, distance, options)
    counts = Counts(*_run(stream, look, 0)[0].counts.T)
    return _run(stream, look, int(counts.misses.sum() + counts.guesses.sum()))[1]


@dataclass(frozen=True, eq=False)
class _Look:
    """`replay`'s arguments."""

    num_layers: int
    num_experts: int
    slots: int
    eviction: Eviction
    prefetch: Prefetch | str
    chance: Float32 | None
    distance: int
    options: dict[str, Any]


def _run(stream: Stream, look: _Look, log: int) -> tuple[State, Int32]:
    """The state at the end, and the first `log` reads."""
    if look.distance < 1:
        raise ChoiceError(f"distance is {look.distance}; reading ahead looks at least 1 layer ahead")
    L, E = look.num_layers, look.num_experts
    horizon = len(stream.layer) if look.eviction.needs_future else 0
    state, forecast = assemble(L, E, look.slots, look.eviction, look.prefetch, horizon=horizon, **look.options)
    future = np.zeros(0, np.int64)
    if look.eviction.needs_future:
        keys = np.repeat(stream.layer, np.diff(stream.starts)) * E + stream.experts
        future = next_uses(keys, stream.starts, L * E)
    chances = np.zeros((0, E), np.float32) if look.chance is None else np.asarray(look.chance, np.float32)
    reads = np.zeros((log, 5), np.int32)
    sets = (stream.layer, stream.opens, stream.starts, stream.experts)
    _replay(state, forecast, sets, future, chances, look.distance, reads)
    return state, reads


def _by_layer(  # noqa: PLR0917
    stream: Stream, num_layers: int, num_experts: int, slots: int, evict: Eviction | str, options: dict[str, Any]
) -> Counts:
    profile = options.pop("profile", None)
    rows = []
    for layer in range(num_layers):
        own: dict[str, Any] = {} if profile is None else {"profile": np.asarray(profile)[layer : layer + 1]}
        rows.append(replay(stream.at(layer), 1, num_experts, slots // num_layers, evict, **own, **options))
    return Counts(*(np.concatenate(parts) for parts in zip(*(r.arrays() for r in rows), strict=True)))


def _named(kind: Eviction | str) -> Eviction:
    return eviction(kind) if isinstance(kind, str) else kind


@allocating
def _replay(  # noqa: PLR0917
    state: State,
    forecast: Forecast | None,
    sets: tuple[Int32, Int32, Int64, Int32],
    future: Int64,
    chance: Float32,
    distance: int,
    log: Int32,
) -> None:
    """Each set as a runtime would demand it, wave by wave, then one look ahead."""
    layers, opens, starts, experts = sets
    written = 0
    for s in range(len(layers)):
        layer = int(layers[s])  # as wide as a Python number is: another width would be compiled anew
        if opens[s] > 0:
            begin(state, forecast, opens[s] == NEW_SEQUENCE)
        wanted = experts[starts[s] : starts[s + 1]]
        uses = future[starts[s] : starts[s + 1]] if len(future) > 0 else future
        served, reads = demand(state, forecast, layer, wanted, uses)
        written = _note(state.desk, log, written, reads, s, 0)
        while served < len(wanted):
            wanted, uses = _waiting(state.desk, wanted, uses, len(wanted) - served)
            served, reads = demand(state, forecast, layer, wanted, uses)
            written = _note(state.desk, log, written, reads, s, 0)
        ahead = s + distance
        if ahead < len(chance) and chance[ahead, 0] >= 0 and not _opening(opens, s + 1, ahead + 1):
            expect(state, forecast, int(layers[ahead]), chance[ahead])
            reads = speculate(state, forecast, int(layers[ahead]))
            written = _note(state.desk, log, written, reads, s, 1)


@inner
def _opening(opens: Int32, first: int, last: int) -> bool:
    """Whether a pass begins among the sets first..last-1."""
    begun = False
    for s in range(first, last):
        begun |= opens[s] > 0
    return begun


@allocating
def _waiting(desk: Int32, wanted: Int32, uses: Int64, count: int) -> tuple[Int32, Int64]:
    """The experts that the last wave left, and their next uses."""
    rest = desk[REST, :count].copy()
    if len(uses) == 0:
        return rest, uses
    later = np.empty(count, np.int64)
    for i in range(count):
        for j in range(len(wanted)):
            if wanted[j] == rest[i]:
                later[i] = uses[j]
    return rest, later


@inner
def _note(desk: Int32, log: Int32, written: int, reads: int, s: int, speculative: int) -> int:  # noqa: PLR0917
    for r in range(reads):
        if written < len(log):
            row = log[written]
            row[0], row[1], row[2], row[3], row[4] = s, desk[KEY_IN, r], desk[SLOT_IN, r], desk[EVICTED, r], speculative
            written += 1
    return written


@allocating
def next_uses(keys: Int32, starts: Int64, num_keys: int) -> Int64:
    """[n] the set in which each key is used next, NEVER where it is not."""
    seen = np.full(num_keys, NEVER, np.int64)
    future = np.empty(len(keys), np.int64)
    for s in range(len(starts) - 2, -1, -1):
        for i in range(starts[s], starts[s + 1]):
            future[i] = seen[keys[i]]
            seen[keys[i]] = s
    return future


@allocating
def _sets(experts: Int32, step: Int64, sequence: Int64) -> tuple[Int32, Int32, Int64, Int32]:
    T, L, k = experts.shape
    layer, opens = np.empty(T * L, np.int32), np.zeros(T * L, np.int32)
    starts, ids = np.zeros(T * L + 1, np.int64), np.empty(experts.size, np.int32)
    seen = np.full((L, experts.max() + 2), -1, np.int64)
    s, n, first = 0, 0, 0
    while first < T:
        last = first
        while last < T and step[last] == step[first] and sequence[last] == sequence[first]:
            last += 1
        fresh = first == 0 or sequence[first] != sequence[first - 1]
        opening = NEW_SEQUENCE if fresh else NEW_PASS
        for at in range(L):
            before = n
            for t in range(first, last):
                for j in range(k):
                    e = experts[t, at, j]
                    if e >= 0 and seen[at, e] != first:
                        seen[at, e] = first
                        ids[n] = e
                        n += 1
            if n > before:
                layer[s], opens[s], starts[s + 1] = at, opening, n
                opening = SAME_PASS
                s += 1
        first = last
    return layer[:s].copy(), opens[:s].copy(), starts[: s + 1].copy(), ids[:n].copy()
