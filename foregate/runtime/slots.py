"""The preallocated places that experts are read into and computed from. Decides nothing, reads nothing."""

import threading
from typing import Any, final

import numpy as np

from foregate.errors import need
from foregate.store.base import Buffer, ExpertStore
from foregate.store.direct import aligned


@final
class Slots:
    """`count` slots, one behind the other in one buffer of the CPU's memory or a device's.

    Slots in the CPU's memory begin at multiples of 4096, so that O_DIRECT reads into them without a copy. Slots on a
    device are filled by `receive`, on a stream of the calling thread's own; a slot is written only after the last
    computation that was noted to use it (`computed`).

    pinned  CPU memory that a device can be fed from without a copy in between
    """

    def __init__(self, store: ExpertStore, count: int, device: str = "cpu", *, pinned: bool = False) -> None:
        torch = need("torch", "models")
        self.count, self.size, self.device = count, store.layout.slot_bytes, device
        self._store = store
        self._bytes: Buffer
        if device != "cpu":
            self._memory = torch.empty(count * self.size, dtype=torch.uint8, device=device)
            self._bytes = np.zeros(count, dtype=np.uint8)  # a byte a slot, to name it by: nothing is read into these
        elif pinned:
            self._memory = torch.empty(count * self.size, dtype=torch.uint8, pin_memory=True)
            self._bytes = self._memory.numpy()
        else:
            self._bytes = aligned(count * self.size)
            self._memory = torch.from_numpy(self._bytes)
        self._views: list[dict[str, Any] | None] = [None] * count
        self._last_use: list[Any] = [None] * count  # events, on a device
        self._own = threading.local()

    def bytes(self, slot: int) -> Buffer:
        """The slot's memory [slot_bytes] to read into; of a slot on a device what `receive` knows it by."""
        width = self.size if self.device == "cpu" else 1
        return self._bytes[slot * width : (slot + 1) * width]

    def tensor(self, slot: int) -> Any:
        """The slot's memory [slot_bytes] as a tensor of bytes."""
        return self._memory[slot * self.size : (slot + 1) * self.size]

    def weights(self, slot: int) -> dict[str, Any]:
        """What lies in the slot, by parameter; the same objects whatever expert it holds."""
        found = self._views[slot]
        if found is None:
            found = self._views[slot] = self._store.views(self.tensor(slot))
        return found

    def receive(self, place: Buffer, source: Buffer) -> None:
        """Copy [slot_bytes] of the CPU's memory into the slot that `bytes` gave as `place`; return when it is there."""
        if self.device == "cpu":
            np.copyto(place, source)
            return
        torch = need("torch", "models")
        slot = (place.ctypes.data - self._bytes.ctypes.data) // place.itemsize
        if not hasattr(self._own, "stream"):
            self._own.stream = torch.cuda.Stream(self.device)
        stream = self._own.stream
        with torch.cuda.stream(stream):
            if self._last_use[slot] is not None:
                stream.wait_event(self._last_use[slot])
            self.tensor(slot).copy_(torch.from_numpy(source), non_blocking=True)
        stream.synchronize()

    def free(self) -> None:
        """Give the memory back; nothing may use it any more."""
        self._memory, self._bytes, self._views = None, np.zeros(0, dtype=np.uint8), []

    def computed(self, slots: list[int]) -> None:
        """What was just asked of the device computes from these slots."""
        if self.device == "cpu":
            return
        event = need("torch", "models").cuda.Event()
        event.record()
        for slot in slots:
            self._last_use[slot] = event
