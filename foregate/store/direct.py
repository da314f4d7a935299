"""Reads of a file that go past the page cache, and the buffers they want. Knows nothing of experts.

What was read once is not kept in memory a second time, and a figure measured here is the disk's, not the cache's.
"""

import mmap
import os
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from foregate.errors import SourceError, StorageError
from foregate.store.base import Buffer
from foregate.store.layout import round_up

BLOCK = 4096  # bytes: O_DIRECT's offsets, lengths and addresses are multiples of it (512 would do on some devices)
HUGE = 2 << 20  # bytes of a huge page: one stretch of physical memory, which a disk fills in one transfer
# Bytes. Measured with 50 MB experts: read whole 24 ms each; by 2, 4 or 8 MiB 21 ms in some runs, 32 to 36 in others.
BOUNCE = 64 << 20
_OWN = threading.local()  # each thread's bounce buffer, for all files: a checkpoint of many shards has many of these


def aligned(nbytes: int) -> Buffer:
    """A buffer [nbytes] that begins at a multiple of 4096; from 2 MiB on, on huge pages where the system grants them.

    A disk fills huge pages up to twice as fast as scattered ones. The memory is taken when first written to, and given
    back with the last reference.
    """
    multiple = HUGE if nbytes >= HUGE else BLOCK
    room = _private(nbytes + multiple)
    if nbytes >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
        room.madvise(mmap.MADV_HUGEPAGE)
    whole: Buffer = np.frombuffer(room, np.uint8)
    start = -whole.ctypes.data % multiple
    return whole[start : start + nbytes]


def _private(nbytes: int) -> mmap.mmap:
    """Memory of this process alone: what mmap gives unasked is shared, and few systems put that on huge pages."""
    if hasattr(mmap, "MAP_PRIVATE"):
        return mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return mmap.mmap(-1, nbytes)


@final
class DirectFile:
    """A file opened for reading with O_DIRECT; where the file system refuses that, buffered, and dropped after reading.

    direct  whether reads go past the page cache; False: they pass through it, and it is told to forget them
    size    bytes of the file when it was opened

    Any number of threads may read at once. Raises: StorageError if the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd, self.direct = _open(path)
            self._close = weakref.finalize(self, os.close, self._fd)
            self._close.atexit = False  # threads may still read
            state = os.fstat(self._fd)
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}") from error
        self.size, self._written = state.st_size, state.st_mtime_ns

    @property
    def changed(self) -> bool:
        """Whether it was written to since it was opened. One that took its place under its name does not matter."""
        return os.fstat(self._fd).st_mtime_ns != self._written

    def read_into(self, offset: int, buffer: Buffer) -> int:
        """Fill `buffer` with the bytes from `offset` on.

        Without a copy if offset and the buffer's address are multiples of 4096, through a buffer of the thread's own
        otherwise.

        Returns: bytes read from the device, whole blocks.
        Raises: SourceError if the file ends before; StorageError if the disk refuses.
        """
        if not self.direct:
            return self.scatter([(offset, buffer)])
        whole = len(buffer) // BLOCK * BLOCK if offset % BLOCK == 0 and buffer.ctypes.data % BLOCK == 0 else 0
        if whole:
            self._fill(offset, buffer[:whole], whole)
        return whole + (self.scatter([(offset + whole, buffer[whole:])]) if whole < len(buffer) else 0)

    def scatter(self, pieces: Sequence[tuple[int, Buffer]]) -> int:
        """Fill several buffers, given as (offset, buffer) by rising offset, from one stretch of the file.

        What lies between them is read as well, so they should be neighbours. Returns and raises as `read_into`.
        """
        start, end = pieces[0][0], pieces[-1][0] + len(pieces[-1][1])
        if not self.direct:
            for offset, buffer in pieces:
                self._fill(offset, buffer, len(buffer))
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._fd, start, end - start, os.POSIX_FADV_DONTNEED)
            return sum(len(buffer) for _, buffer in pieces)
        start, stop = start // BLOCK * BLOCK, round_up(end, BLOCK)
        step = round_up(-(-(stop - start) // -(-(stop - start) // BOUNCE)), BLOCK)  # equal chunks, none a small rest
        for block in range(start, stop, step):
            chunk = _bounced()[: min(step, stop - block)]
            self._fill(block, chunk, min(len(chunk), end - block))
            for offset, buffer in pieces:
                low, high = max(offset, block), min(offset + len(buffer), block + len(chunk))
                if low < high:
                    buffer[low - offset : high - offset] = chunk[low - block : high - block]
        return stop - start

    def close(self) -> None:
        """Close the file, as happens when nobody holds this object; reading from it afterwards is our mistake."""
        self._close()

    def _fill(self, offset: int, buffer: Buffer, needed: int) -> None:
        """Read until `needed` bytes are there: a call may return fewer (interrupted calls Python repeats itself)."""
        assert self._close.alive, f"{self.path} was closed"
        if offset + needed > self.size:
            raise SourceError(f"{self.path} ends at byte {self.size}, before byte {offset + needed} that was asked for")
        done = 0
        while done < needed:
            try:
                got = os.preadv(self._fd, [buffer[done:].data], offset + done)
            except OSError as error:
                raise StorageError(f"cannot read {self.path} at byte {offset + done}: {error.strerror}") from error
            if done + got < needed and self.direct:
                got = got // BLOCK * BLOCK  # O_DIRECT goes on at a block's beginning
            if got == 0:
                raise StorageError(f"cannot read {self.path} at byte {offset + done}: nothing comes")
            done += got


def _bounced() -> Buffer:
    if not hasattr(_OWN, "buffer"):
        _OWN.buffer = aligned(BOUNCE)
    buffer: Buffer = _OWN.buffer
    return buffer


def _open(path: Path) -> tuple[int, bool]:
    """The descriptor, and whether it reads past the page cache: some file systems refuse at open, others at a read."""
    if hasattr(os, "O_DIRECT"):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        except OSError:
            return os.open(path, os.O_RDONLY), False
        try:
            os.preadv(fd, [aligned(BLOCK).data], 0)
        except OSError:
            os.close(fd)
        else:
            return fd, True
    return os.open(path, os.O_RDONLY), False
