"""What stands between a disk and the slots: a host tier of experts in memory, buffers to feed a device from.

Both are stores in front of a store, so that a reader's threads, priorities and cancellation serve them too. Which
expert the host tier keeps is decided by a planner of its own, in the order in which reads are asked for; when they are
carried out changes no decision.
"""

import threading
from typing import Any, final

import numpy as np

from foregate.errors import need
from foregate.memory.planner import Planner
from foregate.runtime.slots import Slots
from foregate.store.base import Buffer, ExpertStore

NOBODY = -1


@final
class Staged(ExpertStore):
    """Reads into pinned memory, one buffer a thread, and from there into a device's slots."""

    def __init__(self, store: ExpertStore, fast: Slots) -> None:
        self.num_layers, self.num_experts = store.num_layers, store.num_experts
        self.layout, self.bits = store.layout, store.bits
        self._store, self._fast = store, fast
        self._own = threading.local()

    def read_into(self, layer: int, expert: int, buffer: Buffer) -> int:
        """`buffer` is what the slots gave for one of them."""
        if not hasattr(self._own, "buffer"):
            torch = need("torch", "models")
            self._own.buffer = torch.empty(self.layout.slot_bytes, dtype=torch.uint8, pin_memory=True).numpy()
        stage: Buffer = self._own.buffer
        read = self._store.read_into(layer, expert, stage)
        self._fast.receive(buffer, stage)
        return read

    def views(self, buffer: Any) -> dict[str, Any]:
        """The store's."""
        return self._store.views(buffer)

    def close(self) -> None:
        """The store's."""
        self._store.close()


@final
class HostTier(ExpertStore):
    """Keeps experts in host memory, and copies them from there into the fast slots.

    store   where they are read from
    around  the way past this tier, for an expert whose place here was given away before it was read
    fast    the slots that are fed
    places  the slots of this tier
    evict   which expert leaves it: an eviction that needs no forecast

    Raises: ChoiceError for an eviction that cannot be had.
    """

    def __init__(self, store: ExpertStore, around: ExpertStore, fast: Slots, places: Slots, evict: str = "lru") -> None:
        self.num_layers, self.num_experts = store.num_layers, store.num_experts
        self.layout, self.bits = store.layout, store.bits
        self._store, self._around, self._fast, self._places = store, around, fast, places
        self._planner = Planner(store.num_layers, store.num_experts, places.count, evict)
        self._slot_of: dict[int, int] = {}  # as the planner decided
        self._holds = [NOBODY] * places.count  # what was read
        self._locks = [threading.Lock() for _ in range(places.count)]

    def expected(self, layer: int, expert: int) -> None:
        """The next read of this expert is about to be asked for: give it a place."""
        self._planner.begin()
        moves = self._planner.demand(layer, np.array([expert])).transfers
        for key, slot, gone in zip(moves.key.tolist(), moves.slot.tolist(), moves.evicted.tolist(), strict=True):
            self._slot_of.pop(gone, None)
            self._slot_of[key] = slot

    def read_into(self, layer: int, expert: int, buffer: Buffer) -> int:
        """Bytes read from the device: 0 where the expert was here."""
        key = layer * self.num_experts + expert
        slot = self._slot_of.get(key, NOBODY)
        if slot != NOBODY:
            with self._locks[slot]:
                if self._slot_of.get(key) == slot:
                    read = self._fill(slot, layer, expert)
                    self._fast.receive(buffer, self._places.bytes(slot))
                    return read
        return self._around.read_into(layer, expert, buffer)

    def views(self, buffer: Any) -> dict[str, Any]:
        """The store's."""
        return self._store.views(buffer)

    def close(self) -> None:
        """The store's; the memory is given back."""
        self._store.close()
        self._places.free()

    def _fill(self, slot: int, layer: int, expert: int) -> int:
        """Called with the slot's lock held."""
        key = layer * self.num_experts + expert
        if self._holds[slot] == key:
            return 0
        self._holds[slot] = NOBODY  # until it is read whole
        read = self._store.read_into(layer, expert, self._places.bytes(slot))
        self._holds[slot] = key
        return read


def behind(store: ExpertStore, fast: Slots, host_slots: int, evict: str) -> tuple[ExpertStore, HostTier | None]:
    """What a reader reads from to fill the fast slots, and the host tier where there is one."""
    direct = store if fast.device == "cpu" else Staged(store, fast)
    if not host_slots:
        return direct, None
    places = Slots(store, host_slots, pinned=fast.device != "cpu")
    tier = HostTier(store, direct, fast, places, evict)
    return tier, tier
