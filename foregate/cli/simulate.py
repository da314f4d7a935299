"""`foregate simulate`: what strategies would come to on a machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foregate.cli import completion
from foregate.cli.options import HostMemory, Jobs, Machine, Memory, Replay, Seed, Shape, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.table import Table

    from foregate.cli.staging import Staging
    from foregate.simulation.rows import Row
    from foregate.simulation.strategies import Strategy


def command(
    trace: Annotated[
        Path,
        typer.Argument(help="The trace whose test prompts are run; or an expert_statistics_3d.json, popularity only."),
    ],
    more: Annotated[list[str] | None, typer.Argument(hidden=True)] = None,
    *,
    profile: Machine,
    memory: Memory = "25%",
    host_memory: HostMemory = None,
    model: Shape = None,
    strategies: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, beside the bounds on-demand, belady and oracle: lfu, look-ahead, top-k, adaptive, "
            "pre-gated, expertflow, moe-infinity, finemoe, fate, foregate-cache, foregate; A to E, the original's; or "
            "own parts: predicted+bank+threshold:0.6@2.  [default: all]",
            autocompletion=completion.strategies,
        ),
    ] = None,
    predictor: Annotated[
        str | None,
        typer.Option(
            help="Predictor of the strategy foregate: a component or a fitted .npz.",
            autocompletion=completion.predictors,
        ),
    ] = None,
    sweep: Annotated[list[str] | None, typer.Option(help="memory=10%,25%,50% or batch=1,4,16, or both.")] = None,
    replay: Replay = "recorded",
    split: Annotated[str, typer.Option(help="prompt; none: fit and run on all prompts (marked).")] = "prompt",
    tokens: Annotated[int, typer.Option(min=0, help="Whole test prompts until so many; 0 = all.")] = 5000,
    seed: Seed = 0,
    jobs: Jobs = None,
    moments: Annotated[
        int, typer.Option(min=0, help="Passes that --json tells event by event, for the report's timeline.")
    ] = 2,
    json: Annotated[Path | None, written("the rows")] = None,
) -> None:
    """Run a recorded routing on a machine you need not have, under several strategies in the same fast memory.

    Every read is charged for time and a slot. Predictors are fitted on training prompts, test prompts are run.

    Example: foregate simulate deepseek.parquet --as decode --profile rtx-3090 --memory 25%
    """
    import os

    from foregate.cli.popularity import Asked, estimate
    from foregate.cli.staging import Words, slots_of, staged
    from foregate.cli.terminal import alone, progress_bar, warn
    from foregate.simulation.experiment import compare_strategies, settle
    from foregate.simulation.strategies import BOUNDS, chosen, wants_hidden
    from foregate.usagefiles import is_counts

    memories, batches = _sweeps([*(sweep or []), *(more or [])], memory)
    if is_counts(trace):
        needs_trace = {
            "--strategies": strategies is not None,
            "--predictor": predictor is not None,
            "--sweep batch": batches != [None],
            f"--as {replay}": replay != "recorded",
            f"--split {split}": split != "prompt",
        }
        estimate(Asked(trace, profile, model, memories, host_memory, needs_trace), json)
        return
    wanted = chosen(strategies)
    words = Words([trace], profile, model, host_memory, split, replay, tokens, seed)
    staging = staged(words, hidden=any(map(wants_hidden, [s.predictor for s in wanted.values()] + [predictor])))
    if staging.leaks:
        warn("--split none runs the prompts that predictors were fitted on; what they reach holds nowhere else")
    stage = staging.stage
    wanted = settle(wanted, predictor, stage.test)
    slots = {text: slots_of(text, stage.shape) for text in memories}
    with progress_bar("simulating") as advance:
        rows, left = compare_strategies(
            stage,
            wanted,
            slots,
            batches,
            jobs=jobs or os.cpu_count() or 1,
            required=[] if strategies is None else [name for name in wanted if name not in BOUNDS],
            moments=0 if json is None else moments,
            advance=advance,
        )
    if json is not None:
        _write(rows, left, wanted, staging, json)
    if not alone(json):
        show(rows, left, staging)


def show(rows: Sequence[Row], left: Mapping[str, str], staging: Staging) -> None:
    """A table for each memory and batch, and what its numbers are."""
    from rich.console import Console

    from foregate.cli.staging import facts
    from foregate.cli.terminal import say

    console = Console()
    for memory, batch in dict.fromkeys((r.memory, r.batch) for r in rows):
        console.print(table([r for r in rows if (r.memory, r.batch) == (memory, batch)]))
    lines = [
        *facts(staging),
        "In each table every row has the same bytes of fast memory. tok/s: tokens a second, with the 95 % interval "
        "over prompts; hits: experts that were there when asked for; stall: share of the time spent waiting for bytes; "
        "read: into fast memory, per token; cold: guesses read that were used before they left; p50, p95: of a pass. "
        "* knows the future: a bound, nobody can run it. Strategies after papers are the nearest that foregate's parts "
        "make; --json says in what each differs.",
    ]
    charged = {r.predictor: r.look_seconds for r in rows if r.look_seconds}
    if charged:
        texts = ", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in charged.items())
        lines.append(f"Charged for an answer about one layer, as measured on this machine's processor: {texts}.")
    lines += [f"{name} was left out: {reason}" for name, reason in left.items()]
    say(*lines, console=console)


def table(rows: Sequence[Row]) -> Table:
    """Rows of one memory and batch, fastest first, the bounds last."""
    from rich.table import Table

    from foregate.cli.terminal import STYLE, file_size

    first = rows[0]
    batch = "" if first.batch is None else f", {first.batch} sequence{'s' if first.batch > 1 else ''} at a time"
    title = f"{first.memory}: {first.slots} slots, {file_size(first.bytes)} of experts{batch} (simulated)"
    made = Table(title=title, title_justify="left", **STYLE)
    made.add_column("strategy", no_wrap=True)
    for heading in ("tok/s", "95 %", "hits", "stall", "read", "cold", "p50 ms", "p95 ms"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in sorted(rows, key=lambda r: (r.knows_future, -r.tokens_per_second)):
        made.add_row(
            row.strategy + ("*" if row.knows_future else ""),
            number(row.tokens_per_second),
            "-" if row.low is None or row.high is None else f"{number(row.low)}-{number(row.high)}",
            f"{row.hit_rate:.0%}",
            f"{row.stall_share:.0%}",
            file_size(int(row.bytes_per_token)),
            "-" if row.cold_precision is None else f"{row.cold_precision:.0%}",
            number(row.p50 * 1e3),
            number(row.p95 * 1e3),
            style="dim" if row.knows_future else None,
        )
    return made


def number(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _sweeps(texts: Sequence[str], memory: str) -> tuple[list[str], list[int | None]]:
    """Memories and batches. Raises: ChoiceError."""
    from foregate.errors import ChoiceError

    memories, batches = [memory], list[int | None]([None])
    for text in " ".join(texts).split():
        name, _, values = text.partition("=")
        given = [v for v in values.split(",") if v]
        if name == "memory" and given:
            memories = given
        elif name == "batch" and given and all(v.isdigit() and int(v) > 0 for v in given):
            batches = [int(v) for v in given]
        else:
            raise ChoiceError(f"--sweep {text!r} is neither memory=10%,25%,50% nor batch=1,4,16")
    return memories, batches


def _write(
    rows: Sequence[Row], left: Mapping[str, str], strategies: Mapping[str, Strategy], staging: Staging, path: Path
) -> None:
    from dataclasses import asdict
    from json import dumps

    from foregate.cli.staging import facts
    from foregate.cli.terminal import write_text
    from foregate.simulation.profiles import basis

    stage = staging.stage
    found = {
        "trace": stage.test.spec.model,
        "profile": stage.profile.name,
        "basis": basis(stage.profile),
        "model": asdict(stage.shape),
        "replay": staging.words.replay,
        "split": staging.words.split,
        "leaks": staging.leaks,
        "seed": staging.words.seed,
        "facts": facts(staging),
        "strategies": {name: asdict(strategy) for name, strategy in strategies.items()},
        "left_out": dict(left),
    }
    # A row a line: indented, its moments would take a line a number.
    lines = ",\n  ".join(dumps(asdict(r)) for r in rows)
    write_text(path, f'{dumps(found, indent=1).removesuffix("}").rstrip()},\n "rows": [\n  {lines}\n ]\n}}\n')
