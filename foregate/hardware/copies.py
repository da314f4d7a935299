"""How fast memory is copied and read: within the host, and to and from a CUDA device. Touches no disk.

The CUDA half has not run on a GPU yet (this was written on a machine without one).
"""

import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from foregate.hardware.profile import Timing
from foregate.hardware.sampling import Pace, Work, interleaved, timing
from foregate.store.base import Buffer
from foregate.store.direct import aligned

SIZES = tuple(1 << power for power in (16, 20, 22, 24, 26))  # 64 KiB .. 64 MiB
COLD = 256 << 20  # bytes gone through before the same ones come again, so that no cache holds them


def time_memory(sizes: Sequence[int], threads: Sequence[int], pace: Pace, cold: int = COLD) -> list[Timing]:
    """Copies within host memory by size and threads, and reading it with all of these threads' cores."""
    source, target = _bytes(cold), _bytes(cold)
    found = []
    for count in threads:
        for size in sizes:
            found.append(timing("memcpy", size, _together(_copier(source, target, size), count, pace), at_once=count))
        read = _together(_reader(source, sizes[-1]), count, pace)
        found.append(timing("memread", sizes[-1], read, at_once=count))
    return found


def time_device(sizes: Sequence[int], pace: Pace) -> list[Timing]:
    """Copies between host and CUDA device; none where torch has no such device."""
    try:
        import torch
    except ModuleNotFoundError:
        return []
    if not torch.cuda.is_available():
        return []
    found = []
    for size in sizes:
        host = {pinned: torch.ones(size, dtype=torch.uint8, pin_memory=pinned) for pinned in (True, False)}
        near, far = (torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(2))
        pairs = {
            "pinned": (near, host[True]),
            "pageable": (near, host[False]),
            "readback": (host[True], near),
            "on-device": (far, near),
        }

        def moving(to: Any, of: Any) -> Work:
            def copy() -> None:
                to.copy_(of, non_blocking=True)
                torch.cuda.synchronize()

            return copy

        times = interleaved([moving(*pair) for pair in pairs.values()], pace)
        found += [timing(kind, size, rounds_of) for kind, rounds_of in zip(pairs, times, strict=True)]
        # Reading is half of what a copy within the device's memory does.
        read = [[t / 2 for t in one] for one in times[list(pairs).index("on-device")]]
        found.append(timing("device-read", size, read, basis="derived"))
    return found


def copier(size: int, cold: int = COLD) -> Work:
    """Work that copies `size` bytes within host memory, other ones each time."""
    return _copier(_bytes(cold), _bytes(cold), size)


def reader(size: int, cold: int = COLD) -> Work:
    """Work that reads `size` bytes of host memory, other ones each time."""
    return _reader(_bytes(cold), size)


def _bytes(count: int) -> Buffer:
    """Memory as the slots have it; its pages are there."""
    room = aligned(count)
    room[:] = 1
    return room


def _copier(source: Any, target: Any, size: int) -> Work:
    offsets = _offsets(len(source), size)

    def copy() -> None:
        start = next(offsets)
        np.copyto(target[start : start + size], source[start : start + size])

    return copy


def _reader(source: Any, size: int) -> Work:
    offsets, words = _offsets(len(source), size), source.view(np.int64)

    def read() -> None:
        start = next(offsets) // 8
        words[start : start + size // 8].sum()

    return read


def _offsets(end: int, size: int) -> "itertools.cycle[int]":
    return itertools.cycle(range(0, end - size + 1, size))


def _together(work: Work, threads: int, pace: Pace) -> list[list[float]]:
    """Rounds of seconds of single runs, several threads at it; numpy lets go of Python's lock meanwhile."""
    return [_round(work, threads, pace.seconds) for _ in range(pace.rounds)]


def _round(work: Work, threads: int, seconds: float) -> list[float]:
    times: list[float] = []
    start = threading.Barrier(threads)

    def run() -> None:
        start.wait()
        end, first = time.perf_counter() + seconds, True
        while first or time.perf_counter() < end:
            first, started = False, time.perf_counter()
            work()
            times.append(time.perf_counter() - started)

    running = [threading.Thread(target=run, daemon=True) for _ in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return times
