"""How much memory this process may use, as Linux says. Reserves nothing; elsewhere all of it is unknown (None)."""

from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # version 1 writes "no limit" as a number beyond all memory


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory.

    total      of the machine
    available  without swapping, now
    limit      of this process and those in its control group; None: no limit, or unknown
    """

    total: int | None
    available: int | None
    limit: int | None


def memory() -> Memory:
    """As it is now."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return Memory(None, None, None)
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    sizes = [kib[name] * 1024 if name in kib else None for name in ("MemTotal", "MemAvailable")]
    return Memory(sizes[0], sizes[1], _limit())


def _limit() -> int | None:
    """The least limit of the process's control group and those around it."""
    try:
        groups = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return None
    files = []
    for number, controllers, path in groups:
        if number == "0":
            files += _upwards(CGROUPS, path, "memory.max")
        elif "memory" in controllers.split(","):
            files += _upwards(CGROUPS / "memory", path, "memory.limit_in_bytes")
    texts = [file.read_text(encoding="utf-8").strip() for file in files if file.is_file()]
    limits = [int(text) for text in texts if text.isdigit() and int(text) < UNLIMITED]
    return min(limits, default=None)


def _upwards(root: Path, path: str, name: str) -> list[Path]:
    """The file of that name in a group and in each that holds it, up to the root."""
    group = root / path.lstrip("/")
    return [folder / name for folder in (group, *group.parents) if folder.is_relative_to(root)]
