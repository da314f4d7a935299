"""The reading threads: the most urgent first, nothing twice, no error lost, nobody left waiting."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, final

import numpy as np
import pytest

from foregate.errors import SourceError, StorageError
from foregate.store.base import Buffer, ExpertStore
from foregate.store.direct import aligned
from foregate.store.layout import Layout
from foregate.store.reader import Reader, Ticket

SLOT = 4096


@final
class ToyStore(ExpertStore):
    """Fills a buffer with the expert's key, once `gate` is open; `failures` says how often a key fails first."""

    def __init__(self, failures: dict[int, int] | None = None, error: Exception | None = None) -> None:
        self.num_layers, self.num_experts, self.bits = 6, 8, 16
        self.layout = Layout.of([("weight", (SLOT // 2,), "bfloat16")])
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Semaphore(0)
        self.order: list[int] = []
        self.failures = Counter(failures or {})
        self.error = error or StorageError("the disk said no")

    def read_into(self, layer: int, expert: int, buffer: Buffer) -> int:
        key = layer * self.num_experts + expert
        self.order.append(key)
        self.begun.release()
        assert self.gate.wait(10)
        if self.failures[key]:
            self.failures[key] -= 1
            raise self.error
        buffer[:] = key
        return SLOT

    def views(self, buffer: Any) -> dict[str, Any]:
        return {"weight": buffer}

    def close(self) -> None:
        pass


@pytest.fixture
def store() -> ToyStore:
    return ToyStore()


@pytest.fixture
def reader(store: ToyStore) -> Iterator[Reader]:
    made = Reader(store, threads=1)
    yield made
    store.gate.set()
    made.close()


def hold(store: ToyStore, reader: Reader, layer: int = 0) -> Ticket:
    """Keep the one thread busy with expert 0 of a layer until the gate opens."""
    store.gate.clear()
    ticket = reader.submit(layer, 0, aligned(SLOT), True)
    assert store.begun.acquire(timeout=10)
    return ticket


def finish(store: ToyStore, *tickets: Ticket) -> None:
    """Let all of it be read, without waiting for one, which would make it urgent."""
    store.gate.set()
    until = time.monotonic() + 10
    while not all(ticket.done for ticket in tickets):
        assert time.monotonic() < until
        time.sleep(0.001)


def test_a_read_fills_its_buffer(store: ToyStore, reader: Reader) -> None:
    buffer = aligned(SLOT)
    ticket = reader.submit(2, 5, buffer, False)
    assert ticket.wait() >= 0
    assert ticket.done
    assert (buffer == 21).all()
    assert ticket.bytes == SLOT
    assert ticket.started is not None
    assert ticket.finished is not None
    assert ticket.started <= ticket.finished


def test_demands_overtake_guesses(store: ToyStore, reader: Reader) -> None:
    first = hold(store, reader)
    tickets = [reader.submit(1, expert, aligned(SLOT), urgent) for expert, urgent in ((1, False), (2, True), (3, True))]
    finish(store, first, *tickets)
    assert store.order == [0, 8 + 2, 8 + 3, 8 + 1]


def test_guesses_come_by_layer_counted_from_the_last_demand(store: ToyStore, reader: Reader) -> None:
    first = hold(store, reader, layer=3)
    tickets = [reader.submit(layer, 1, aligned(SLOT), False) for layer in (1, 0, 5, 4, 4)]
    finish(store, first, *tickets)
    assert [key // 8 for key in store.order] == [3, 4, 4, 5, 0, 1]


def test_a_promoted_guess_overtakes_the_others(store: ToyStore, reader: Reader) -> None:
    first = hold(store, reader)
    near, far = reader.submit(1, 1, aligned(SLOT), False), reader.submit(5, 1, aligned(SLOT), False)
    far.promote()
    finish(store, first, near, far)
    assert store.order == [0, 41, 9]


def test_what_is_waited_for_is_urgent(store: ToyStore, reader: Reader) -> None:
    first = hold(store, reader)
    near, far = reader.submit(1, 1, aligned(SLOT), False), reader.submit(5, 1, aligned(SLOT), False)
    waiting = threading.Thread(target=far.wait)
    waiting.start()
    while not far._urgent:
        time.sleep(0.001)
    finish(store, first, near)
    waiting.join()
    assert store.order == [0, 41, 9]


def test_a_guess_that_is_being_read_is_joined(store: ToyStore, reader: Reader) -> None:
    store.gate.clear()
    guess = reader.submit(2, 2, aligned(SLOT), False)
    assert store.begun.acquire(timeout=10)
    guess.promote()
    assert not guess.done
    finish(store, guess)
    assert store.order == [18]


def test_what_never_started_can_be_cancelled(store: ToyStore, reader: Reader) -> None:
    first = hold(store, reader)
    buffer = aligned(SLOT)
    buffer[:] = 255
    guess = reader.submit(1, 1, buffer, False)
    assert guess.cancel()
    assert guess.cancel()
    assert not first.cancel()
    again = reader.submit(1, 2, buffer, False)  # the buffer is free again
    finish(store, first, again)
    assert store.order == [0, 10]
    assert not first.cancel()
    assert reader.statistics().cancelled == 1
    with pytest.raises(AssertionError):
        guess.wait()


def test_two_reads_never_share_a_buffer(store: ToyStore, reader: Reader) -> None:
    first = hold(store, reader)
    buffer = aligned(SLOT)
    one = reader.submit(1, 1, buffer, False)
    with pytest.raises(AssertionError, match="another read into this buffer"):
        reader.submit(1, 2, buffer, True)
    finish(store, first, one)
    reader.submit(1, 2, buffer, True).wait()


def test_a_disk_that_refuses_twice_is_asked_a_third_time() -> None:
    reader = Reader(ToyStore(failures={9: 2}))
    buffer = aligned(SLOT)
    reader.submit(1, 1, buffer, True).wait()
    assert (buffer == 9).all()
    assert reader.statistics().retries == 2
    reader.close()


def test_a_disk_that_refuses_for_good_is_an_error_where_it_is_waited_for() -> None:
    store = ToyStore(failures={9: 3})
    reader = Reader(store)
    bad, good = reader.submit(1, 1, aligned(SLOT), False), reader.submit(1, 2, aligned(SLOT), False)
    for _ in range(2):
        with pytest.raises(
            StorageError, match=r"expert 1 of mixture layer 1 could not be read in 3 tries: the disk said"
        ):
            bad.wait()
    assert bad.done
    good.wait()
    reader.submit(1, 1, aligned(SLOT), True).wait()  # the next one may go well
    assert reader.statistics().reads == 2
    reader.close()


def test_damage_is_not_tried_again() -> None:
    store = ToyStore(failures={9: 3}, error=SourceError("expert 1 is damaged"))
    reader = Reader(store)
    with pytest.raises(SourceError, match="expert 1 is damaged"):
        reader.submit(1, 1, aligned(SLOT), True).wait()
    assert store.order == [9]
    reader.close()


def test_our_own_mistakes_are_not_swallowed_by_a_thread() -> None:
    reader = Reader(ToyStore(failures={9: 1}, error=AssertionError("ours")))
    with pytest.raises(AssertionError, match="ours"):
        reader.submit(1, 1, aligned(SLOT), True).wait()
    reader.submit(1, 1, aligned(SLOT), True).wait()
    reader.close()


def test_closing_ends_what_is_read_and_tells_who_waits_for_the_rest(store: ToyStore) -> None:
    reader = Reader(store, threads=1)
    first = hold(store, reader)
    queued = reader.submit(1, 1, aligned(SLOT), True)
    closing = threading.Thread(target=reader.close)
    closing.start()
    with pytest.raises(StorageError, match="expert 1 of mixture layer 1 was not read"):
        queued.wait()
    assert not queued.cancel()
    store.gate.set()
    closing.join()
    assert first.wait() >= 0
    assert store.order == [0]
    reader.close()
    assert not [thread for thread in threading.enumerate() if thread in reader._threads]
    with pytest.raises(AssertionError, match="closed"):
        reader.submit(0, 0, aligned(SLOT), True)


def test_statistics_count_what_was_read(store: ToyStore) -> None:
    reader = Reader(store, threads=2)
    store.gate.clear()
    tickets = [reader.submit(0, expert, aligned(SLOT), True) for expert in (0, 1)]
    for _ in tickets:
        assert store.begun.acquire(timeout=10)
    time.sleep(0.05)
    assert reader.statistics().seconds >= 0.05
    finish(store, *tickets)
    reader.close()
    counts = reader.statistics()
    assert (counts.reads, counts.bytes, counts.retries, counts.cancelled) == (2, 2 * SLOT, 0, 0)
    assert 0.05 <= counts.seconds < 0.1 + max(t.finished or 0 for t in tickets) - min(t.started or 0 for t in tickets)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_whatever_is_promoted_and_cancelled_every_buffer_holds_its_own_expert(threads: int) -> None:
    store = ToyStore(failures=dict.fromkeys(range(0, 48, 7), 1))
    reader = Reader(store, threads=threads)
    rng = np.random.default_rng(threads)
    slots = [aligned(SLOT) for _ in range(12)]
    held: dict[int, tuple[int, Ticket]] = {}
    for _ in range(600):
        slot, key = int(rng.integers(12)), int(rng.integers(48))
        if slot in held:
            old, ticket = held.pop(slot)
            if not ticket.cancel():
                ticket.wait()
                assert (slots[slot] == old).all()
        held[slot] = key, reader.submit(*divmod(key, 8), slots[slot], bool(rng.integers(2)))
        if rng.integers(3) == 0:
            held[slot][1].promote()
    for slot, (key, ticket) in held.items():
        ticket.wait()
        assert (slots[slot] == key).all()
    counts = reader.statistics()
    assert counts.reads + counts.cancelled == 600
    assert counts.bytes == counts.reads * SLOT
    reader.close()
