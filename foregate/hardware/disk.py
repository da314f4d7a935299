"""How fast a disk gives cold bytes: reads past the page cache, by block size and number of threads. Stores nothing."""

import contextlib
import errno
import itertools
import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foregate.errors import StorageError
from foregate.hardware.machine import disk_of
from foregate.hardware.profile import Timing
from foregate.hardware.sampling import Pace, timing
from foregate.store.direct import aligned

BLOCKS = tuple(1 << power for power in (16, 18, 20, 22, 24, 26))  # 64 KiB .. 64 MiB
DEPTHS = (1, 2, 4, 8)
ALIGNED = 4096
CHUNK = 16 << 20
DIRECT: int = getattr(os, "O_DIRECT", 0)
IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")  # new kernels accept O_DIRECT for these too, where it means nothing


@dataclass(frozen=True)
class Files:
    """Open files to read from.

    handles  file descriptors
    sizes    bytes of each
    direct   whether reads go past the page cache
    what     for the notes
    """

    handles: tuple[int, ...]
    sizes: tuple[int, ...]
    direct: bool
    what: str

    def places(self, block: int, seed: int = 0) -> list[tuple[int, int]]:
        """Every (handle, offset) at which a block begins, in random order."""
        found = [
            (handle, offset)
            for handle, size in zip(self.handles, self.sizes, strict=True)
            for offset in range(0, size - block + 1, block)
        ]
        return [found[i] for i in np.random.default_rng(seed).permutation(len(found))]


class Reads(NamedTuple):
    """One round of reads: the seconds of each, and what each came to, so that depth * bytes / each went through."""

    times: list[float]
    each: float


@contextlib.contextmanager
def scratch(folder: Path, size: int) -> Iterator[Files]:
    """A file of random bytes that has no name: it is gone when this process ends, however it ends.

    Raises: StorageError where the folder or the disk refuses.
    """
    handle, direct = _unnamed(folder)
    try:
        _fill(handle, size, folder)
        yield Files(
            (handle,),
            (size,),
            direct and disk_of(folder)[1] not in IN_MEMORY,
            f"an unnamed file of {size >> 20} MiB in {folder}",
        )
    finally:
        os.close(handle)


@contextlib.contextmanager
def in_place(paths: Sequence[Path]) -> Iterator[Files]:
    """Files that are there already, such as a model's shards; only read.

    Raises: StorageError where they cannot be opened.
    """
    with contextlib.ExitStack() as opened:
        handles, direct = [], True
        for path in paths:
            try:
                handle, past_cache = _open(path, os.O_RDONLY)
            except OSError as error:
                raise StorageError(f"cannot read {path}: {error.strerror}") from error
            opened.callback(os.close, handle)
            handles.append(handle)
            direct &= past_cache and disk_of(path.parent)[1] not in IN_MEMORY
        sizes = tuple(os.fstat(handle).st_size for handle in handles)
        yield Files(tuple(handles), sizes, direct, f"the model's own files ({len(paths)}), read in place")


def time_reads(
    files: Files,
    blocks: Sequence[int],
    depths: Sequence[int],
    pace: Pace,
    advance: Callable[[float], None] = lambda share: None,
) -> list[Timing]:
    """Every block size at every depth (threads that read one block each), in turns; `advance(share of it all)`."""
    cells = [(block, depth) for block in blocks for depth in depths]
    places = {block: itertools.cycle(files.places(block)) for block in blocks}
    found: dict[tuple[int, int], list[Reads]] = {cell: [] for cell in cells}
    for _ in range(pace.rounds):
        for block, depth in cells:
            found[block, depth].append(read_for(files, places[block], block, depth, pace.seconds))
            advance(1 / (pace.rounds * len(cells)))
    return [summary("read", block, depth, rounds) for (block, depth), rounds in found.items()]


def summary(kind: str, block: int, depth: int, rounds: Sequence[Reads]) -> Timing:
    """All rounds as one number: the median of what a read of a round came to, so that what goes through is right."""
    return timing(kind, block, [r.times for r in rounds], at_once=depth, reckoned=[r.each for r in rounds])


def read_for(
    files: Files,
    places: Iterator[tuple[int, int]],
    block: int,
    depth: int,
    seconds: float,
    *,
    stop: threading.Event | None = None,
) -> Reads:
    """`depth` threads read for so long, each at least once."""
    lock, start = threading.Lock(), threading.Barrier(depth)
    times: list[float] = []
    starts: list[float] = []
    ends: list[float] = []
    failed: list[OSError] = []
    stop = stop or threading.Event()  # ends the reading before its time

    def work() -> None:
        buffer = aligned(block)  # as the runtime's are
        buffer[::ALIGNED] = 0  # its pages exist before the clock runs
        start.wait()
        starts.append(time.perf_counter())
        end, first = time.perf_counter() + seconds, True
        while first or (time.perf_counter() < end and not stop.is_set() and not failed):
            first = False
            with lock:
                handle, offset = next(places)
            try:
                times.append(read_one(handle, offset, buffer.data, direct=files.direct))
                ends.append(time.perf_counter())
            except OSError as error:
                failed.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(depth)]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        stop.set()
    if failed:
        raise StorageError(f"reading {files.what} failed: {failed[0].strerror}") from failed[0]
    return Reads(times, depth * (max(ends) - min(starts)) / len(times))


def read_one(handle: int, offset: int, view: memoryview, *, direct: bool) -> float:
    """Seconds to fill `view`, which lies on a page's edge; where reads are not direct, the page cache is told to drop
    the bytes first, outside of the clock.
    """
    if not direct and hasattr(os, "posix_fadvise"):
        os.posix_fadvise(handle, offset, len(view), os.POSIX_FADV_DONTNEED)
    started, done = time.perf_counter(), 0
    while done < len(view):
        got = os.preadv(handle, [view[done:]], offset + done)
        if got == 0:
            raise OSError(errno.EIO, "the file became shorter")
        done += got
    return time.perf_counter() - started


def _open(path: Path, flags: int) -> tuple[int, bool]:
    """A file descriptor, and whether it goes past the page cache."""
    if DIRECT:
        try:
            return os.open(path, flags | DIRECT, 0o600), True
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
    with contextlib.suppress(FileNotFoundError):
        if flags & os.O_CREAT:  # the refused attempt may have made the file
            path.unlink()
    return os.open(path, flags, 0o600), False


def _unnamed(folder: Path) -> tuple[int, bool]:
    path = folder / f".foregate-profile-{os.getpid()}-{time.time_ns()}"
    try:
        handle, direct = _open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        path.unlink()
    except OSError as error:
        raise StorageError(f"cannot make a file in {folder}: {error.strerror}; name another with --disk") from error
    return handle, direct


def _fill(handle: int, size: int, folder: Path) -> None:
    """Random bytes, every page of them another, so that no file system compresses or shares them; all on the disk
    before anything is read.
    """
    state = os.fstatvfs(handle)
    free = state.f_bavail * state.f_frsize
    if free < size * 5 // 4:
        raise StorageError(
            f"{folder} has {free >> 20} MiB free; measuring its disk needs {size * 5 // 4 >> 20} MiB: name another "
            "folder with --disk"
        )
    try:
        with mmap.mmap(-1, CHUNK) as memory, memoryview(memory) as view:
            view[:] = np.random.default_rng(0).bytes(CHUNK)
            for offset in range(0, size, CHUNK):
                for page in range(0, CHUNK, ALIGNED):
                    view[page : page + 8] = (offset + page).to_bytes(8, "little")
                if os.pwrite(handle, view[: min(CHUNK, size - offset)], offset) < min(CHUNK, size - offset):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(handle)
    except OSError as error:
        raise StorageError(f"cannot write to {folder}: {error.strerror}; name another with --disk") from error
