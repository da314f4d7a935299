"""Facts of this machine: processor, memory, disk, GPU, who else is busy. Measures no speed."""

import os
import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Machine:
    """What was measured, or is described; None where it is not known.

    cores         that this process may use
    ram_bytes     all of it
    disk          the device behind the folder that was read
    direct        whether that could be read past the page cache (O_DIRECT)
    threads       of torch, while computing
    date          of the measurement, UTC
    foreign_load  cores that other processes kept busy meanwhile
    """

    cpu: str | None = None
    cores: int | None = None
    ram_bytes: int | None = None
    disk: str | None = None
    file_system: str | None = None
    direct: bool | None = None
    gpu: str | None = None
    gpu_bytes: int | None = None
    torch: str | None = None
    threads: int | None = None
    date: str | None = None
    foreign_load: float | None = None


def describe(folder: Path) -> dict[str, Any]:
    """The fields of Machine that do not depend on a measurement; `folder` is on the disk in question."""
    disk, file_system = disk_of(folder)
    facts = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "disk": disk,
        "file_system": file_system,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return {**facts, **_torch()}


def disk_of(folder: Path) -> tuple[str | None, str | None]:
    """The device and the file system that hold a folder, as Linux names them; elsewhere None."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None, None
    device = folder.stat().st_dev
    found: tuple[str | None, str | None] = None, None
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split()[2] == f"{os.major(device)}:{os.minor(device)}":
            file_system, source = after.split()[:2]
            found = (source, file_system)
    return found


class Foreign:
    """How busy other processes are, from its making until `cores` is asked."""

    def __init__(self) -> None:
        self._began, self._all, self._own = time.perf_counter(), _busy_seconds(), time.process_time()

    def cores(self) -> float | None:
        """Cores kept busy by others on average; None where the system does not say."""
        now = _busy_seconds()
        if now is None or self._all is None:
            return None
        passed = time.perf_counter() - self._began
        return round(max(now - self._all - (time.process_time() - self._own), 0.0) / max(passed, 1e-9), 3)


def _busy_seconds() -> float | None:
    """CPU seconds that all processes have used since the start: user, nice, system, interrupts, stolen."""
    try:
        numbers = [int(n) for n in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, irq, soft, stolen = numbers[:8]
    return (user + nice + system + irq + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _torch() -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError):  # it is not there, or one of its own libraries is broken
        return {}
    facts: dict[str, Any] = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["gpu_bytes"] = int(torch.cuda.get_device_properties(0).total_memory)
    return facts
