"""How long moving experts takes beside computing them: disk, memory and (where there is CUDA) the link, by expert size
and number of experts, p50/p95/p99. Measures this machine; nothing is simulated.

An expert "breaks even" on a way when as many experts compute meanwhile as the last column says: fewer, and the model
waits. Reads are O_DIRECT on a file of random bytes that goes when this ends; experts are bf16, one token each.

    python benchmarks/memory_transfer.py [--sizes 10,50,100] [--experts 1,2,4,8] [--disk DIR] [--json FILE]
"""

import argparse
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from foregate.hardware import compute, copies, disk
from foregate.hardware.machine import Foreign, Machine, describe
from foregate.hardware.sampling import Pace, interleaved
from foregate.report.transfer import Moved
from foregate.store.base import Buffer
from foregate.store.direct import aligned

HIDDEN = 2048
MB = 10**6


def main() -> None:
    """Every size in turn; all ways and numbers of experts of one size take turns with its computation."""
    options = _options()
    foreign, rows = Foreign(), list[Moved]()
    largest = max(options.sizes) * max(options.experts) * MB
    with disk.scratch(options.disk, max(512 << 20, -(-2 * largest // disk.CHUNK) * disk.CHUNK)) as files:
        for megabytes in options.sizes:
            rows += _of_size(megabytes, options, files)
    facts = Machine(**describe(options.disk), direct=files.direct, foreign_load=foreign.cores())
    _show(rows, facts)
    if options.json:
        report = {"machine": asdict(facts), "rounds": options.rounds, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _of_size(megabytes: int, options: argparse.Namespace, files: disk.Files) -> Iterator[Moved]:
    experts = compute.Experts(_outline(megabytes))
    size = experts.given.shape.expert_bytes
    block = -(-size // disk.ALIGNED) * disk.ALIGNED
    works: dict[tuple[str, int], Callable[[], object]] = {("compute", 1): experts.work(1)}
    for count in options.experts:
        for threads in (1, 4):
            works[f"disk, {threads} at once", count] = _from_disk(files, block, count, threads)
        for way, mover in _ways(size, max(options.experts)).items():
            works[way, count] = lambda mover=mover, count=count: mover(count)
    times = interleaved(list(works.values()), Pace(options.rounds, options.seconds))
    spread = {key: np.concatenate([np.array(one) for one in found]) for key, found in zip(works, times, strict=True)}
    computing = float(np.median(spread.pop(("compute", 1))))
    for (way, count), seconds in spread.items():
        p50, p95, p99 = (float(v) for v in np.percentile(seconds, (50, 95, 99)))
        speed = count * size / p50 / 1e9
        yield Moved(way, size, count, p50, p95, p99, len(seconds), speed, computing, p50 / computing)


def _outline(megabytes: int) -> compute.Outline:
    """A Mixtral whose experts weigh so much."""
    import torch
    from transformers import MixtralConfig, MixtralForCausalLM

    inner = megabytes * MB // (3 * 2 * HIDDEN)
    config = MixtralConfig(hidden_size=HIDDEN, intermediate_size=inner, num_hidden_layers=32, num_local_experts=8)
    with torch.device("meta"):
        model = MixtralForCausalLM._from_config(config, dtype=torch.bfloat16)
    return compute.outline_of(model, f"{megabytes} MB experts")


def _from_disk(files: disk.Files, block: int, count: int, threads: int) -> Callable[[], None]:
    """Read `count` experts, `threads` of them at once."""
    places = itertools.cycle(files.places(block, seed=block + count))
    readers = min(threads, count)
    memory = [aligned(block) for _ in range(readers)]  # as the runtime's buffers are

    def share(buffer: Buffer, how_many: int) -> None:
        for _ in range(how_many):
            disk.read_one(*next(places), buffer.data, direct=files.direct)

    def read() -> None:
        running = [
            threading.Thread(target=share, args=(one, len(range(i, count, readers)))) for i, one in enumerate(memory)
        ]
        for thread in running:
            thread.start()
        for thread in running:
            thread.join()

    for buffer in memory:
        buffer[:: disk.ALIGNED] = 0
    return read


def _ways(size: int, most: int) -> dict[str, Callable[[int], object]]:
    """Way -> move so many experts: within memory everywhere, over the link where there is CUDA (not run here yet)."""
    import torch

    copy = copies.copier(size)
    ways: dict[str, Callable[[int], object]] = {"memory": lambda count: [copy() for _ in range(count)]}
    if torch.cuda.is_available():
        near = torch.empty(size, dtype=torch.uint8, device="cuda")
        for way, pinned in (("to GPU, pageable", False), ("to GPU, pinned", True)):
            far = [torch.ones(size, dtype=torch.uint8, pin_memory=pinned) for _ in range(most)]

            def move(count: int, far: Any = far) -> None:
                for one in far[:count]:
                    near.copy_(one, non_blocking=True)
                torch.cuda.synchronize()

            ways[way] = move
    return ways


def _show(rows: list[Moved], facts: Machine) -> None:
    print(f"{facts.cpu}, {facts.cores} cores, torch {facts.torch} on {facts.threads} threads, GPU {facts.gpu}")
    print(
        f"disk {facts.disk} ({facts.file_system}), O_DIRECT {facts.direct}; others kept {facts.foreign_load} cores busy"
    )
    print(f"{'way':18}{'MB':>5}{'experts':>8}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'GB/s':>7}{'runs':>6}  break-even")
    for row in sorted(rows, key=lambda r: (r.expert_bytes, r.way, r.experts)):
        times = "".join(f"{value * 1e3:9.2f}" for value in (row.p50, row.p95, row.p99))
        size = f"{row.expert_bytes / MB:5.0f}{row.experts:8}"
        print(f"{row.way:18}{size}{times}{row.gb_s:7.2f}{row.count:6}  {row.break_even:.1f} computed")
    for size, computing in sorted({(r.expert_bytes, r.compute_p50) for r in rows}):
        print(f"one token through one expert of {size / MB:.0f} MB: {computing * 1e3:.2f} ms (p50)")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    numbers: Callable[[str], list[int]] = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser.add_argument("--sizes", type=numbers, default=[10, 50, 100], help="MB of one expert")
    parser.add_argument("--experts", type=numbers, default=[1, 2, 4, 8], help="experts moved together")
    parser.add_argument("--disk", type=Path, default=Path(), help="folder on the disk to read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.2, help="of each way and number, in each round")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    started = time.perf_counter()
    main()
    print(f"took {time.perf_counter() - started:.0f} s")
