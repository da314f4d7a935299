"""Does the simulator tell the truth? The widened model runs from slots with many policies and budgets; the same routing
is simulated with this machine's profile; tokens a second are compared.

Settings take turns, prompt by prompt, each cold; the machine is profiled anew before each prompt, on the model's own
files, and medians are taken. Reads are timed through the store that the runtime reads with, whose copies are part of
what a read takes; so is what reading and computing cost each other. The speed of a shared disk changes within seconds:
after each token the clock stops for reads of experts that left the slots lately, and the run is simulated with the mean
of these. What was measured is kept in a folder, routing and profiles too: a run that was stopped goes on, and
`--rounds 0` only simulates.

Run: python recipes/widen.py -o WIDE; python benchmarks/sim_vs_run.py WIDE --work VALIDATION
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the readers' processor; before torch loads

import numpy as np
import torch
import transformers

import foregate
from foregate.hardware import compute, storage
from foregate.hardware.measure import QUICK, after_idle
from foregate.hardware.measure import measure as profile_machine
from foregate.hardware.profile import Profile, Timing
from foregate.hardware.sampling import repeat, timing
from foregate.memory.eviction import eviction
from foregate.memory.prefetch import prefetch
from foregate.predictors.base import Predictor
from foregate.predictors.storage import save
from foregate.runtime.watch import ABSENT
from foregate.runtime.wish import Wish, find
from foregate.simulation.chances import chances_of
from foregate.simulation.costs import Costs
from foregate.simulation.pace import Pace, pace_of
from foregate.simulation.passes import passes_of
from foregate.simulation.shapes import ModelShape, of_config
from foregate.simulation.simulate import Setting, play
from foregate.spec import MoESpec
from foregate.store.base import ExpertStore
from foregate.store.checkpoint import CheckpointStore
from foregate.store.direct import aligned
from foregate.store.packed import PackedStore
from foregate.traces.storage import read_trace, write_trace

ROOT = Path(__file__).resolve().parent.parent
SKIPPED = 4  # decoded tokens that are not timed: first calls are slow
GRID = [(evict, policy) for evict in ("lru", "predicted", "lfu-decay") for policy in ("none", "top:2")]
MORE = [("s3fifo", "threshold:0.5"), ("arc", "none"), ("predicted", "budget:1GiB")]
CHOSEN = np.random.default_rng(0)  # whose turn it is to be read
PROBES = 4  # reads after each token
LATELY = 16  # experts that left the slots
BUFFERS: dict[int, Any] = {}  # by size; their pages exist after the first read
OVERLAP = 1.5  # seconds that each side of the overlap is measured for
STORED = (
    "read",
    "work-alone",
    "work-beside-reads",
    "work-after-idle",
    "read-alone",
    "read-beside-work",
)


@dataclass(frozen=True)
class Case:
    """A way to run: eviction, prefetch policy, share of the experts that slots hold."""

    evict: str
    policy: str
    budget: float

    def __str__(self) -> str:
        return f"{self.evict:10} {self.policy:14} {self.budget:4.0%}"

    @property
    def stem(self) -> str:
        """A file name."""
        return f"{self.evict}-{self.policy.replace(':', '')}-{self.budget:.0%}".replace("%", "")


@dataclass(frozen=True)
class Block:
    """What one case did with one prompt.

    rate    decoded tokens a second, the first few left out
    counts  Engine.stats
    load    of the machine, over the last minute
    reads   seconds of each read between tokens that count
    """

    rate: float
    counts: dict[str, Any]
    load: float
    reads: tuple[float, ...]


class Watch:
    """A streamer for `generate`: notes when each token was written, and stops its clock to time reads.

    What is read then is what left the slots lately, since the next tokens mostly read that again.

    work  computes for a few milliseconds: processors that idled while they read are slow to begin
    """

    def __init__(self, engine: Any, store: ExpertStore, work: Callable[[], object]) -> None:
        self.marks: list[float] = []
        self.reads: list[float] = []
        self._engine, self._store, self._work, self._paused = engine, store, work, 0.0
        self._held: set[tuple[int, int]] = set()
        self._left: list[tuple[int, int]] = []

    def put(self, value: Any) -> None:
        """The prompt, then a token."""
        began = time.perf_counter()
        self.marks.append(began - self._paused)
        if len(self.marks) > 1 + SKIPPED:
            among = self._left[-LATELY:] or sorted(self._held)
            self.reads += [second for _ in range(PROBES) for second in _read(self._store, among=among)]
            self._work()
        held = {(int(layer), int(expert)) for layer, expert in np.argwhere(self._engine.watch.look().cells != ABSENT)}
        self._left += sorted(self._held - held)
        self._held = held
        self._paused += time.perf_counter() - began

    def end(self) -> None:
        """All is written."""

    @property
    def rate(self) -> float:
        """Tokens a second of those that count."""
        marks = self.marks[1 + SKIPPED :]
        return (len(marks) - 1) / (marks[-1] - marks[0])


def prompts(folder: Path, count: int) -> list[Any]:
    """Token ids [1, P] of texts that foregate ships."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = (ROOT / "foregate" / "data" / "demo_prompts.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines[:: max(1, len(lines) // count)][:count]]
    return [tokenizer(text, return_tensors="pt").input_ids for text in texts]


def machine() -> dict[str, Any]:
    """Load and versions."""
    return {
        "load": os.getloadavg(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "kernel": os.uname().release,
    }


def through_store(store: ExpertStore, given: compute.Outline, seconds: float) -> list[Timing]:
    """Reads of whole experts as the runtime makes them, and the overlap with computing."""
    size = store.layout.slot_bytes
    work = compute.Experts(given).work(1)
    found = [timing("read", size, [_read(store, seconds)])]
    work()
    alone, read_alone = repeat(work, OVERLAP), _read(store, OVERLAP)
    beside: list[float] = []
    stop = threading.Event()
    reader = threading.Thread(target=lambda: beside.extend(_read(store, 60.0, stop=stop)))
    reader.start()
    slowed = repeat(work, 2 * OVERLAP)
    stop.set()
    reader.join()
    rows = {"work-alone": alone, "work-beside-reads": slowed, "read-alone": read_alone, "read-beside-work": beside}
    rows["work-after-idle"] = after_idle(work, 2 * OVERLAP)
    # Means, not medians: what takes long now and then is part of what a run takes.
    return [*found, *(replace(timing(kind, size, [t]), seconds=float(np.mean(t))) for kind, t in rows.items())]


def _read(
    store: ExpertStore,
    seconds: float = 0.0,
    *,
    among: list[tuple[int, int]] | None = None,
    stop: threading.Event | None = None,
) -> list[float]:
    """Seconds of reads of random experts (`among` these), one after the other, at least one."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    stop = stop or threading.Event()
    chosen = among or list(np.ndindex(store.num_layers, store.num_experts))
    buffer = BUFFERS.setdefault(store.layout.slot_bytes, aligned(store.layout.slot_bytes))
    while not times or (time.perf_counter() < end and not stop.is_set()):
        layer, expert = chosen[int(CHOSEN.integers(len(chosen)))]
        began = time.perf_counter()
        store.read_into(layer, expert, buffer)
        times.append(time.perf_counter() - began)
    return times


def profiled(folder: Path, predictor: Path, store: ExpertStore, given: compute.Outline) -> Profile:
    """This machine now."""
    effort = replace(QUICK, cold=256 << 20, tokens=(1, 2, 4, 16, 64), rounds=2)
    profile = profile_machine(folder, model=str(folder), predictor=predictor, effort=effort)
    kept = tuple(t for t in profile.timings if t.kind not in STORED)
    return replace(profile, timings=(*kept, *through_store(store, given, 1.5)))


def reading(profile: Profile, size: int, seconds: float) -> Profile:
    """The profile with the disk's present speed."""
    kept = tuple(t for t in profile.timings if t.kind != "read")
    return replace(profile, timings=(*kept, timing("read", size, [[seconds]])))


def merged(profiles: list[Profile]) -> Profile:
    """Medians of every number over several profiles."""
    times: dict[Any, list[float]] = {}
    for profile in profiles:
        for t in profile.timings:
            times.setdefault((t.kind, t.size, t.at_once), []).append(t.seconds)
    timings = [replace(t, seconds=statistics.median(times[t.kind, t.size, t.at_once])) for t in profiles[0].timings]
    return replace(profiles[0], timings=tuple(timings))


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    folder: Path
    packed: Path | None
    shape: ModelShape
    predictor: Predictor
    distance: int
    tokens: int
    pace: Pace
    store: ExpertStore
    work: Callable[[], object]

    def run(self, case: Case, ids: Any) -> tuple[Block, Any]:
        """Measured, and the routing."""
        guessing = case.policy != "none"
        with foregate.offload(
            str(self.folder),
            memory=f"{case.budget:.0%}",
            evict=case.evict,
            prefetch=f"{case.policy},distance={self.distance}" if guessing else None,
            predictor=self.predictor if guessing else None,
            store=self.packed,
            read_seconds=self.pace.read,
            window_seconds=self.pace.window,
            look_seconds=self.pace.look,
        ) as engine:
            watch = Watch(engine, self.store, self.work)
            engine.generate(
                ids, max_new_tokens=self.tokens, do_sample=False, eos_token_id=None, pad_token_id=2, streamer=watch
            )
            stats, trace, load = engine.stats(), engine.record(), os.getloadavg()[0]
        return Block(watch.rate, stats, load, tuple(watch.reads)), trace

    def simulated(self, case: Case, reads: Any, trace: Any, profile: Profile) -> tuple[float, dict[str, Any]]:
        """Tokens a second over the same tokens, and the totals; `reads` as probed."""
        passes = passes_of(trace)
        profile = reading(profile, self.shape.slot_bytes, float(np.mean(reads)))
        costs = Costs.of(profile, self.shape, tokens=int(passes.tokens.max()), rows=int(passes.rows.max()))
        options = {
            "expert_bytes": self.shape.slot_bytes,
            "read_seconds": self.pace.read,
            "window_seconds": self.pace.window,
            "look_seconds": self.pace.look,
        }
        slots = int(round(case.budget * 100) * self.shape.all_experts / 100 + 1e-9)
        setting = Setting(slots, eviction(case.evict), prefetch(case.policy), options=options)
        said = None
        if case.policy != "none":
            said = chances_of(self.predictor, trace, passes, self.distance)
        line = play(passes, costs, setting, chances=said)
        timed = line.pass_seconds[1 + SKIPPED :]
        return len(timed) / float(timed.sum()), line.totals()


@dataclass(frozen=True)
class Kept:
    """What was measured: profiles, and for each prompt and case a block and the routing, as files of a folder."""

    folder: Path

    def profile(self, number: int, make: Callable[[], Profile]) -> None:
        """Of before a prompt, made if it is not there."""
        path = self.folder / f"profile-{number}.json"
        if not path.exists():
            storage.write(make(), path)

    def profiles(self) -> list[Profile]:
        """All."""
        return [storage.read(path) for path in sorted(self.folder.glob("profile-*.json"))]

    def block(self, case: Case, number: int, make: Callable[[], tuple[Block, Any]]) -> Block:
        """Made if it is not there."""
        path = self.folder / f"{number}-{case.stem}.json"
        if not path.exists():
            block, trace = make()
            write_trace(trace, path.with_suffix(".parquet"))
            path.write_text(json.dumps(asdict(block)))
        return Block(**json.loads(path.read_text()))

    def found(self, case: Case) -> list[tuple[Block, Any]]:
        """Every prompt's."""
        paths = sorted(self.folder.glob(f"[0-9]*-{case.stem}.json"))
        return [(Block(**json.loads(p.read_text())), read_trace(p.with_suffix(".parquet"))) for p in paths]


def measure(bench: Bench, cases: list[Case], texts: list[Any], profile: Callable[[], Profile], kept: Kept) -> None:
    """Every case on every prompt, beginning with another one each time."""
    for number, ids in enumerate(texts):
        kept.profile(number, profile)
        place = number * len(cases) // len(texts)
        for case in cases[place:] + cases[:place]:
            block = kept.block(case, number, lambda case=case, ids=ids: bench.run(case, ids))  # type: ignore[misc]
            print(f"{number} {case}  {block.rate:6.2f} tok/s  load {block.load:.1f}", flush=True)


def simulate(bench: Bench, cases: list[Case], kept: Kept) -> list[dict[str, Any]]:
    """The same, simulated. A row for each case."""
    known = merged(kept.profiles())
    every = [reads for case in cases for block, _ in kept.found(case) for reads in block.reads]
    rows = []
    for case in cases:
        found = [(block, *bench.simulated(case, block.reads, trace, known)) for block, trace in kept.found(case)]
        alike = [bench.simulated(case, every, trace, known)[0] for _, trace in kept.found(case)]
        if not found:
            continue
        ratios = [rate / block.rate for block, rate, _ in found]
        row = {
            **asdict(case),
            "measured": statistics.median(block.rate for block, *_ in found),
            "simulated": statistics.median(rate for _, rate, _ in found),
            "error": statistics.median(ratios) - 1,
            "alike": statistics.median(alike),
            "errors": [ratio - 1 for ratio in ratios],
            "load": statistics.median(block.load for block, *_ in found),
        }
        row["seconds_of_a_read"] = [block.reads for block, *_ in found]
        for name in ("read", "dropped", "stall", "compute", "predictor"):
            row[name] = [block.counts[name] for block, *_ in found]
            row[f"{name}_simulated"] = [totals[name] for *_, totals in found]
        rows.append(row)
    return rows


def report(rows: list[dict[str, Any]]) -> str:
    """A line for each case, and what was asked for, as Markdown."""
    lines = [
        "| eviction | prefetch | slots | measured tok/s | simulated tok/s | error | by prompt | ms a read |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        each = ", ".join(f"{error:+.0%}" for error in row["errors"])
        reads = [1e3 * seconds for block in row["seconds_of_a_read"] for seconds in block]
        lines.append(
            f"| {row['evict']} | {row['policy']} | {row['budget']:.0%} | {row['measured']:.2f} | "
            f"{row['simulated']:.2f} | {row['error']:+.1%} | {each} | {min(reads):.0f} to {max(reads):.0f} |"
        )
    errors = [abs(row["error"]) for row in rows]
    close = sum(error <= 0.10 for error in errors)
    lines += ["", f"Median error {statistics.median(errors):.1%}; {close} of {len(rows)} within 10 %.", ""]
    for budget in sorted({row["budget"] for row in rows}):
        here = [row for row in rows if row["budget"] == budget]
        chosen, best = max(here, key=lambda row: row["alike"]), max(here, key=lambda row: row["measured"])
        lines.append(
            f"At {budget:.0%} the simulator, given the same machine for all, would choose {_name(chosen)}, measured at "
            f"{chosen['measured']:.2f} tokens/s; the best measured was {_name(best)} with {best['measured']:.2f}."
        )
    return "\n".join(lines)


def _name(row: dict[str, Any]) -> str:
    return f"{row['evict']} with {row['policy']}"


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="folder made by recipes/widen.py")
    parser.add_argument("--store", type=Path, help="its experts as foregate pack --bits 16 wrote them; else in place")
    parser.add_argument("--budgets", default="25%,50%", help="shares of all experts")
    parser.add_argument("--predictor", default="multi-layer", help="a saved one (.npz), or one that needs no fit")
    parser.add_argument("--distance", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=28, help=f"written after each prompt; {SKIPPED} are not timed")
    parser.add_argument("--rounds", type=int, default=3, help="prompts")
    parser.add_argument("--only", type=int, help="so many cases only")
    parser.add_argument("--threads", type=int, default=2, help="that compute")
    parser.add_argument("--work", type=Path, required=True, help="folder that keeps what was measured")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    budgets = [float(share.strip().rstrip("%")) / 100 for share in options.budgets.split(",")]
    cases = [Case(evict, policy, b) for b in budgets for evict, policy in GRID]
    cases += [Case(evict, policy, budgets[0]) for evict, policy in MORE]
    cases = cases[: options.only]
    store = CheckpointStore(options.model) if options.store is None else PackedStore(options.store)
    given = compute.outline(str(options.model))
    shape = of_config(str(options.model))
    spec = MoESpec(shape.name, "decoder", tuple(range(shape.layers)), shape.experts, shape.top_k, shape.expert_bytes)
    predictor = find(Wish(options.predictor, "top:2", options.distance), spec, lambda: None)
    assert predictor is not None

    def profile() -> Profile:
        with tempfile.TemporaryDirectory() as folder:
            save(predictor, Path(folder) / "predictor.npz", spec)
            return profiled(options.model, Path(folder) / "predictor.npz", store, given)

    kept = Kept(options.work)
    options.work.mkdir(parents=True, exist_ok=True)
    kept.profile(0, profile)
    pace = pace_of(kept.profiles()[0], shape, on_disk=True)
    work = compute.Experts(given).work(1)
    bench = Bench(options.model, options.store, shape, predictor, options.distance, options.tokens, pace, store, work)
    _read(store), work()
    print(f"{machine()}; a read {pace.read * 1e3:.1f} ms, a layer {pace.window * 1e3:.1f} ms; {given.shape}")
    if options.rounds:
        texts = prompts(options.model, options.rounds)
        bench.run(cases[0], texts[0])  # the first loads compiled code
        measure(bench, cases, texts, profile, kept)
    rows = simulate(bench, cases, kept)
    if options.json:
        times = [asdict(t) for t in merged(kept.profiles()).timings]
        found = {"command": vars(options), "rows": rows, "machine": machine(), "profile": times}
        options.json.write_text(json.dumps(found, default=str, indent=1))
    print(report(rows))


if __name__ == "__main__":
    main()
