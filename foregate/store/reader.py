"""Threads that read experts into buffers, the most urgent first. Knows no slots, and chooses nothing to read."""

import threading
import time
from dataclasses import dataclass
from typing import final

from foregate.errors import StorageError
from foregate.store.base import Buffer, ExpertStore

THREADS = 1  # measured with 50 MB experts: one read takes 20 ms, two at once take 40 both, so the first comes later
FEEDING = 2  # threads that also hand on to a device: the disk is read while a copy is under way
TRIES = 3
PAUSE = 0.02  # seconds before a failed read is tried again, twice that before the next time
QUEUED, READING, DONE, FAILED, CANCELLED = "queued", "reading", "done", "failed", "cancelled"


def readers(*, device: bool) -> int:
    """Threads that read, unless somebody says how many."""
    return FEEDING if device else THREADS


@final
@dataclass(frozen=True)
class Statistics:
    """What a reader has done so far.

    reads      experts read, without those that failed
    bytes      read from the device, failed tries not counted
    seconds    during which at least one read was under way; bytes / seconds is the bandwidth reached
    retries    tries after a failed one
    cancelled  reads called off before they started
    """

    reads: int = 0
    bytes: int = 0
    seconds: float = 0.0
    retries: int = 0
    cancelled: int = 0


@final
class Ticket:
    """One read that was asked for. Made by `Reader.submit`.

    bytes     read from the device; 0 until it is done
    started   time.perf_counter() when a thread took it up, and when it ended; None before
    finished
    """

    def __init__(self, reader: "Reader", layer: int, expert: int, buffer: Buffer, *, urgent: bool, number: int) -> None:
        self.layer, self.expert = layer, expert
        self.bytes = 0
        self.started: float | None = None
        self.finished: float | None = None
        self._reader = reader
        self._buffer = buffer
        self._urgent = urgent
        self._number = number
        self._state = QUEUED
        self._error: Exception | None = None
        self._ended = threading.Event()

    def __str__(self) -> str:
        return f"expert {self.expert} of mixture layer {self.layer}"

    @property
    def done(self) -> bool:
        """Whether waiting would return, or raise, at once."""
        return self._ended.is_set()

    def wait(self) -> float:
        """Until the buffer is filled; what is waited for is urgent from now on.

        Returns: seconds waited.
        Raises: StorageError if the disk refused several times, or the reader was closed before; SourceError if what is
        stored is damaged.
        """
        assert self._state != CANCELLED, "this read was cancelled"
        began = time.perf_counter()
        if not self.done:
            self.promote()
            self._ended.wait()
        if self._error is not None:
            raise self._error
        return time.perf_counter() - began

    def promote(self) -> None:
        """A guess has become a demand: it overtakes all queued guesses. One that is being read goes on being read."""
        self._reader._promote(self)

    def cancel(self) -> bool:
        """Call the read off. True if it never started, and never will; False if it did, and goes on to its end."""
        return self._reader._cancel(self)


@final
class Reader:
    """Reads in the order of urgency: demands as they came, then guesses, those for the nearest layer first.

    Nearest is counted from the layer of the last demand, on to the first layers of the next pass. A read that the disk
    refuses is tried again, `tries` times in all; then its ticket's `wait` raises.
    """

    def __init__(self, store: ExpertStore, *, threads: int = THREADS, tries: int = TRIES) -> None:
        self._store = store
        self._tries = tries
        self._lock = threading.Condition()  # holds for all below, and for the state of all tickets
        self._queue: list[Ticket] = []
        self._into: set[int] = set()  # addresses of the buffers of what is queued or being read
        self._closed = False
        self._number = 0  # of tickets so far
        self._layer = 0  # of the last demand
        self._reading = 0  # threads that are
        self._since = 0.0  # when the first of them began
        self._reads = self._bytes = self._retries = self._cancelled = 0
        self._seconds = 0.0
        self._threads = [threading.Thread(target=self._work, name=f"reader-{i}", daemon=True) for i in range(threads)]
        for thread in self._threads:
            thread.start()

    def submit(self, layer: int, expert: int, buffer: Buffer, urgent: bool) -> Ticket:
        """Ask for one expert in `buffer` [slot_bytes], which is the reader's until the ticket is done or cancelled."""
        with self._lock:
            assert not self._closed, "the reader is closed"
            address = int(buffer.ctypes.data)
            assert address not in self._into, "another read into this buffer has not ended"
            ticket = Ticket(self, layer, expert, buffer, urgent=urgent, number=self._number)
            self._number += 1
            self._into.add(address)
            self._queue.append(ticket)
            if urgent:
                self._layer = layer
            self._lock.notify()
        return ticket

    def statistics(self) -> Statistics:
        """What was done so far."""
        with self._lock:
            running = time.perf_counter() - self._since if self._reading else 0.0
            return Statistics(self._reads, self._bytes, self._seconds + running, self._retries, self._cancelled)

    def drain(self) -> None:
        """Call off all that has not started, and wait for what has: no buffer is written to any more."""
        with self._lock:
            self._cancelled += len(self._queue)
            for ticket in self._queue:
                self._end(ticket, CANCELLED)
            self._queue.clear()
            self._lock.wait_for(lambda: not self._reading)

    def stop(self) -> None:
        """Have the threads end, and wait for none of them; who waits for a queued read is told."""
        with self._lock:
            self._closed = True
            for ticket in self._queue:
                self._end(ticket, FAILED, StorageError(f"{ticket} was not read: reading was stopped before"))
            self._queue.clear()
            self._lock.notify_all()

    def close(self) -> None:
        """End the threads after the reads under way; who waits for a queued one is told. Twice is no mistake."""
        self.stop()
        for thread in self._threads:
            thread.join()

    def _promote(self, ticket: Ticket) -> None:
        with self._lock:
            ticket._urgent = True
            if ticket._state == QUEUED:
                self._layer = ticket.layer

    def _cancel(self, ticket: Ticket) -> bool:
        with self._lock:
            if ticket._state == QUEUED:
                self._queue.remove(ticket)
                self._cancelled += 1
                self._end(ticket, CANCELLED)
            return ticket._state == CANCELLED

    def _work(self) -> None:
        """What each thread does until the reader is closed."""
        while (ticket := self._take()) is not None:
            error: Exception | None = None
            try:
                ticket.bytes = self._read(ticket)
            except Exception as raised:  # whatever it is, whoever waits is to have it
                error = raised
            with self._lock:
                self._reading -= 1
                self._reads += error is None
                self._bytes += ticket.bytes
                self._end(ticket, DONE if error is None else FAILED, error)
                if not self._reading:
                    self._seconds += time.perf_counter() - self._since
                    self._lock.notify_all()  # who drains

    def _take(self) -> Ticket | None:
        with self._lock:
            self._lock.wait_for(lambda: self._queue or self._closed)
            if self._closed:
                return None
            ticket = min(self._queue, key=self._order)
            self._queue.remove(ticket)
            ticket._state, ticket.started = READING, time.perf_counter()
            if not self._reading:
                self._since = ticket.started
            self._reading += 1
            return ticket

    def _order(self, ticket: Ticket) -> tuple[int, int]:
        ahead = 0 if ticket._urgent else 1 + (ticket.layer - self._layer) % self._store.num_layers
        return ahead, ticket._number

    def _read(self, ticket: Ticket) -> int:
        for attempt in range(1, self._tries + 1):
            try:
                return self._store.read_into(ticket.layer, ticket.expert, ticket._buffer)
            except StorageError as error:
                if attempt == self._tries:
                    raise StorageError(f"{ticket} could not be read in {attempt} tries: {error}") from error
                with self._lock:
                    self._retries += 1
                time.sleep(PAUSE * 2 ** (attempt - 1))
        raise AssertionError("a reader tries at least once")

    def _end(self, ticket: Ticket, state: str, error: Exception | None = None) -> None:
        """Called with the lock held."""
        ticket._state, ticket._error, ticket.finished = state, error, time.perf_counter()
        self._into.discard(int(ticket._buffer.ctypes.data))
        ticket._ended.set()
