"""`foregate rules create` and `foregate rules evaluate`: the Mixtral study's two scripts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foregate.cli.command import Command, Group
from foregate.cli.options import written

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foregate.journeys import Journeys
    from foregate.rulebook import Score

app = typer.Typer(cls=Group, help="Make and test the Mixtral study's lookup rules.")

CompleteOnly = Annotated[
    bool, typer.Option("--complete-only", help="Leave out tokens that lack layers, instead of refusing the file.")
]
UnrankedFirst = Annotated[
    bool, typer.Option("--unranked-first", help="Where experts come in no order, take the first listed as primary.")
]


@app.command("create", cls=Command)
def create_command(
    files: Annotated[
        list[str], typer.Argument(metavar="FILES...", help="Journeys (.jsonl) or traces (.parquet); patterns too.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The rule file to write.")] = Path("rules.json"),
    levels: Annotated[str | None, typer.Option(help="Only these levels, e.g. 1,3 (5: skips).  [default: all]")] = None,
    full_path: Annotated[bool, typer.Option("--full-path", help="Add the level (layer, full path).")] = False,
    layers: Annotated[int, typer.Option(min=2, help="Layers of each .jsonl journey.")] = 32,
    complete_only: CompleteOnly = False,
    unranked_first: UnrankedFirst = False,
    json: Annotated[Path | None, written("the table")] = None,
) -> None:
    """Make rules from journeys: a majority vote per context, ties to the first seen.

    Level 1 looks up (layer, expert), 2 adds the previous layer's expert, 3 two of them, 4 takes (layer, primary,
    secondary), 5 is level 1 for the layer 2, 4 or 8 ahead.

    Example: foregate rules create p0_token_*.jsonl -o rules.json
    """
    from foregate.cli.terminal import alone, write_json
    from foregate.journeys import Reading, expand, read
    from foregate.rulebook import chosen, create
    from foregate.rulefiles import write_rules

    wanted = chosen(levels, full_path=full_path)
    reading = Reading(layers=layers, complete_only=complete_only, unranked_first=unranked_first)
    journeys = read(expand(files), reading)
    book = create(journeys, wanted)
    write_rules(book, output)
    if json is not None:
        made = [{"name": r.level.name, "rules": len(r.predictions)} for r in book.rules]
        counts = {"tokens": len(journeys.ranked), "left_out": journeys.left_out, "files": len(journeys.files)}
        write_json(json, {"file": str(output), **counts, "levels": made})
    if alone(json):
        return
    for rules in book.rules:
        print(f"{rules.level.label:30} {len(rules.predictions):9,} rules")
    _say_left_out(journeys)
    print(f"wrote {output}: from {len(journeys.ranked):,} tokens of {len(journeys.files)} files")
    print(f"next: foregate rules evaluate --rules {output} --test FILES...")


@app.command("evaluate", cls=Command)
def evaluate_command(
    more: Annotated[list[str] | None, typer.Argument(metavar="[FILES]...", help="More test files.")] = None,
    *,
    rules: Annotated[Path, typer.Option("--rules", "-r", help="A rule file.")],
    test: Annotated[
        list[str] | None, typer.Option("--test", "-t", metavar="FILES...", help="Journeys or traces to test on.")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the results here, as JSON.")] = None,
    intervals: Annotated[
        bool, typer.Option("--intervals", help="Add coverage and intervals to --output; the study's has none.")
    ] = False,
    complete_only: CompleteOnly = False,
    unranked_first: UnrankedFirst = False,
    json: Annotated[Path | None, written("the results with intervals")] = None,
) -> None:
    """Try rules on other journeys. Accuracy is over the rows that a rule covers, as in the study.

    Example: foregate rules evaluate --rules rules.json --test p1_token_*.jsonl -o results.json
    """
    from foregate.cli.terminal import alone, write_json
    from foregate.errors import ChoiceError
    from foregate.journeys import Reading, expand, read
    from foregate.rulebook import evaluate
    from foregate.rulefiles import read_rules, results, write_results

    if intervals and output is None:
        raise ChoiceError("--intervals adds to the JSON that --output names; name one")
    book = read_rules(rules)
    paths = expand([*(test or []), *(more or [])])
    if not paths:
        raise ChoiceError("there is nothing to test on; name journeys or traces with --test")
    reading = Reading(book.num_layers, book.num_experts, complete_only, unranked_first)
    journeys = read(paths, reading)
    scores = evaluate(book, journeys)
    _say_overlap(book.training_files, journeys.files)
    if output is not None:
        write_results(scores, book, rules, journeys.files, output, intervals=intervals)
    if json is not None:
        write_json(json, results(scores, book, rules, journeys.files, intervals=True))
    if alone(json):
        return
    show(scores)
    _say_left_out(journeys)
    if output is not None:
        print(f"wrote {output}")


def show(scores: Sequence[Score]) -> None:
    """The study's summary table, with what it leaves out: how many rows were covered, and how sure that makes it."""
    from foregate.rulefiles import best_of

    print("EVALUATION RESULTS")
    print(f"{'':30} {'right':>7} {'tested':>7} {'accuracy':>8} {'random':>6} {'cover':>6} {'95 %':>9}")
    for score in scores:
        print(_line(score))
    best = best_of(scores)
    if best is None or best.accuracy is None:
        print("\nNo rule covers any row.")
        return
    print(f"\nBEST: {best.level.name} with {best.accuracy:.1%} accuracy, on the {best.coverage:.1%} of rows it covers")
    print("Accuracy is over covered rows, which differ from level to level;")
    print("95 %: Wilson's interval of the accuracy, in percent.")


def _line(score: Score) -> str:
    head = f"{score.level.label:30} {score.correct:7} {score.total:7}"
    if score.accuracy is None or score.vs_random is None or score.interval is None:
        return f"{head} {'-':>8} {'-':>6} {score.coverage:6.1%} {'-':>9}"
    low, high = score.interval
    interval = f"{low * 100:.0f}-{high * 100:.0f}"
    return f"{head} {score.accuracy:8.1%} {f'{score.vs_random:.1f}x':>6} {score.coverage:6.1%} {interval:>9}"


def _say_left_out(journeys: Journeys) -> None:
    if journeys.left_out:
        print(f"note: {journeys.left_out:,} tokens lack layers and were left out")


def _say_overlap(training: Sequence[str], tests: Sequence[str]) -> None:
    from foregate.cli.terminal import warn

    both = [name for name in tests if name in training]
    if both:
        warn(f"{both[0]} is also a training file ({len(both)} of {len(tests)} are): the rules have seen the answers")
