"""How fast runs are simulated, and where the time goes: accesses a second of processor time, on one thread.

    python benchmarks/simulation_speed.py [TRACE.parquet] [--tokens N] [--json]

An access is an expert that a layer demands. The trace is the published DeepSeek one of ../shared/data, unless a
foregate trace is given; every token has a pass of its own. A quarter of all experts fit, the others come from the host
memory of the preset rtx-3090. What is said of the layers is given: 0.4 for who is used, and noise up to 0.6 for all
(the speed depends on how many are read, which is printed). `foreseen`: what `predicted` eviction thinks of every
expert after every set is given, too; it depends on the routing alone and is computed once, which is timed here as
`foresee`; `live` computes it as the run goes on, as the runtime does. `memory core`: the same demands without a clock.
Every round runs each once, in turn; medians are printed, with --json as a last line.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from foregate.arrays import Float32
from foregate.hardware.presets import PRESETS
from foregate.memory.predicted import Predicted
from foregate.memory.replay import Stream, replay
from foregate.simulation.chances import oracle_chances
from foregate.simulation.foresight import foresee
from foregate.simulation.passes import Passes, passes_of
from foregate.simulation.shapes import find_shape
from foregate.simulation.simulate import simulate
from foregate.traces.importers import IMPORTERS
from foregate.traces.storage import read_trace

SOURCE = Path(__file__).parents[2] / "shared" / "data" / "deepseek-v2-lite-chat" / "traces.tar.xz"
ROUNDS = 5
SHARE = 0.25
PARTS = {
    "memory core, lru": ("memory core lru", None),
    "clock and bookkeeping of reads": ("lru", "memory core lru"),
    "predicted's choice of who leaves": ("predicted foreseen", "lru"),
    "being told chances, and top:2 guesses": ("predicted foreseen top:2", "predicted foreseen"),
    "computing what predicted thinks": ("predicted live", "predicted foreseen"),
}
"""What one part costs: the difference of two runs."""


def main() -> None:
    """Simulate, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--tokens", type=int, help="only the first so many")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.trace is None and not SOURCE.is_file():
        print("skipped: ../shared/data/deepseek-v2-lite-chat is not here; give a trace")
        return
    trace = read_trace(options.trace) if options.trace else IMPORTERS["moe-beyond"]([SOURCE])
    trace = trace.take(slice(0, options.tokens)) if options.tokens else trace
    passes, shape = passes_of(trace, as_decode=True), find_shape(None, trace.spec)
    slots = round(SHARE * passes.layers * passes.num_experts)
    sets = int((np.diff(passes.starts) > 0).sum())
    print(f"{passes.demanded:,} accesses in {sets:,} sets, {slots} slots, load {os.getloadavg()[0]:.1f}")
    runs = contestants(passes, guessed(passes), shape, slots)
    seconds, reads = measure(runs)
    speeds = {name: passes.demanded / s for name, s in seconds.items()}
    for name, speed in speeds.items():
        print(f"  {name:34} {speed / 1e6:6.2f} M accesses/s, {seconds[name] / sets * 1e9:6.0f} ns a set, {reads[name]}")
    parts = {part: (seconds[a] - (seconds[b] if b else 0)) / sets * 1e9 for part, (a, b) in PARTS.items()}
    for part, nanoseconds in parts.items():
        print(f"  {part:40} {nanoseconds:6.0f} ns a set")
    result: dict[str, Any] = {f"{name.replace(' ', '_')}_per_second": round(speed) for name, speed in speeds.items()}
    result |= {"ns_a_set": {part: round(value) for part, value in parts.items()}, "load": os.getloadavg()[0]}
    print(json.dumps(result) if options.json else "")


def contestants(passes: Passes, chances: Float32, shape: Any, slots: int) -> dict[str, Callable[[], str]]:
    """By name, what runs once and says in a few words what it did."""
    foreseen = foresee(passes, Predicted())
    stream = stream_of(passes)

    def run(evict: str, prefetch: str = "none", **given: Any) -> Callable[[], str]:
        said = None if prefetch == "none" else chances

        def once() -> str:
            line = simulate(
                passes, shape, PRESETS["rtx-3090"], slots, evict, prefetch, chances=said, host_slots=None, **given
            )
            read, guesses = line.counts.misses.sum() + line.counts.guesses.sum(), line.counts.guesses.sum()
            rate = line.counts.hit_rate
            return f"hit rate {rate:.3f}, {read / passes.demanded:.2f} reads an access, {guesses / read:.2f} ahead"

        return once

    def core(evict: str, **given: Any) -> Callable[[], str]:
        shape = passes.layers, passes.num_experts, slots
        return lambda: f"hit rate {replay(stream, *shape, evict, top_k=passes.top_k, **given).hit_rate:.3f}"

    return {
        "memory core lru": core("lru"),
        "memory core predicted foreseen": core("predicted", foreseen=foreseen),
        "lru": run("lru"),
        "lru top:2": run("lru", "top:2"),
        "predicted foreseen": run("predicted", foreseen=foreseen),
        "predicted foreseen top:2": run("predicted", "top:2", foreseen=foreseen),
        "predicted foreseen threshold:0.5": run("predicted", "threshold:0.5", foreseen=foreseen),
        "predicted live": run("predicted"),
        "predicted live top:2": run("predicted", "top:2"),
        "foresee": lambda: "" if foresee(passes, Predicted()) is None else "once for all slots and strategies",
    }


def guessed(passes: Passes) -> Float32:
    """[P, L, 1, E] chances of a middling predictor."""
    said, noise = oracle_chances(passes), np.random.default_rng(0)
    for some in range(0, len(said), 1000):  # there may be a gigabyte of them
        part = said[some : some + 1000]
        part[:] = 0.4 * part + 0.6 * noise.random(part.shape, np.float32) ** 4
    return said


def stream_of(passes: Passes) -> Stream:
    """The same demands as the replay takes them."""
    L = passes.layers
    assert (np.diff(passes.starts) > 0).all(), "a layer without experts"
    opens = np.zeros((len(passes), L), np.int32)
    opens[:, 0] = 1 + passes.fresh
    layer = np.tile(np.arange(L, dtype=np.int32), len(passes))
    return Stream(layer, opens.reshape(-1), passes.starts, passes.experts)


def measure(runs: dict[str, Callable[[], str]]) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of processor time, which foreign load disturbs least, and what each did."""
    did = {name: run() for name, run in runs.items()}  # compiles
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(s) for name, s in seconds.items()}, did


if __name__ == "__main__":
    main()
