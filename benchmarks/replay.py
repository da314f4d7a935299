"""How fast a stream of (layer, expert) keys is replayed, beside libcachesim, in one run on one thread.

    python benchmarks/replay.py [TRACE.parquet] [--json]

Needs the package libcachesim (pip install libcachesim), for this benchmark only. The trace is the published DeepSeek
one, read from ../shared/data, unless a foregate trace is given. Every round runs each replay once, in turn; medians of
processor time are printed, and with --json a last line that holds `lru_ratio` and `belady_ratio`, ours over theirs.
Both at 25 % of all keys. Theirs reads keys and next uses from its own binary file (oracleGeneral), written just before
and so in the page cache; ours has the keys in memory. Our lru and belady count the hits of these rules without slots
and without naming victims, and our belady without being told next uses; "by victim" is the planner's own functions,
where belady has a calendar of the next uses that it is given, as theirs is. The hits of all are compared.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from foregate.arrays import Int32
from foregate.memory.replay import NEVER, next_uses
from foregate.memory.single import by_policy, replay_keys
from foregate.traces.importers import IMPORTERS
from foregate.traces.schema import Trace
from foregate.traces.storage import read_trace

SOURCE = Path(__file__).parents[2] / "shared" / "data" / "deepseek-v2-lite-chat" / "traces.tar.xz"
ROUNDS = 5
SHARE = 0.25


def main() -> None:
    """Replay, print, say whether the hits agree."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        import libcachesim
    except ModuleNotFoundError:
        sys.exit("this benchmark compares with libcachesim: pip install libcachesim")
    if options.trace is None and not SOURCE.is_file():
        print("skipped: ../shared/data/deepseek-v2-lite-chat is not here; give a trace")
        return
    trace = read_trace(options.trace) if options.trace else IMPORTERS["moe-beyond"]([SOURCE])
    keys, num_keys = stream(trace)
    slots = round(SHARE * num_keys)
    future = next_uses(keys, np.arange(len(keys) + 1), num_keys)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.oracleGeneral"
        write_oracle_general(keys, num_keys, path)
        runs: dict[str, Callable[[], int]] = {
            "ours lru by victim": lambda: by_policy(keys, num_keys, slots, "lru"),
            "ours lru": lambda: replay_keys(keys, num_keys, slots, "lru"),
            "ours belady by victim": lambda: by_policy(keys, num_keys, slots, "belady", future=future),
            "ours belady": lambda: replay_keys(keys, num_keys, slots, "belady"),
            "libcachesim lru": lambda: theirs(libcachesim, libcachesim.LRU, path, slots, len(keys)),
            "libcachesim belady": lambda: theirs(libcachesim, libcachesim.Belady, path, slots, len(keys)),
        }
        for name in list(runs)[:4]:
            runs[name]()  # compiles
        speeds, hits = measure(runs, len(keys))
    print(f"{len(keys):,} accesses to {num_keys:,} keys, {slots} slots, medians of {ROUNDS} interleaved rounds")
    for name, speed in speeds.items():
        print(f"  {name:22} {speed / 1e6:8.2f} M accesses/s, hit rate {hits[name] / len(keys):.6f}")
    result: dict[str, Any] = {
        f"{policy}_ratio": round(speeds[f"ours {policy}"] / speeds[f"libcachesim {policy}"], 2)
        for policy in ("lru", "belady")
    }
    result["belady_by_victim_ratio"] = round(speeds["ours belady by victim"] / speeds["libcachesim belady"], 2)
    result["same_hits"] = all(
        hits[f"ours {p}"] == hits[f"libcachesim {p.split()[0]}"]
        for p in ("lru", "lru by victim", "belady", "belady by victim")
    )
    result |= {f"{name.replace(' ', '_')}_per_second": round(speed) for name, speed in speeds.items()}
    print(json.dumps(result) if options.json else result)


def measure(runs: dict[str, Callable[[], int]], accesses: int) -> tuple[dict[str, float], dict[str, int]]:
    """Accesses a second of processor time, which foreign load disturbs least, and hits of each."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    hits = {}
    for _ in range(ROUNDS):
        for name, run in runs.items():
            started = time.process_time()
            hits[name] = run()
            seconds[name].append(time.process_time() - started)
    return {name: accesses / statistics.median(s) for name, s in seconds.items()}, hits


def stream(trace: Trace) -> tuple[Int32, int]:
    """Every (layer, expert) that a token was routed to, as keys in the order it happened."""
    L, E = trace.spec.num_layers, trace.spec.num_experts
    keys = trace.experts.astype(np.int32) + (np.arange(L, dtype=np.int32) * E)[:, None]
    return keys[trace.experts >= 0].astype(np.int32), L * E


def write_oracle_general(keys: Int32, num_keys: int, path: Path) -> None:
    """libcachesim's trace format: time u32, id u64, size u32, next access i64 (-1 = never); ids from 1, sizes 1."""
    rows = np.zeros(len(keys), dtype=[("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
    future = next_uses(keys, np.arange(len(keys) + 1), num_keys)
    rows["time"] = np.arange(len(keys))
    rows["id"] = keys + 1
    rows["size"] = 1
    rows["next"] = np.where(future == NEVER, -1, future)
    rows.tofile(path)


def theirs(library: Any, kind: Any, path: Path, slots: int, accesses: int) -> int:
    """Hits of a libcachesim cache; its own loop in C runs over the file."""
    reader = library.TraceReader(str(path), library.TraceType.ORACLE_GENERAL_TRACE)
    missed, _ = kind(cache_size=slots).process_trace(reader)
    return round((1 - missed) * accesses)


if __name__ == "__main__":
    main()
