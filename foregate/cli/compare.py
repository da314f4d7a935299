"""`foregate compare`: the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foregate.comparison import Comparison


def command(
    traces: Annotated[list[Path], typer.Argument(help="Traces of one model; several are joined.")],
    test: Annotated[Path | None, typer.Option(help="Test on this trace, train on the others.")] = None,
    predictors: Annotated[
        str | None, typer.Option(help="Comma-separated, e.g. tokens,rules:order=2. The baselines are always added.")
    ] = None,
    split: Annotated[str, typer.Option(help="prompt, dataset; or token, sample: they leak, and say so.")] = "prompt",
    folds: Annotated[
        int | None, typer.Option(help="With --split prompt: test every prompt once, in so many folds.")
    ] = None,
    distance: Annotated[str, typer.Option(help="How many layers ahead, e.g. 1,2,4.")] = "1",
    budget: Annotated[str | None, typer.Option(help="Experts fetched per layer, for recall. [default: 1,k,2k]")] = None,
    replay: Annotated[
        str, typer.Option("--as", help="recorded, or decode: replay prefill as if its tokens had come one by one.")
    ] = "recorded",
    seeds: Annotated[int, typer.Option(min=1, help="Repeat the split so many times and pool the prompts.")] = 1,
    json: Annotated[Path | None, typer.Option(help="Write the rows here ('-' = standard output).")] = None,
) -> None:
    """Fit predictors on some prompts and test them on others.

    Example: foregate compare deepseek.parquet --as decode --distance 1,2
    """
    from foregate.cli.terminal import progress_bar, warn
    from foregate.comparison import compare
    from foregate.components import split_list
    from foregate.errors import ChoiceError
    from foregate.splits import LEAKING
    from foregate.traces.schema import concat
    from foregate.traces.storage import read_trace

    if replay not in ("recorded", "decode"):
        raise ChoiceError(f"--as {replay} is neither recorded nor decode")
    asked = None if predictors is None else split_list(predictors)
    hidden = asked is None or any(name.startswith("next-gate") for name in asked)
    trace = concat([read_trace(path, hidden=hidden) for path in traces])
    if split in LEAKING:
        warn(f"--split {split} leaks: tokens of one prompt stand on both sides; these numbers will not hold elsewhere")
    with progress_bar("comparing") as advance:
        found = compare(
            trace,
            test=None if test is None else read_trace(test, hidden=hidden),
            predictors=asked,
            how=split,
            folds=folds,
            seeds=seeds,
            distances=_numbers(distance, "--distance"),
            budgets=None if budget is None else _numbers(budget, "--budget"),
            as_decode=replay == "decode",
            advance=advance,
        )
    if json is None or str(json) != "-":
        show(found)
    if json is not None:
        write_rows(found, json)


def write_rows(found: Comparison, path: Path) -> None:
    """The Measure rows as a JSON list."""
    import sys
    from dataclasses import asdict
    from json import dumps

    from foregate.traces.storage import replacing

    text = "[\n" + ",\n".join(dumps(asdict(m)) for m in found.measures) + "\n]\n"
    if str(path) == "-":
        sys.stdout.write(text)
        return
    with replacing(path) as temporary:
        temporary.write_text(text)


def show(found: Comparison) -> None:
    """Print a table for each distance, and what its numbers are."""
    from rich.console import Console

    from foregate.cli.terminal import leaderboards, warn

    console = Console()
    for table in leaderboards(found.measures):
        console.print(table)
    first = found.measures[0]
    removed = f"; {found.duplicates} duplicate prompts removed first" if found.duplicates else ""
    console.print(
        f"Measured on {found.prompts} test prompts of {first.trace}, split by {first.split}{removed}; replayed as "
        f"{first.replay}. Means over layers, with [95 % intervals] bootstrapped over prompts. recall@b: share of the "
        "routed set among b fetched experts; cover: % of rows answered without back-off; log-loss: 1 is chance; "
        "calib.: mean gap between confidence and hit rate; us: one prediction for one token.",
        style="dim",
        highlight=False,
    )
    if first.replay == "recorded" and any(m.metric == "coverage" and m.value == 0 for m in found.measures):
        console.print(
            "Tokens of one prefill pass cannot see each other; --as decode replays them one by one.", style="dim"
        )
    for name, reason in found.skipped.items():
        console.print(f"{name} was left out: {reason}", style="dim", highlight=False)
    if first.self_check is not None and first.self_check < 1:
        warn(f"the trace's self-check is {first.self_check:.2%}: re-running the routers gives other experts")


def _numbers(text: str, option: str) -> list[int]:
    from foregate.errors import ChoiceError

    try:
        return [int(piece) for piece in text.split(",")]
    except ValueError:
        raise ChoiceError(f"{option} {text!r} is not a list of whole numbers such as 1,2,4") from None
