"""One measurement of this machine, from the disk to the predictor, as a Profile. How each is timed stands elsewhere."""

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from foregate.errors import ModelError
from foregate.hardware import compute, copies, disk
from foregate.hardware.machine import Foreign, Machine, describe
from foregate.hardware.profile import Profile, Timing
from foregate.hardware.sampling import Pace, Work, repeat, timing
from foregate.hardware.turns import time_turns

BUSY = 0.15  # share of the cores that others may keep busy before a note says so
OVERLAP_BLOCK = 16 << 20
IDLE = 0.02  # seconds of sleep, at least, between pieces of work
ASLEEP = 4  # times what the work took: processors that work for less than some 40 % of the time are slow here


@dataclass(frozen=True)
class Effort:
    """What is measured, and for how long."""

    blocks: tuple[int, ...] = disk.BLOCKS
    depths: tuple[int, ...] = disk.DEPTHS
    sizes: tuple[int, ...] = copies.SIZES
    tokens: tuple[int, ...] = (1, 2, 4, 8, 16, 64, 256)  # of experts
    batches: tuple[int, ...] = (1, 8, 64)  # of the rest
    file_bytes: int = 512 << 20
    cold: int = 256 << 20
    rounds: int = 3
    seconds: float = 0.08

    @property
    def pace(self) -> Pace:
        """Rounds over everything, and seconds for each piece of work in a round."""
        return Pace(self.rounds, self.seconds)


FULL = Effort()
QUICK = Effort(
    blocks=disk.BLOCKS[::2],
    depths=(1, 4),
    sizes=copies.SIZES[::2],
    tokens=(1, 4, 16),
    batches=(1, 8),
    file_bytes=128 << 20,
    cold=128 << 20,
    rounds=2,
    seconds=0.03,
)

Advance = Callable[[str, float], None]


def measure(
    folder: Path,
    *,
    model: str | None = None,
    predictor: Path | None = None,
    effort: Effort = FULL,
    trust_remote_code: bool = False,
    advance: Advance = lambda what, share: None,
) -> Profile:
    """Measure this machine.

    folder     on the disk to measure; a model's own shards, if they are there and large enough, are read instead
    model      whose experts, dense layers and output embedding are timed, on random weights of their shapes
    predictor  a fitted one's file
    advance    told what is going on, and what share of the whole that was

    Raises: StorageError where the disk refuses, ModelError for a model that cannot be had, SourceError for a broken
    predictor.
    """
    foreign, notes = Foreign(), list[str]()
    advance("model", 0.0)
    outlined = None if model is None else compute.outline(model, trust_remote_code=trust_remote_code)
    timings = [] if predictor is None else _predictor(predictor, outlined, effort, advance)
    advance("memory", 0.05)
    timings += copies.time_memory(effort.sizes, (1, 2), effort.pace, effort.cold)
    timings += copies.time_device(effort.sizes, effort.pace)
    advance("compute", 0.15)
    if outlined is None:
        size = copies.SIZES[-1]
        work: Work = copies.reader(size, effort.cold)
    else:
        experts = compute.Experts(outlined, effort.cold)
        timings += experts.time(effort.tokens, effort.pace)
        size, work = outlined.shape.expert_bytes, experts.work(1)
        if experts.bytes < effort.cold // 4:
            notes.append(f"all experts together are {experts.bytes >> 10} KiB, which caches hold while they compute")
    advance("disk", 0.15)
    with _files(folder, model, effort.file_bytes) as files:
        notes += _about(files)
        blocks = [block for block in effort.blocks if len(files.places(block)) >= 2]
        timings += disk.time_reads(files, blocks, effort.depths, effort.pace, lambda s: advance("disk", 0.45 * s))
        advance("overlap", 0.0)
        timings += _overlap(files, work, size, effort)
    advance("dense part", 0.1)
    if outlined is not None:
        timings += compute.time_head(outlined, effort.batches, effort.pace)
        try:
            timings += compute.time_dense(outlined, effort.batches, rounds=2 * effort.pace.rounds)
            advance("runtime", 0.05)
            timings += time_turns(str(model), timings, outlined.device, trust_remote_code=trust_remote_code)
        except ModelError as error:
            notes.append(f"not measured: {error}")
    advance("done", 0.05)
    machine = Machine(**describe(folder), direct=files.direct, foreign_load=foreign.cores())
    notes += _about_others(machine)
    return Profile(
        name="this machine",
        machine=machine,
        timings=tuple(timings),
        model=None if outlined is None else outlined.shape,
        predictor=None if predictor is None else str(predictor),
        notes=tuple(notes),
    )


def _predictor(path: Path, outlined: compute.Outline | None, effort: Effort, advance: Advance) -> list[Timing]:
    from foregate.hardware.prediction import time_predictor

    advance("predictor", 0.0)
    return time_predictor(path, None if outlined is None else outlined.shape.hidden, effort.batches, effort.pace)


def _about_others(machine: Machine) -> list[str]:
    load = machine.foreign_load
    if load is None or load <= BUSY * (machine.cores or 1):
        return []
    return [f"other processes kept {load:.2f} cores busy meanwhile; measure again on an idle machine"]


def _files(folder: Path, model: str | None, size: int) -> AbstractContextManager[disk.Files]:
    shards = [] if model is None or not Path(model).is_dir() else sorted(Path(model).glob("*.safetensors"))
    if sum(shard.stat().st_size for shard in shards) >= size and folder == Path(model or "."):
        return disk.in_place(shards)
    return disk.scratch(folder, size)


def _about(files: disk.Files) -> list[str]:
    if files.direct:
        return [f"reads: {files.what}, past the page cache (O_DIRECT), at random places"]
    return [
        f"reads: {files.what}; its file system cannot be read past memory (no O_DIRECT), so these are times of the "
        "page cache, which was asked to drop each block before it was read but may have kept it"
    ]


def _overlap(files: disk.Files, work: Work, size: int, effort: Effort) -> list[Timing]:
    """The same work and the same reads, alone and beside each other, and the work after a sleep, in turns."""
    block = max(b for b in effort.blocks if b <= OVERLAP_BLOCK)
    places = itertools.cycle(files.places(block, seed=1))
    seconds = 3 * effort.pace.seconds
    alone, beside, late = list[list[float]](), list[list[float]](), list[list[float]]()
    reads_alone, reads_beside = list[disk.Reads](), list[disk.Reads]()
    work()
    for _ in range(2 * effort.rounds):
        alone.append(repeat(work, seconds))
        reads_alone.append(disk.read_for(files, places, block, 1, seconds))
        with _reading(files, places, block) as reads:
            beside.append(repeat(work, seconds))
        reads_beside += reads
        late.append(after_idle(work, seconds))
    return [
        timing("work-alone", size, alone),
        timing("work-beside-reads", size, beside),
        timing("work-after-idle", size, late),
        disk.summary("read-alone", block, 1, reads_alone),
        disk.summary("read-beside-work", block, 1, reads_beside),
    ]


def after_idle(work: Work, seconds: float) -> list[float]:
    """The times of single runs for about so many seconds, with a long sleep before each; the first, which still finds
    the processor awake, is left out.
    """
    times = repeat(work, 0.0)
    end = time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        time.sleep(max(IDLE, ASLEEP * times[-1]))
        times += repeat(work, 0.0)
    return times[2:]


@contextlib.contextmanager
def _reading(files: disk.Files, places: Iterator[tuple[int, int]], block: int) -> Iterator[list[disk.Reads]]:
    """Somebody else reads, one block after another, until this is left; then the reads are there."""
    reads: list[disk.Reads] = []
    stop = threading.Event()
    thread = threading.Thread(target=lambda: reads.append(disk.read_for(files, places, block, 1, 60.0, stop=stop)))
    thread.start()
    try:
        yield reads
    finally:
        stop.set()
        thread.join()
