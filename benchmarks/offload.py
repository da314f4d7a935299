"""Decoding with experts on disk: foregate's settings, Accelerate and mapped weights, all in the same memory.

Contestants take turns, prompt by prompt, each in a process of its own that opens the model anew, with nothing of it in
the page cache. All have the memory of foregate's plan for the budget. With --group the kernel keeps that limit (see
`offload_limit`); without, the page cache of those who read through it is rationed, which is kinder to them (see
`offload_baselines.Ration`), and foregate reads past it (O_DIRECT) and keeps to its slots. Finished blocks are kept in
--blocks, and a run that was stopped goes on. It fits no policy and judges no predictor; compare does.

    python recipes/widen.py -o WIDE; python benchmarks/offload.py --model WIDE --blocks WIDE.jsonl --md offload.md
"""

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin take the readers' processor; before torch loads

import offload_report as report
from offload_contestants import AUTO, BITS, EXPERTS, MMAP, OTHERS, PAIR, Turn, split
from offload_limit import group
from offload_measure import Block, machine
from offload_predictors import FITTED, fitted
from transformers import AutoConfig

from foregate.hardware.prediction import time_predictor
from foregate.hardware.sampling import Pace

ROOT = Path(__file__).resolve().parent.parent
CONTESTANTS = (
    MMAP,
    AUTO,
    EXPERTS,
    "lru",
    "predicted",
    "predicted bank,none",
    "predicted bank,threshold:0.5,distance=1",
    "predicted bank,threshold:0.5,distance=2",
    "predicted bank,budget:200MiB,distance=1",
    "predicted bank,top:2,distance=1",
    "predicted next-gate,threshold:0.5,distance=1",
    "predicted probe,threshold:0.5,distance=1",
    "predicted oracle,top:2,distance=1",
    "predicted oracle,top:2,distance=2",
    "predicted oracle,top:2,distance=3",
    "lru int16",
    "predicted int16",
    "lru int8",
    "predicted bank,threshold:0.5,distance=1 int8",
    "lru int4",
    "predicted bank,threshold:0.5,distance=1 int4",
    PAIR,
)
PATIENCE = 600  # seconds that a contestant may take for a turn


def turns(names: list[str], budgets: list[float], rounds: int) -> Iterator[tuple[int, str, float]]:
    """Round by round; who begins changes from round to round."""
    for number in range(rounds):
        all_of_it = [(name, budget) for budget in budgets for name in names if name != PAIR]
        all_of_it += [(PAIR, 1.0)] * (PAIR in names)
        place = number * len(all_of_it) // rounds
        yield from ((number, *turn) for turn in all_of_it[place:] + all_of_it[:place])


def play(turn: Turn, parent: Path | None) -> list[dict[str, Any]]:
    """Have a process of its own play a turn; the rows of its blocks."""
    _cool(turn)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if parent is not None and turn.limit:
            turn = replace(turn, group=str(stack.enter_context(group(parent, turn.limit)).folder))
        (folder / "turn.json").write_text(turn.to_json())
        call = [sys.executable, str(ROOT / "benchmarks" / "offload_contestants.py"), "turn.json", "blocks.json"]
        done = subprocess.run(call, cwd=folder, capture_output=True, text=True, timeout=PATIENCE, check=False)
        if done.returncode:
            raise RuntimeError(f"{turn.name} at {turn.budget:.0%} ended with {done.returncode}:\n{done.stderr[-3000:]}")
        rows: list[dict[str, Any]] = json.loads((folder / "blocks.json").read_text())
        return rows


def _cool(turn: Turn) -> None:
    """Nothing of the model in the page cache."""
    for folder in (turn.folder, turn.work, *turn.stores.values()):
        for file in Path(folder).iterdir():
            descriptor = os.open(file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def prompts(folder: Path, count: int, length: int) -> list[list[int]]:
    """Token ids of texts that foregate ships, cut."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    lines = (ROOT / "foregate" / "data" / "demo_prompts.jsonl").read_text().splitlines()
    texts = [json.loads(line)["text"] for line in lines[:: max(1, len(lines) // count)][:count]]
    return [tokenizer(text).input_ids[:length] for text in texts]


@dataclass(frozen=True)
class Facts:
    """Of a model on this machine: bytes of the plan without slots, of an expert, of all; and Turn.pace."""

    fixed: int
    expert: int
    experts: int
    pace: tuple[float, float]

    def limit(self, budget: float) -> int:
        """Of memory, where so large a share of the experts has slots."""
        return self.fixed + int(budget * self.experts + 1e-9) * self.expert


def facts(folder: Path) -> Facts:
    """Asked of foregate's own plan, in a process that holds what every contestant's process holds."""
    call = "import json, sys, offload as here; print(json.dumps(here._facts(sys.argv[1])))"
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    told = subprocess.run([sys.executable, "-c", call, folder], check=True, env=here, stdout=subprocess.PIPE, text=True)
    fixed, expert, experts, pace = json.loads(told.stdout.splitlines()[-1])
    return Facts(fixed, expert, experts, tuple(pace))


def _facts(folder: str) -> tuple[int, int, int, tuple[float, float]]:
    import offload_baselines  # noqa: F401 (its libraries take memory in the others' processes)
    import torch
    import transformers

    import foregate
    from foregate.store.checkpoint import CheckpointStore
    from foregate.store.direct import aligned

    with foregate.offload(folder, memory="25%") as engine:
        assert engine.plan is not None
        plan = engine.plan
    store = CheckpointStore(folder)
    buffer = aligned(store.layout.slot_bytes)
    views = store.views(torch.from_numpy(buffer))
    read, compute = [], []
    for expert in range(min(8, store.num_experts)):
        started = time.perf_counter()
        store.read_into(0, expert, buffer)
        read.append(time.perf_counter() - started)
        started = time.perf_counter()
        for weight in views.values():
            torch.nn.functional.linear(torch.ones(1, weight.shape[-1], dtype=weight.dtype), weight)
        compute.append(time.perf_counter() - started)
    store.close()
    top_k = transformers.AutoConfig.from_pretrained(folder).num_experts_per_tok
    pace = (statistics.median(read), top_k * statistics.median(compute))
    return plan.memory - plan.slots * plan.slot, plan.slot, plan.experts, pace


def _document(blocks: list[Block], told: dict[str, Any]) -> str:
    return "\n".join([report.tables(blocks), "", report.load(blocks), "", "```json", json.dumps(told, indent=1), "```"])


def options() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder made by recipes/widen.py")
    parser.add_argument("--teacher", type=Path, default=ROOT / "models" / "tiny", help="what the model was made from")
    parser.add_argument("--budgets", default="25%,50%", help="shares of the experts that have slots")
    parser.add_argument("--tokens", type=int, default=36, help="written after each prompt")
    parser.add_argument("--prompt-tokens", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3, help="prompts")
    parser.add_argument("--only", action="append", help="a contestant; may be given again (all)")
    parser.add_argument("--int16", type=Path, help="packed store, of 16 bits: aligned, so that reads need no copy")
    parser.add_argument("--int8", type=Path, help="packed store")
    parser.add_argument("--int4", type=Path, help="packed store")
    parser.add_argument("--group", type=Path, help="a memory control group of yours, to keep the limit")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--work", type=Path, help="a folder of its own, for experts as Accelerate writes them (MODEL.experts)"
    )
    parser.add_argument(
        "--blocks", type=Path, help="finished blocks, a JSON object a line; those there are not run again"
    )
    parser.add_argument("--until", help="HH:MM after which no turn begins")
    parser.add_argument("--json", type=Path, help="all of it")
    parser.add_argument("--md", type=Path, help="the tables")
    given = parser.parse_args()
    given.work = given.work or given.model.with_name(given.model.name + ".experts")
    return given


def main() -> None:
    """Run and print."""
    given = options()
    stores = {str(bits): str(s) for bits, s in ((16, given.int16), (8, given.int8), (4, given.int4)) if s}
    names = given.only or list(CONTESTANTS)
    names = [n for n in names if not set(n.split()) & {word for word, bits in BITS.items() if str(bits) not in stores}]
    if any(name in (*OTHERS, PAIR) for name in names):
        from offload_baselines import prepare

        prepare(given.model, given.work)
    notes = given.work.with_name(given.work.name + ".notes")
    notes.mkdir(exist_ok=True)
    asked = {split(n)[1].partition(",")[0] for n in names if n not in (*OTHERS, PAIR)}
    files = fitted(sorted(asked & set(FITTED)), given.teacher, given.model, notes)
    known = facts(given.model)
    width = AutoConfig.from_pretrained(given.model).hidden_size
    looks = {who: time_predictor(Path(file), width, (1,), Pace(3, 0.1))[0].seconds for who, file in files.items()}
    print(f"{known}; {machine()}; answers take {looks}", flush=True)
    texts = prompts(given.model, given.rounds, given.prompt_tokens)
    budgets = [float(share.strip().rstrip("%")) / 100 for share in given.budgets.split(",")]
    kept = given.blocks.read_text().splitlines() if given.blocks and given.blocks.exists() else []
    rows = [json.loads(line) for line in kept]
    done = {(row["turn"], row["budget"], row["prompt"]) for row in rows}
    for number, name, budget in turns(names, budgets, given.rounds):
        if (name, budget, number) in done:
            continue
        if given.until and time.strftime("%H:%M") >= given.until:
            break
        turn = Turn(
            name=name,
            budget=budget,
            round=number,
            ids=texts[number],
            tokens=given.tokens,
            limit=0 if name == PAIR else known.limit(budget),
            group="",
            folder=str(given.model.resolve()),
            work=str(given.work.resolve()),
            stores=stores,
            fitted=files,
            notes=str(notes.resolve()),
            pace=known.pace,
            looks=looks,
            threads=given.threads,
        )
        for row in play(turn, given.group):
            rows.append({**row, "turn": name, "prompt": number})
            block = report.block_of(rows[-1])
            print(
                f"{number} {block.contestant:44} {budget:4.0%} {block.rate:6.2f} tok/s "
                f"{block.bytes_per_token / 1e6:5.0f} MB  foreign {block.foreign:.0%}",
                flush=True,
            )
            if given.blocks:
                with given.blocks.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    blocks = [report.block_of(row) for row in rows]
    told = {"machine": machine(), "limit": "memory control group" if given.group else "rationed page cache"}
    told |= {
        "tokens": given.tokens,
        "prompt_tokens": given.prompt_tokens,
        "threads": given.threads,
        "model": vars(known),
    }
    if given.json:
        given.json.write_text(json.dumps({**told, "blocks": rows}, indent=1))
    text = _document(blocks, told)
    if given.md:
        given.md.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
