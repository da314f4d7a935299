"""`foregate compare`: the leaderboard."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foregate.cli import completion
from foregate.cli.options import Replay, Traces, replayed_as_decode, written

if TYPE_CHECKING:
    from foregate.comparison import Comparison


def command(
    traces: Traces,
    test: Annotated[Path | None, typer.Option(help="Test on this trace, train on the others.")] = None,
    predictors: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated, e.g. tokens,rules:order=2. The baselines are always added.",
            autocompletion=completion.predictors,
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="prompt, dataset; half: train on the first half of each prompt, test on its rest (of a single one); "
            "token, sample (they leak, and say so); all = prompt, token, sample."
        ),
    ] = "prompt",
    folds: Annotated[
        int | None, typer.Option(help="With --split prompt: test every prompt once, in so many folds.")
    ] = None,
    shares: Annotated[
        str | None,
        typer.Option(help="With token and sample: % of validation,test, e.g. 10,10. [default: 10,10 and 1,1]"),
    ] = None,
    distance: Annotated[str, typer.Option(help="How many layers ahead, e.g. 1,2,4.")] = "1",
    budget: Annotated[str | None, typer.Option(help="Experts fetched per layer, for recall. [default: 1,k,2k]")] = None,
    replay: Replay = "recorded",
    seeds: Annotated[int, typer.Option(min=1, help="Repeat the split so many times and pool the prompts.")] = 1,
    json: Annotated[Path | None, written("the rows")] = None,
) -> None:
    """Fit predictors on some prompts and test them on others.

    Example: foregate compare deepseek.parquet --as decode --distance 1,2
    """
    from dataclasses import asdict
    from json import dumps

    from foregate.cli.terminal import alone, progress_bar, warn, write_text
    from foregate.comparison import compare
    from foregate.components import build, split_list
    from foregate.predictors import PREDICTORS
    from foregate.predictors.base import HIDDEN
    from foregate.splits import LEAKING
    from foregate.traces.schema import concat
    from foregate.traces.storage import read_trace

    as_decode = replayed_as_decode(replay)
    asked = None if predictors is None else split_list(predictors)
    hidden = asked is None or any(build(PREDICTORS, name).needs & HIDDEN for name in asked)
    trace = concat([read_trace(path, hidden=hidden) for path in traces])
    splits = ["prompt", *LEAKING] if split == "all" else [split]
    for leaking in (how for how in splits if how in LEAKING):
        warn(f"--split {leaking} leaks: tokens of one prompt stand on both sides; its numbers hold nowhere else")
    tested = None if test is None else read_trace(test, hidden=hidden)
    found = []
    for how in splits:
        with progress_bar(how) as advance:
            found.append(
                compare(
                    trace,
                    test=tested,
                    predictors=asked,
                    how=how,
                    folds=folds if split != "all" or how == "prompt" else None,
                    seeds=seeds,
                    shares=_shares(shares) if split != "all" or how in LEAKING else None,
                    distances=_numbers(distance, "--distance"),
                    budgets=None if budget is None else _numbers(budget, "--budget"),
                    as_decode=as_decode,
                    advance=advance,
                )
            )
    if not alone(json):
        show(found)
    if json is not None:
        rows = ",\n".join(dumps(asdict(m)) for one in found for m in one.measures)
        write_text(json, f"[\n{rows}\n]\n")


def show(found: list[Comparison]) -> None:
    """Print the tables, side by side where there are several splits, and what their numbers are."""
    from rich.console import Console

    from foregate.cli.leaderboards import leaderboards, splits_table
    from foregate.cli.terminal import say, warn
    from foregate.predictors import LEARNED

    console = Console()
    measures = [m for one in found for m in one.measures]
    for table in splits_table(measures) if len(found) > 1 else leaderboards(measures):
        console.print(table)
    for one in found:
        say(_explanation(one), console=console)
    lines = [
        "All measured; means over layers, with [95 % intervals] bootstrapped over prompts. recall@b: share of the "
        "routed set among b fetched experts; cover: % of rows answered without back-off; log-loss: 1 is chance; "
        "calib.: mean gap between confidence and hit rate; us: one prediction for one token.",
        *(f"{name} was left out: {reason}" for name, reason in found[0].skipped.items()),
    ]
    unnamed = [name for name in LEARNED if not any(m.predictor.partition(":")[0] == name for m in measures)]
    if unnamed:
        are = "are" if len(unnamed) > 1 else "is"
        lines.append(f"{', '.join(unnamed)} {are} compared when named (--predictors)")
    say(*lines, console=console)
    check = measures[0].self_check
    if check is not None and check < 1:
        warn(f"the trace's self-check is {check:.2%}: re-running the routers gives other experts")


def _explanation(one: Comparison) -> str:
    from foregate.splits import SAME_PROMPT

    first = one.measures[0]
    text = f"{one.prompts} test prompts of {first.trace}, split by {first.split}, replayed as {first.replay}."
    if one.duplicates:
        text += f" {one.duplicates} duplicate prompts removed first."
    if first.split in SAME_PROMPT:
        text += " Trained on the first half of the same prompts: this says nothing of other prompts."
    if one.seen:
        text += f" The answer of {one.seen:.1%} of the test rows stands in a training row's routed sets."
    if first.replay == "recorded" and any(
        m.metric == "coverage" and m.layer is None and m.value == 0 for m in one.measures
    ):
        text += " Tokens of one prefill pass cannot see each other; --as decode replays them one by one."
    return text


def _shares(text: str | None) -> tuple[float, float] | None:
    from foregate.errors import ChoiceError

    if text is None:
        return None
    values = [value / 100 for value in _numbers(text, "--shares")]
    if len(values) != 2 or min(values) <= 0 or sum(values) >= 1:
        raise ChoiceError(f"--shares {text!r} is not the % of validation and of test, such as 10,10")
    return values[0], values[1]


def _numbers(text: str, option: str) -> list[int]:
    from foregate.errors import ChoiceError

    try:
        return [int(piece) for piece in text.split(",")]
    except ValueError:
        raise ChoiceError(f"{option} {text!r} is not a list of whole numbers such as 1,2,4") from None
