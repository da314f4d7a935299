"""`foregate import`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foregate.cli import completion
from foregate.cli.options import written

if TYPE_CHECKING:
    from foregate.traces.schema import Trace
    from foregate.traces.sources import Meter


def command(
    form: Annotated[
        str, typer.Argument(metavar="FORMAT", help="One of the formats above.", autocompletion=completion.formats)
    ],
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SRC...", help="Files (.gz and .xz too), folders, .tar and .zip archives, of one model; joined."
        ),
    ],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write (.parquet).")],
    model: Annotated[str | None, typer.Option(help="The model's name.")] = None,
    experts: Annotated[
        int | None, typer.Option(min=1, help="Experts of a layer (default: the source's, or its largest id + 1).")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="The model's own numbers of its mixture layers, e.g. 1,3,5.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="What the prompts' data set is called.")] = None,
    realign: Annotated[
        bool, typer.Option("--realign", help="Move records that sit on a wrong token; see `foregate realign`.")
    ] = False,
    no_weights: Annotated[bool, typer.Option("--no-weights", help="Leave the gate weights out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
    json: Annotated[Path | None, written("what was read")] = None,
) -> None:
    """Turn other people's routing traces into one trace.

    FORMAT is one of:

    records - JSON lines, a record per (token, layer), with dataset, problem_id, layer, experts, gating_probs and
    token_idx.

    moe-beyond - a CSV per prompt with Layer ID, Batch Number, Token, Activated Expert IDs.

    route-trace - the "# route_trace v1" CSV of llama.cpp forks.

    vllm-logger - JSON lines of a vLLM routing logger, a file per logged layer; give all of them.

    router-logits - a CSV of printed tensors, a row per prompt, with router logits and chosen ids.

    What was dropped, repaired or inferred is printed, and stays in the trace's notes.

    Example: foregate import records humaneval.jsonl.xz -o humaneval.parquet --model Mixtral-8x7B-Instruct-v0.1
    """
    from foregate.cli.terminal import alone, chatter, progress_bar, write_json
    from foregate.components import meant
    from foregate.errors import ChoiceError, StorageError
    from foregate.traces.importers import IMPORTERS
    from foregate.traces.sources import Meter, size_on_disk
    from foregate.traces.storage import write_trace

    if form not in IMPORTERS:
        raise ChoiceError(f"there is no format {form!r}{meant(form, IMPORTERS)}; choose one of {', '.join(IMPORTERS)}")
    if output.exists() and not overwrite:
        raise StorageError(f"{output} exists; choose another name, or replace it with --overwrite")
    total = max(size_on_disk(sources), 1)
    with progress_bar("reading") as advance:
        meter = Meter(tick=lambda count: advance("reading", count / total))
        trace = IMPORTERS[form](
            sources, model=model, experts=experts, layers=_numbers(layers), dataset=dataset, meter=meter
        )
    if realign:
        trace = _realigned(trace)
    if no_weights and trace.weights is not None:
        trace = _without_weights(trace)
    with chatter().status(f"writing {output}"):
        write_trace(trace, output)
    if json is not None:
        write_json(json, {**summary(trace, output), "source_bytes": meter.text})
    if alone(json):
        return
    for note in trace.provenance.notes:
        print(f"note: {note}")
    print(_summary(trace, output, meter))
    print(f"next: foregate describe {output}")


def _numbers(text: str | None) -> tuple[int, ...] | None:
    from foregate.errors import ChoiceError

    if text is None:
        return None
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ChoiceError(f"--layers {text!r} is not a list of numbers, such as 1,3,5")
    numbers = tuple(int(part) for part in parts)
    if list(numbers) != sorted(set(numbers)):
        raise ChoiceError(f"--layers {text!r} is not in increasing order")
    return numbers


def _realigned(trace: Trace) -> Trace:
    from dataclasses import replace

    from foregate.cli.terminal import progress_bar
    from foregate.traces.realign import realign, short_layers

    if short_layers(trace):
        with progress_bar("realigning") as advance:
            return realign(trace, lambda share: advance("realigning", share)).trace
    return replace(trace, provenance=trace.provenance.note("no layer is short: there was nothing to realign"))


def _without_weights(trace: Trace) -> Trace:
    from dataclasses import replace

    bare = trace.without(weights=True)
    return replace(bare, provenance=bare.provenance.note("gate weights were left out (--no-weights)"))


def summary(trace: Trace, file: Path) -> dict[str, Any]:
    """What a trace that was just written holds, for --json."""
    spec = trace.spec
    return {
        "file": str(file),
        "bytes": file.stat().st_size,
        "tokens": len(trace),
        "complete_tokens": int((trace.experts >= 0).all(axis=(1, 2)).sum()),
        "prompts": len(trace.prompts),
        "model": spec.to_json(),
        "self_check": trace.provenance.self_check,
        "notes": list(trace.provenance.notes),
    }


def _summary(trace: Trace, output: Path, meter: Meter) -> str:
    from foregate.cli.terminal import file_size
    from foregate.traces.importers.interface import plural

    spec = trace.spec
    complete = int((trace.experts >= 0).all(axis=(1, 2)).sum())
    size = output.stat().st_size
    return (
        f"wrote {output}: {plural(len(trace), 'token')} ({complete:,} complete), "
        f"{plural(len(trace.prompts), 'prompt')}, {plural(spec.num_layers, 'layer')}, "
        f"{spec.top_k} of {spec.num_experts} experts; {file_size(size)}, "
        f"1/{meter.text / size:.1f} of the source's {file_size(meter.text)} (decompressed)"
    )
