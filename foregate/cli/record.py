"""`foregate record`: run a model on prompts and keep which experts it used."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foregate.cli import completion
from foregate.cli.options import Device, Dtype, Model, Sample, Temperature, TrustRemoteCode, written

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from foregate.traces.schema import Trace


def command(
    model: Model,
    prompts: Annotated[
        str,
        typer.Option(
            help="A .txt (one prompt a line) or .jsonl file (prompt, question or text), also .gz or .xz; humaneval, "
            "gsm8k, wikitext, squad or glue/TASK from the hub; or NAME=FILE, a local copy of one of these.",
            autocompletion=completion.prompts,
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The trace to write, a Parquet file.")],
    *,
    max_new_tokens: Annotated[
        int, typer.Option(min=0, help="Tokens to write after each prompt; 0 = prefill only.")
    ] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in one forward pass.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first N prompts.")] = None,
    max_prompt_tokens: Annotated[int | None, typer.Option(min=1, help="Cut prompts to N tokens.")] = None,
    hidden: Annotated[
        bool, typer.Option("--hidden", help="Keep hidden states too (router inputs, residual stream); large.")
    ] = False,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="Keep the experts' weights.")] = True,
    stack: Annotated[str, typer.Option(help="encoder, decoder or both, of a model that has both.")] = "both",
    dtype: Dtype = "auto",
    device: Device = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; 1 is fastest for tiny models.")] = None,
    padding: Annotated[str | None, typer.Option(help="left or right; right only with --max-new-tokens 0.")] = None,
    sample: Sample = False,
    temperature: Temperature = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="With --sample.")] = 0,
    prompt_lookup: Annotated[
        int | None, typer.Option(min=1, help="Guess N tokens ahead from the prompt itself.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a stopped recording.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an output that is there already.")] = False,
    json: Annotated[Path | None, written("what was recorded")] = None,
) -> None:
    """Run a model on prompts and record which experts each token was sent to.

    What is recorded is the decision that ran, not one worked out from router logits; a share of it is checked by
    re-running the routers. A stopped recording keeps all it flushed and goes on with --resume.

    Example: foregate record models/tiny --prompts prompts.txt -o tiny.parquet --max-new-tokens 64
    """
    from foregate.cli.import_ import summary
    from foregate.cli.terminal import alone, chatter, write_json
    from foregate.errors import ChoiceError, need
    from foregate.models import load
    from foregate.traces.prompts import read_prompts
    from foregate.traces.record_transformers import Options, record
    from foregate.traces.storage import read_trace

    if stack not in ("both", "encoder", "decoder"):
        raise ChoiceError(f"--stack is {stack!r}; it must be encoder, decoder or both")
    options = Options(
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        padding=padding,
        stack=None if stack == "both" else stack,
        hidden=hidden,
        weights=weights,
        sample=sample,
        temperature=temperature,
        seed=seed,
        prompt_lookup=prompt_lookup,
        max_prompt_tokens=max_prompt_tokens,
    )
    texts = read_prompts(prompts, limit)
    if threads is not None:
        need("torch", "models").set_num_threads(threads)
    console = chatter()
    with console.status(f"loading {model}"):
        loaded, tokenizer = load(model, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    with _progress(console) as bar:
        files = record(
            loaded,
            tokenizer,
            texts,
            output,
            options,
            name=model,
            source=prompts,
            resume=resume,
            overwrite=overwrite,
            progress=_Advance(bar, len(texts)),
        )
    traces = {file: read_trace(file, hidden=False) for file in files}
    if json is not None:
        write_json(json, [summary(trace, file) for file, trace in traces.items()])
    if not alone(json):
        for file, trace in traces.items():
            _tell(file, trace)


class _Advance:
    """Moves the bar on; the speed counts tokens of this run only."""

    def __init__(self, bar: Progress, prompts: int) -> None:
        self._bar, self._tokens, self._began = bar, 0, time.monotonic()
        self._task = bar.add_task("recording", total=prompts, speed="")

    def __call__(self, prompts: int, tokens: int) -> None:
        self._tokens += tokens
        speed = self._tokens / max(time.monotonic() - self._began, 1e-9)
        self._bar.update(self._task, completed=prompts, speed=f"{speed:,.0f} tokens/s")


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("prompts")]
    columns += [TextColumn("{task.fields[speed]}"), TimeRemainingColumn()]
    return Progress(*columns, console=console, disable=console.quiet or not console.is_terminal)


def _tell(file: Path, trace: Trace) -> None:
    spec, check = trace.spec, trace.provenance.settings["self_check"]
    share = trace.provenance.self_check
    told = "no router was re-run" if share is None else f"{share:.2%} of the ids came again from the routers"
    print(f"{file}: {len(trace):,} tokens of {len(trace.prompts):,} prompts ({file.stat().st_size:,} bytes)")
    print(f"  {spec.stack}: {spec.num_layers} mixture layers, {spec.top_k} of {spec.num_experts} experts")
    print(f"  self-check: {told} ({check['tokens']:,} of {check['carried']:,} tokens checked)")
    for note in trace.provenance.notes:
        print(f"  note: {note}")
    print(f"  next: foregate describe {file}")
