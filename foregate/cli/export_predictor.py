"""`foregate export-predictor`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foregate.cli.options import written

if TYPE_CHECKING:
    from foregate.exporting import Export
    from foregate.spec import MoESpec
    from foregate.traces.schema import Trace


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The predictor, as `foregate train` wrote it.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The graph to write (.onnx).")],
    trace: Annotated[
        Path | None,
        typer.Option(help="Hold both against each other on this trace's routing. [default: random routing]"),
    ] = None,
    json: Annotated[Path | None, written("what was found")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Write a fitted predictor as an ONNX graph, check that onnxruntime scores the same, and time both.

    The graph's metadata holds the predictor's name and options, the model it was fitted on, and what its inputs are.

    Example: foregate export-predictor mlp.npz -o mlp.onnx
    """
    from dataclasses import asdict

    from foregate.cli.terminal import alone, chatter, file_size, write_json
    from foregate.errors import StorageError
    from foregate.exporting import TOLERANCE, export
    from foregate.predictors.storage import load

    if output.exists() and not overwrite:
        raise StorageError(f"{output} exists; choose another name, or replace it with --overwrite")
    recorded = None if trace is None else _read(trace)
    spec = _model(file, recorded)
    predictor = load(file, spec)
    with chatter().status("writing the graph, checking and timing it"):
        done = export(predictor, spec, output, recorded)
    if json is not None:
        size = output.stat().st_size
        write_json(json, {"file": str(output), "bytes": size, "tolerance": TOLERANCE, **asdict(done)})
    if alone(json):
        return
    made = file_size(output.stat().st_size)
    print(f"wrote {output} ({made}); inputs: {', '.join(f'{name} {shape}' for name, shape in done.inputs.items())}")
    print(f"scores differ by {done.difference:.1e} at most, over {done.queries:,} queries of {done.routing} routing")
    _show(done)


def _read(path: Path) -> Trace:
    from foregate.traces.storage import read_trace

    return read_trace(path, hidden=True)


def _model(file: Path, trace: Trace | None) -> MoESpec:
    """The model that the predictor was fitted on."""
    from foregate.errors import ChoiceError
    from foregate.predictors.storage import model_of

    if trace is not None:
        return trace.spec
    spec = model_of(file)
    if spec is None:
        raise ChoiceError(f"{file} does not say which model it was fitted on; give a --trace of that model")
    return spec


def _show(done: Export) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="microseconds a layer (measured)", title_justify="left")
    for heading in ("batch", "foregate", "onnxruntime"):
        table.add_column(heading, justify="right")
    for cost in done.costs:
        table.add_row(str(cost.batch), f"{cost.foregate:.0f}", f"{cost.onnx:.0f}")
    Console().print(table)
