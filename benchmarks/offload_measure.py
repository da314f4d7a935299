"""One block of generation, measured: the time of each token, bytes from the device, memory, and what else ran.

Opens no model and compares nothing.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

SKIPPED = 4  # decoded tokens that are not timed: first calls are slow


@dataclass(frozen=True)
class Block:
    """What one contestant did with one prompt.

    seconds   of each decoded token that counts, less what the ration of page cache took
    first     seconds to the first token: the prefill
    bytes     read from the device while these tokens were decoded, by this process (/proc/self/io)
    used      bytes of memory at most: VmHWM, reset before the contestant was opened; where the page cache was rationed,
              what was there before the first token and the most that the ration found
    limit     bytes of memory that it had
    foreign   share of the machine's processor time that other processes used
    stolen    share that the host kept
    load      of the machine, over the last minute, at the end
    ids       what was written
    counts    the contestant's own numbers
    """

    contestant: str
    budget: float
    round: int
    seconds: tuple[float, ...]
    first: float
    bytes: int
    used: int
    limit: int
    foreign: float
    stolen: float
    load: float
    ids: tuple[int, ...]
    counts: dict[str, Any]

    @property
    def rate(self) -> float:
        """Tokens decoded per second."""
        return len(self.seconds) / sum(self.seconds)

    @property
    def bytes_per_token(self) -> float:
        """From the device."""
        return self.bytes / len(self.seconds)

    def row(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


class Watch:
    """A streamer for `generate`: called with the prompt first, then with each token as it is written."""

    def __init__(self, excluded: Callable[[], float]) -> None:
        self.excluded = excluded
        self.marks: list[tuple[float, float, int]] = []

    def put(self, value: Any) -> None:
        """A token."""
        self.marks.append((time.perf_counter(), self.excluded(), device_bytes()))

    def end(self) -> None:
        """All is written."""

    def numbers(self) -> tuple[float, tuple[float, ...], int]:
        """Seconds to the first token, of each later one, and bytes read for the later ones."""
        spans = [
            (after[0] - before[0]) - (after[1] - before[1])
            for before, after in zip(self.marks, self.marks[1:], strict=False)
        ]
        return spans[0], tuple(spans[1 + SKIPPED :]), self.marks[-1][2] - self.marks[1 + SKIPPED][2]


def measure(
    generate: Callable[..., Any],
    ids: Any,
    new: int,
    *,
    contestant: str,
    budget: float,
    number: int,
    limit: int,
    excluded: Callable[[], float] = lambda: 0.0,
    used: Callable[[], int] | None = None,
    counts: Callable[[], dict[str, Any]] = dict,
) -> Block:
    """Write `new` tokens after the prompt ids [1, P], greedily."""
    watch = Watch(excluded)
    (busy, stolen), own, started = _seconds(), time.process_time(), time.perf_counter()
    written = generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=2, streamer=watch)
    wall = (time.perf_counter() - started) * (os.cpu_count() or 1)
    busy, stolen = (after - before for after, before in zip(_seconds(), (busy, stolen), strict=True))
    first, seconds, read = watch.numbers()
    return Block(
        contestant=contestant,
        budget=budget,
        round=number,
        seconds=seconds,
        first=first,
        bytes=read,
        used=used() if used else memory("VmHWM"),
        limit=limit,
        foreign=max(0.0, busy - (time.process_time() - own)) / wall,
        stolen=stolen / wall,
        load=os.getloadavg()[0],
        ids=tuple(written[0, ids.shape[1] :].tolist()),
        counts=counts(),
    )


def device_bytes() -> int:
    """Bytes this process has had fetched from storage: by reads past the page cache, into it, and by page faults."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def memory(field: str) -> int:
    """VmHWM or VmRSS of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def forget_peak() -> int:
    """VmHWM starts again from what is used now, which is returned."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def _seconds() -> tuple[float, float]:
    """Of all processors: at work, and kept by the host, since the machine started."""
    user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    tick = os.sysconf("SC_CLK_TCK")
    return (user + nice + system + irq + softirq) / tick, steal / tick


def machine() -> dict[str, Any]:
    """Cores and versions."""
    import accelerate
    import torch
    import transformers

    return {
        "cores": os.cpu_count(),
        "memory": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "accelerate": accelerate.__version__,
        "kernel": os.uname().release,
    }
