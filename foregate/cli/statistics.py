"""`foregate statistics`: the original project's analysis files, of any trace."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from foregate.traces.schema import Trace
    from foregate.usage import Usage


def command(
    trace: Annotated[Path, typer.Argument(help="The trace; it stays as it is.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the files.")],
    samples: Annotated[int, typer.Option(min=1, help="Prompts whose expert sequences are kept.")] = 1,
    figures: Annotated[
        bool, typer.Option("--figures", help="Draw them too: a page, expert_statistics.html, and each figure's files.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace such files if they exist.")] = False,
    json: Annotated[
        Path | None, typer.Option(help="Write all three here, as one object ('-' = standard output).")
    ] = None,
) -> None:
    """Write comprehensive_expert_statistics.json, expert_statistics_3d.json and sample_trace_paths.json.

    Their structure is the original project's; docs/statistics.md defines every field.

    Example: foregate statistics trace.parquet -o statistics/ --samples 3 --figures
    """
    from json import loads
    from sys import stderr

    from foregate.cli.terminal import alone, write_json
    from foregate.report.statistics_page import write_page
    from foregate.traces.storage import read_trace
    from foregate.usage import usage_of
    from foregate.usagefiles import write_statistics

    read = read_trace(trace, hidden=False)
    written = write_statistics(read, output, samples=samples, overwrite=overwrite)
    if figures:
        again = f"foregate statistics {trace} -o {output} --samples {samples} --figures"
        written += write_page(read, samples, output, commands=[again])
    if json is not None:
        write_json(json, {path.stem: loads(path.read_text(encoding="utf-8")) for path in written[:3]})
    told = stderr if alone(json) else None
    for line in _notes(read):
        print(f"note: {line}", file=stderr)
    if not alone(json):
        _show(usage_of(read))
    for path in written:
        print(f"wrote {path}", file=told)


def _notes(trace: Trace) -> list[str]:
    """What these files have no place for."""
    found = []
    absent = int((trace.experts < 0).sum())
    if absent:
        found.append(f"{absent:,} absent experts are counted nowhere, and stand as -1 in the sequences")
    if trace.spec.top_k > 1:
        order = "in no order" if trace.primary is None else "the primary first"
        found.append(f"every token counts for all its {trace.spec.top_k} experts, and the sequences list them, {order}")
    return found


def _show(usage: Usage) -> None:
    from rich.console import Console

    from foregate.cli.terminal import say

    Console().print(_table(usage))
    say("Uses of an expert, over all experts of a layer; cv: std / mean. Derived by counting the recorded routing.")


def _table(usage: Usage) -> Table:
    from rich.table import Table

    from foregate.cli.terminal import STYLE
    from foregate.moments import moments_of

    table = Table(title="Uses of experts by layer (derived)", title_justify="left", **STYLE)
    for heading in ("layer", "mean", "std", "cv", "median", "most", "skew", "kurtosis", "bits", "used"):
        table.add_column(heading, justify="right", no_wrap=True)
    for layer, counts in zip(usage.layer_ids, usage.counts, strict=True):
        m = moments_of(counts)
        table.add_row(
            str(layer),
            f"{m.mean:,.1f}",
            f"{m.std:,.1f}",
            "-" if m.coefficient_of_variation is None else f"{m.coefficient_of_variation:.2f}",
            f"{m.median:,.1f}",
            f"{m.max_usage:,}",
            *("-" if v is None else f"{v:.2f}" for v in (m.skewness, m.kurtosis)),
            f"{m.entropy_bits:.2f}",
            f"{m.active_experts} of {usage.num_experts}",
        )
    return table
