"""The planner as a runtime drives it: which slots, which reads, which reads ahead. No bytes, no clock.

A pass goes: `begin`, then for each layer that runs `demand` (again with its `rest`, until there is none), `expect` and
`speculate` for later layers. The same calls give the same answers, whenever the reads finish.
"""

from dataclasses import dataclass

import numpy as np

from foregate.arrays import Bool, Float, Int, Int32, Int64
from foregate.errors import ChoiceError
from foregate.memory import core
from foregate.memory.assemble import assemble
from foregate.memory.counts import Counts
from foregate.memory.eviction import eviction as eviction_of
from foregate.memory.interface import Eviction, Prefetch
from foregate.memory.state import (
    EVICTED,
    EXPERT,
    GUESSED,
    HIT,
    KEY_IN,
    LAYER,
    PROMISED,
    REST,
    RESTING,
    SLOT,
    SLOT_IN,
    WAITING,
)

NO_FUTURE: Int64 = np.zeros(0, np.int64)


@dataclass(frozen=True, eq=False)
class Transfers:
    """Reads to issue, in this order.

    key         Int32[r]  layer * num_experts + expert
    slot        Int32[r]  where it goes
    evicted     Int32[r]  the key that was there, -1 = none
    speculative           nobody waits for them yet
    layer                 the layer they are for
    """

    key: Int32
    slot: Int32
    evicted: Int32
    speculative: bool
    layer: int

    def __len__(self) -> int:
        return len(self.key)


@dataclass(frozen=True, eq=False)
class Wave:
    """Experts of one layer that are in fast memory together, once `transfers` are done: residents first.

    experts  Int32[n]
    slots    Int32[n]
    hit      Bool[n]   it had its slot before
    guessed  Bool[n]   thanks to a guess, whose first use this is
    rest     Int32     experts to demand next, after this wave was started; empty mostly
    """

    experts: Int32
    slots: Int32
    hit: Bool
    guessed: Bool
    transfers: Transfers
    rest: Int32


class Planner:
    """Slots for the experts of all layers.

    eviction, prefetch  by name ("lfu-decay:half_life=500", "top:2") or as objects
    top_k               experts a token is routed to: promises for later layers always leave this many slots
    profile             Int[L, E] uses of each expert; for `static`
    expert_bytes, read_seconds, window_seconds, look_seconds
                        size of one expert, seconds to read it, seconds a layer runs while it is read, seconds that a
                        predictor's answer about a layer takes; for `budget`

    Slots beyond the number of all experts are not used. Raises: ChoiceError.
    """

    def __init__(
        self,
        num_layers: int,
        num_experts: int,
        slots: int,
        eviction: Eviction | str = "lru",
        prefetch: Prefetch | str = "none",
        *,
        top_k: int = 1,
        profile: Int | None = None,
        expert_bytes: int | None = None,
        read_seconds: float | None = None,
        window_seconds: float | None = None,
        look_seconds: float = 0.0,
    ) -> None:
        self.num_layers, self.num_experts = num_layers, num_experts
        self._state, self._forecast = assemble(
            num_layers,
            num_experts,
            slots,
            _possible(eviction),
            prefetch,
            top_k=top_k,
            profile=profile,
            expert_bytes=expert_bytes,
            read_seconds=read_seconds,
            window_seconds=window_seconds,
            look_seconds=look_seconds,
        )

    @property
    def slots(self) -> int:
        """How many there are (C)."""
        return len(self._state.key_of)

    def begin(self, reset: bool = False) -> None:
        """A pass starts; `reset`: of other sequences, whose habits are yet unknown. Residents stay."""
        core.begin(self._state, self._forecast, reset)

    def demand(self, layer: int, experts: Int) -> Wave:
        """The running layer needs these experts [m], each named once; or the `rest` of its last wave."""
        state = self._state
        assert 0 <= layer < self.num_layers, f"layer {layer} of {self.num_layers}"
        ids = np.ascontiguousarray(experts, np.int32)
        if state.now[WAITING] > 0:
            assert layer == state.now[LAYER], f"layer {layer} was demanded while layer {state.now[LAYER]} waits"
            assert len(ids) == state.now[WAITING], "the rest was demanded in part"
        else:
            assert layer > state.now[LAYER], f"layer {layer} was demanded after layer {state.now[LAYER]}"
        served, reads = core.demand(state, self._forecast, layer, ids, NO_FUTURE)
        desk = state.desk[:, : len(ids)].copy()
        return Wave(
            desk[EXPERT, :served],
            desk[SLOT, :served],
            desk[HIT, :served] > 0,
            desk[GUESSED, :served] > 0,
            Transfers(desk[KEY_IN, :reads], desk[SLOT_IN, :reads], desk[EVICTED, :reads], False, layer),
            desk[REST, : len(ids) - served],
        )

    @property
    def asks(self) -> bool:
        """Whether `expect` is worth its cost in this pass: `budget` says no for a while where it did not pay."""
        return bool(self._state.now[RESTING] == 0)

    def expect(self, layer: int, chance: Float) -> None:
        """The probability [E] that each expert is used when `layer` runs next; kept until it has been demanded."""
        assert len(chance) == self.num_experts, f"{len(chance)} chances for {self.num_experts} experts"
        core.expect(self._state, self._forecast, layer, np.ascontiguousarray(chance, np.float32))

    def speculate(self, layer: int) -> Transfers:
        """Reads ahead for `layer`'s next run, from what `expect` said. Call it for the nearest layer first: where slots
        are short, guesses that come later are refused.
        """
        reads = core.speculate(self._state, self._forecast, layer)
        desk = self._state.desk[KEY_IN : EVICTED + 1, :reads].copy()
        return Transfers(desk[0], desk[1], desk[2], True, layer)

    def slot(self, layer: int, expert: int) -> int:
        """Where an expert is, -1 = in no slot."""
        return int(self._state.slot_of[layer * self.num_experts + expert])

    def resident(self) -> Int32:
        """Keys that have a slot, ascending."""
        return np.flatnonzero(self._state.slot_of >= 0).astype(np.int32)

    def promised(self) -> Int32:
        """Keys that are locked for layers to come."""
        return self._state.promised[: self._state.now[PROMISED]].copy()

    def counts(self) -> Counts:
        """What happened so far, by layer."""
        return Counts(*self._state.counts.T.copy())


def _possible(kind: Eviction | str) -> Eviction:
    kind = eviction_of(kind) if isinstance(kind, str) else kind
    if kind.needs_future:
        raise ChoiceError("belady needs the future, which only a replay has; choose another eviction")
    return kind
