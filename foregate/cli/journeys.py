"""`foregate journeys`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[
        Path, typer.Argument(metavar="TRACE", help="A trace (.parquet), or the published JSONL (.gz and .xz too).")
    ],
    problem: Annotated[str, typer.Option("--problem", "-p", help="The problem, e.g. 0.")],
    tokens: Annotated[
        tuple[int, int], typer.Option("--tokens", "-t", metavar="START END", help="The tokens START to END - 1.")
    ],
    *,
    output: Annotated[Path, typer.Option("--output-dir", "-o", help="The folder to write to.")] = Path(),
    dataset: Annotated[str | None, typer.Option(help="The problem's data set, where several have that number.")] = None,
) -> None:
    """Write token journeys: a file per token, p{problem}_token_{token}.jsonl, with a record per layer.

    Example: foregate journeys humaneval.jsonl.xz --problem 0 --tokens 0 10 -o journeys/
    """
    from foregate.journeys import read_source, write

    trace = read_source(source)
    paths = write(trace, output, problem=problem, start=tokens[0], stop=tokens[1], dataset=dataset)
    print(f"wrote {paths[0]} to {paths[-1].name}: {len(paths)} tokens x {trace.spec.num_layers} layers")
    print(f"next: foregate rules create {paths[0]} -o rules.json")
