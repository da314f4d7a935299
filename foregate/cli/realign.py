"""`foregate realign`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    source: Annotated[Path, typer.Argument(metavar="TRACE", help="A trace whose layers hold different token counts.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write (.parquet).")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Put records back on their tokens, where a recorder dropped some and numbered the rest afterwards.

    Holes are placed where a layer then agrees best with the others; tables come from the other prompts only. What
    moved is printed, and stays in the trace's notes.

    Example: foregate realign mixtral.parquet -o mixtral-realigned.parquet
    """
    from foregate.cli.terminal import progress_bar
    from foregate.errors import StorageError
    from foregate.traces.realign import realign
    from foregate.traces.storage import read_trace, write_trace

    if output.exists() and not overwrite:
        raise StorageError(f"{output} exists; choose another name, or replace it with --overwrite")
    trace = read_trace(source)
    with progress_bar("realigning") as advance:
        found = realign(trace, lambda share: advance("realigning", share))
    write_trace(found.trace, output)
    print(f"note: {found.trace.provenance.notes[-1]}")
    print(f"wrote {output}: {found.moved:,} of {found.cells:,} cells moved, in {found.short} short layers")
    print(f"next: foregate describe {output}")
