"""Carries out transfers: whose bytes lie in which slot, are on their way, or must still be asked for. Decides nothing.

A slot that the planner gave to an expert holds its bytes only once they were read. Four things can keep them out: the
read still runs, it failed, it was a guess that never started before its layer had passed and was dropped, or a read for
the expert before, which nobody wants any more and which cannot be called off, has not ended yet.

An exception (Ctrl-C) may end any of this half-way. `recover` then ends all reads, and `demand` compares what lies in a
slot with what the planner says, so that no expert is ever taken for another.
"""

from collections.abc import Iterable
from contextlib import suppress
from time import perf_counter
from typing import final

from foregate.errors import ForegateError
from foregate.memory.planner import Transfers
from foregate.runtime.slots import Slots
from foregate.runtime.telemetry import Telemetry
from foregate.runtime.tiers import HostTier
from foregate.store.reader import Reader, Ticket

NOBODY = -1


@final
class Fetch:
    """The slots' contents.

    host  the tier that the reader reads through, if any: it decides as reads are asked for
    """

    def __init__(
        self, reader: Reader, slots: Slots, num_experts: int, counts: Telemetry, host: HostTier | None = None
    ) -> None:
        self._reader, self._slots, self._counts, self._host = reader, slots, counts, host
        self.num_experts = num_experts
        self._key = [NOBODY] * slots.count
        self._there = [False] * slots.count
        self._ticket: list[Ticket | None] = [None] * slots.count
        self._guess = [False] * slots.count  # read ahead, and not used since
        self._guesses: dict[int, list[int]] = {}  # layer -> slots read ahead for it
        self._leaving: dict[int, Ticket] = {}  # slot -> a read that nobody wants any more, but that still writes there
        self._put_off: dict[int, bool] = {}  # slots that wait for such a read to end -> whether theirs is urgent
        self._last: dict[int, list[int]] = {}  # layer -> the experts it was computed with last

    def issue(self, transfers: Transfers) -> None:
        """Start the reads; those into a slot that is still written to start once it is not."""
        self._resume()
        moves = zip(transfers.key.tolist(), transfers.slot.tolist(), strict=True)
        for key, slot in moves:
            self._forget(slot)
            self._key[slot] = key
            self._submit(slot, urgent=not transfers.speculative)
        if transfers.speculative:
            guessed = transfers.slot.tolist()
            for slot in guessed:
                self._guess[slot] = True
            self._guesses.setdefault(transfers.layer, []).extend(guessed)
            self._counts.add(transfers.layer, "guessed", len(guessed))

    def demand(self, layer: int, experts: list[int], slots: list[int], hit: list[bool]) -> None:
        """The running layer needs these experts in these slots: what was guessed is counted, and what is not there is
        urgent.

        hit  whether the planner had the expert in its slot before it was demanded
        """
        self._last[layer] = experts
        resident = in_time = late = used = 0
        for expert, slot, known in zip(experts, slots, hit, strict=True):
            key = layer * self.num_experts + expert
            if self._key[slot] != key:  # the planner gave it the slot, and was interrupted before it was asked for
                self._forget(slot)
                self._key[slot] = key
            there = self._arrived(slot)
            if self._guess[slot]:
                self._guess[slot] = False
                used += 1
                in_time, late = in_time + there, late + (not there)
            elif known:
                resident, late = resident + there, late + (not there)
            if there:
                continue
            ticket = self._ticket[slot]
            if ticket is None or ticket.done:  # done, and not there: it failed before anybody needed it
                self._submit(slot, urgent=True)
            elif known:
                ticket.promote()
        counts = self._counts
        counts.add(layer, "demanded", len(slots))
        counts.add(layer, "resident", resident)
        counts.add(layer, "in_time", in_time)
        counts.add(layer, "late", late)
        counts.add(layer, "used", used)
        counts.add(layer, "missed", len(slots) - resident - in_time - late)

    def passed(self, layer: int) -> None:
        """Guesses for this layer that were not demanded are stale: those that never started are dropped, and are
        guesses no longer. They keep their slots; who is demanded after all is read then.
        """
        for slot in self._guesses.pop(layer, ()):
            if self._guess[slot] and self._key[slot] // self.num_experts == layer and self._called_off(slot):
                self._drop_guess(slot)

    def arrived(self, slots: Iterable[int]) -> list[int]:
        """Those whose bytes are there now."""
        self._resume()
        return [slot for slot in slots if self._arrived(slot)]

    def wait(self, layer: int, slot: int) -> None:
        """Until the slot's bytes are there.

        Raises: StorageError, SourceError if they cannot be had; the slot is read again when it is demanded again.
        """
        started = perf_counter()
        if self._ticket[slot] is None:
            self._settle(slot)
            self._submit(slot, urgent=True)
        ticket = self._ticket[slot]
        assert ticket is not None
        try:
            ticket.wait()
        except ForegateError:
            self._ticket[slot] = None
            raise
        finally:
            self._counts.add(layer, "stall", perf_counter() - started)
        self._ticket[slot] = None
        self._there[slot] = True
        self._read(ticket)

    def contents(self) -> tuple[list[int], list[bool], list[bool], list[bool]]:
        """Of each slot: the key it is for (-1 = none), whether its bytes are there, whether they are being read or will
        be, and whether that was a guess which nobody has used yet. Any thread may ask, at any time.
        """
        key, there, tickets, put_off = list(self._key), list(self._there), list(self._ticket), dict(self._put_off)
        coming = [False] * len(key)
        for slot, ticket in enumerate(tickets):
            if ticket is not None and not there[slot]:
                there[slot], coming[slot] = ticket.done, not ticket.done
        for slot in put_off:
            coming[slot] = True
        return key, there, coming, list(self._guess)

    def last_used(self) -> dict[int, list[int]]:
        """The experts that each layer which ran needed last. Any thread may ask, at any time."""
        return dict(self._last)

    def recover(self) -> None:
        """After a pass that broke off, wherever: call off what has not started, and wait for what has."""
        self._reader.drain()
        self._put_off.clear()
        for slot in list(self._leaving):
            self._settle(slot)
        for slot, ticket in enumerate(self._ticket):
            if ticket is not None and (ticket.cancel() or not self._arrived(slot)):
                self._ticket[slot] = None
                self._drop_guess(slot)

    def close(self) -> None:
        """Call off what has not started, wait for what has, and end the reader's threads."""
        self.recover()
        self._reader.close()

    def _submit(self, slot: int, *, urgent: bool) -> None:
        old = self._leaving.get(slot)
        if old is not None and not old.done:
            self._put_off[slot] = urgent
            return
        self._settle(slot)
        self._put_off.pop(slot, None)
        layer, expert = divmod(self._key[slot], self.num_experts)
        if self._host is not None:
            self._host.expected(layer, expert)
        self._ticket[slot] = self._reader.submit(layer, expert, self._slots.bytes(slot), urgent)

    def _resume(self) -> None:
        for slot, urgent in list(self._put_off.items()):
            self._submit(slot, urgent=urgent)

    def _arrived(self, slot: int) -> bool:
        if not self._there[slot] and (ticket := self._ticket[slot]) is not None and ticket.done:
            with suppress(ForegateError):  # who waits for it will hear
                ticket.wait()
                self._ticket[slot] = None
                self._there[slot] = True
                self._read(ticket)
        return self._there[slot]

    def _read(self, ticket: Ticket) -> None:
        self._counts.add(ticket.layer, "read", 1)
        self._counts.add(ticket.layer, "bytes", ticket.bytes)
        if self._host is not None and ticket.bytes == 0:
            self._counts.add(ticket.layer, "from_host", 1)

    def _forget(self, slot: int) -> None:
        """The slot's expert is evicted: its read is called off where that is still possible."""
        if self._called_off(slot):
            self._drop_guess(slot)
        ticket, self._ticket[slot] = self._ticket[slot], None
        if ticket is not None:
            self._leaving[slot] = ticket
        if self._guess[slot]:
            self._guess[slot] = False
            self._counts.add(self._key[slot] // self.num_experts, "wasted", 1)
        self._there[slot] = False

    def _called_off(self, slot: int) -> bool:
        """Whether the slot's read had not started; it never will."""
        if self._put_off.pop(slot, None) is not None:
            return True
        ticket = self._ticket[slot]
        if ticket is None or not ticket.cancel():
            return False
        self._ticket[slot] = None
        return True

    def _drop_guess(self, slot: int) -> None:
        """The slot's read did not happen; if it was a guess, it was dropped."""
        if self._guess[slot]:
            self._guess[slot] = False
            self._counts.add(self._key[slot] // self.num_experts, "dropped", 1)

    def _settle(self, slot: int) -> None:
        """Until nothing writes to the slot any more; that a read which nobody wants failed is of no interest."""
        ticket = self._leaving.pop(slot, None)
        if ticket is not None:
            with suppress(ForegateError):
                ticket.wait()
                self._read(ticket)
