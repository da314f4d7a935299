"""`foregate export`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foregate.traces.schema import Trace

FORMATS = ("jsonl",)


def command(
    source: Annotated[Path, typer.Argument(metavar="TRACE", help="The trace to export.")],
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Where to write (compressed if .gz or .xz); - is standard output.")
    ],
    form: Annotated[
        str,
        typer.Option(
            "--format", help="jsonl: what `foregate import records` reads.", autocompletion=lambda: list(FORMATS)
        ),
    ] = "jsonl",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Write a trace's routing as JSON lines, a record per (token, layer).

    A trace without weights gives records without gating_probs.

    Example: foregate export mixtral.parquet --format jsonl -o mixtral.jsonl.gz
    """
    from foregate.cli.terminal import progress_bar
    from foregate.errors import ChoiceError, StorageError
    from foregate.traces.export import export_jsonl, left_out
    from foregate.traces.storage import read_trace

    if form not in FORMATS:
        raise ChoiceError(f"there is no export format {form!r}; choose one of {', '.join(FORMATS)}")
    to_stdout = str(output) == "-"
    if not to_stdout and output.exists() and not overwrite:
        raise StorageError(f"{output} exists; choose another name, or replace it with --overwrite")
    trace = read_trace(source)
    if to_stdout:
        written = _to_stdout(trace)
    else:
        with progress_bar("writing") as advance:
            written = export_jsonl(trace, output, lambda share: advance("writing", share))
    for part in left_out(trace):
        print(f"note: the format has no place for {part}; left out", file=sys.stderr)
    if not to_stdout:
        print(f"wrote {output}: {written:,} records of {len(trace):,} tokens")
        print(f"next: foregate import records {output} -o again.parquet")


def _to_stdout(trace: Trace) -> int:
    from foregate.errors import StorageError
    from foregate.traces.export import write_jsonl

    try:
        written = write_jsonl(trace, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except OSError as error:
        # Python would flush once more at exit, and complain once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader, `head` say, has all it wanted
            raise typer.Exit(0) from None
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise StorageError(f"cannot write to standard output: {reason}") from error
    return written
