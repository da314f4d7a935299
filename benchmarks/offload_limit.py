"""A memory limit that the kernel keeps: a group of processes below a group that the user names. Starts no process.

Nothing is guessed: the group in which a shell happens to run may belong to whatever started it (a service manager, a
container, a build system), which watches who is in it. Name one that is yours, such as `systemd-run --user --scope
-p Delegate=yes` makes, or one that you made.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, final

LIMIT: Final = {1: "memory.limit_in_bytes", 2: "memory.max"}
PEAK: Final = {1: "memory.max_usage_in_bytes", 2: "memory.peak"}
TOLD: Final = ("cache", "rss", "mapped_file", "pgmajfault", "anon", "file", "file_mapped")  # of memory.stat


@final
@dataclass(frozen=True)
class Group:
    """A memory control group with a limit, page cache included.

    folder   of the group, in the control groups' file system
    version  1 or 2 of control groups
    """

    folder: Path
    version: int

    def join(self) -> None:
        """Put this process in. What it held before stays on the account of the group that it was in."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def numbers(self) -> dict[str, int]:
        """Bytes: the limit, the most that was used, and some of what memory.stat says."""
        found = {"limit": int(self._read(LIMIT)), "peak": int(self._read(PEAK))}
        lines = [line.split() for line in (self.folder / "memory.stat").read_text().splitlines()]
        return found | {name: int(value) for name, value in lines if name in TOLD}

    def _read(self, names: dict[int, str]) -> str:
        return (self.folder / names[self.version]).read_text()


@contextlib.contextmanager
def group(parent: Path, limit: int) -> Iterator[Group]:
    """A child of the named group, limited; removed at the end, when its processes have ended.

    Raises: OSError if the named folder is no memory control group, or none can be made in it.
    """
    version = 1 if (parent / LIMIT[1]).exists() else 2
    if version == 2 and "memory" not in (parent / "cgroup.subtree_control").read_text().split():
        raise OSError(f"{parent} gives its children no memory limits; write +memory to its cgroup.subtree_control")
    child = parent / f"foregate-{os.getpid()}-{time.monotonic_ns()}"
    child.mkdir()
    try:
        (child / LIMIT[version]).write_text(str(limit))
        if version == 2 and (child / "memory.swap.max").exists():
            (child / "memory.swap.max").write_text("0")
        yield Group(child, version)
    finally:
        for _ in range(50):  # the last process may not be gone yet
            try:
                child.rmdir()
                break
            except OSError:
                time.sleep(0.1)
        else:
            raise OSError(f"{child} still holds processes; end them and remove it")
