"""`foregate report`: results and traces on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from foregate.report.figures import Figure
    from foregate.report.section import Section


def command(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files of compare, simulate and run --json, plan and profile -o, benchmarks/sim_vs_run.py."
        ),
    ] = None,
    *,
    trace: Annotated[list[Path] | None, typer.Option(help="A trace whose routing to show; several: once each.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
    figures: Annotated[
        Path | None, typer.Option(help="Write every figure here too: its data as CSV, pictures as SVG and PNG.")
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.  [default: named after the models]")] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer.json or its folder, for the text of tokens.  [default: the model's]"),
    ] = None,
) -> None:
    """Put results on one HTML page that needs no network: routing, predictors, simulation, plan, run.

    Example: foregate report results.json simulated.json plan.json --trace trace.parquet -o report.html
    """
    from foregate.errors import ChoiceError

    paths, traces = results or [], trace or []
    if not paths and not traces:
        raise ChoiceError("a report of nothing: give it files that compare, simulate or run --json wrote, or --trace")
    commands = [_line(paths, traces, out, figures, title, tokenizer)]
    shown = write_page(paths, traces, out, title=title, commands=commands, tokenizer=tokenizer)
    if figures is not None:
        _export([figure for section in shown for figure in section.figures], figures)


def write_page(
    paths: Sequence[Path],
    traces: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    commands: Sequence[str],
    tokenizer: Path | None = None,
) -> list[Section]:
    """The page of some result files and traces; what it shows."""
    from dataclasses import replace

    from foregate.cli.terminal import progress_bar, write_text
    from foregate.report.inputs import read_results
    from foregate.report.results import report_page, sections
    from foregate.report.routing import routing_of
    from foregate.traces.storage import read_trace

    found = read_results(paths)
    routings = []
    with progress_bar("reading") as advance:
        for path in traces:
            advance(f"reading {path.name}", 0.0)
            routings.append(routing_of(read_trace(path, hidden=False), tokenizer=tokenizer, traces=len(traces)))
            advance(path.name, 1 / len(traces))
    found = replace(found, routings=routings)
    shown = sections(found)
    write_text(out, report_page(found, shown, title=title, commands=commands))
    return shown


def _export(drawn: Sequence[Figure], folder: Path) -> None:
    """Data first: it needs nothing."""
    from foregate.cli.terminal import progress_bar
    from foregate.report.export import write_data, write_pictures

    folder.mkdir(parents=True, exist_ok=True)
    write_data(drawn, folder)
    with progress_bar("drawing") as advance:
        write_pictures(drawn, folder, advance)


def _line(
    paths: Sequence[Path],
    traces: Sequence[Path],
    out: Path,
    figures: Path | None,
    title: str | None,
    tokenizer: Path | None,
) -> str:
    """The command as it was typed, for the page."""
    import shlex

    words = ["foregate", "report", *map(str, paths)]
    words += [word for path in traces for word in ("--trace", str(path))]
    for option, value in (("-o", out), ("--figures", figures), ("--title", title), ("--tokenizer", tokenizer)):
        words += [] if value is None else [option, str(value)]
    return shlex.join(words)
