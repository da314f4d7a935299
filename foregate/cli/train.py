"""`foregate train`: a predictor as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foregate.cli import completion
from foregate.cli.options import Traces, written

if TYPE_CHECKING:
    from foregate.predictors.base import Predictor
    from foregate.predictors.session import Point
    from foregate.spec import MoESpec
    from foregate.splits import Fold
    from foregate.traces.parts import Parts
    from foregate.traces.schema import Trace

LARGE = 500_000_000  # routed experts of a trace, above which what can stream does


def command(
    name: Annotated[
        str,
        typer.Argument(
            help="Predictor, with options if any: mlp, rules:order=2.", autocompletion=completion.predictors
        ),
    ],
    traces: Traces,
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write (.npz).")],
    split: Annotated[
        str,
        typer.Option(
            help="prompt: train on the training prompts that compare has, its test prompts stay unseen; token, sample "
            "(they leak, and say so); none: train on every prompt."
        ),
    ] = "prompt",
    seed: Annotated[int, typer.Option(min=0, help="Of the split.")] = 0,
    distance: Annotated[int, typer.Option(min=1, help="The most layers ahead that it learns to look.")] = 1,
    stream: Annotated[
        bool | None,
        typer.Option(
            "--stream/--no-stream",
            help="Read the trace in parts, again in each epoch, so that it need not fit in memory.  "
            "[default: only where it is very large]",
        ),
    ] = None,
    checkpoint_every: Annotated[
        float,
        typer.Option(min=0.0, help="Minutes between two checkpoints (OUTPUT.checkpoint) of what trains in torch."),
    ] = 10.0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the checkpoint of a run that was stopped.")
    ] = False,
    curve: Annotated[Path | None, typer.Option(help="Write the learning curve here (.json or .html).")] = None,
    json: Annotated[Path | None, written("what was done")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Fit one predictor and save it. Python reads it: foregate.load_predictor(path).

    Example: foregate train mlp deepseek.parquet -o mlp.npz --resume
    """
    import time

    from foregate.cli.terminal import warn
    from foregate.components import build
    from foregate.errors import ChoiceError, StorageError, need
    from foregate.predictors import PREDICTORS
    from foregate.predictors.session import Checkpoints, Session
    from foregate.predictors.storage import save
    from foregate.splits import LEAKING

    if output.exists() and not overwrite:
        raise StorageError(f"{output} exists; choose another name, or replace it with --overwrite")
    if curve is not None and curve.suffix not in (".json", ".html"):
        raise ChoiceError(f"--curve {curve} is neither .json nor .html")
    if curve is not None and curve.suffix == ".html":
        need("plotly", "report")  # before hours of work, not after
    kept = output.with_name(f"{output.name}.checkpoint")
    if kept.exists() and not (resume or overwrite):
        raise ChoiceError(f"{kept} was left by a run that was stopped; go on with --resume, or begin with --overwrite")
    predictor = build(PREDICTORS, name, horizon=distance)
    if split in LEAKING:
        warn(f"--split {split} leaks: tokens of one prompt stand on both sides; its score holds nowhere else")
    lesson = _lesson(predictor, name, traces, how=split, seed=seed, distance=distance, stream=stream)
    about = {"predictor": name.partition(":")[0], "traces": ", ".join(map(str, traces)), "split": f"{split} {seed}"}
    predictor.session = Session(Checkpoints(kept, checkpoint_every * 60, resume, about))
    started = time.perf_counter()
    with _progress(f"training {name}", predictor):
        lesson.fit()
    seconds = time.perf_counter() - started
    points, predictor.session = predictor.session.curve, None
    save(predictor, output, lesson.spec)
    kept.unlink(missing_ok=True)
    found = {"predictor": name, "output": str(output), "bytes": output.stat().st_size, "fit_s": seconds}
    found |= {"trained_on": lesson.amount, "validation": _validation(predictor, lesson, distance)}
    _report(found, points, json=json, curve=curve)


@dataclass(frozen=True, eq=False)
class _Lesson:
    """What is about to be learned; `validation` None: every prompt is trained on."""

    spec: MoESpec
    amount: str
    validation: Trace | None
    fit: Callable[[], object]


def _lesson(
    predictor: Predictor, name: str, traces: list[Path], *, how: str, seed: int, distance: int, stream: bool | None
) -> _Lesson:
    """Read what there is to learn. Raises: ChoiceError where the options do not fit the traces."""
    from foregate.comparison import missing
    from foregate.errors import ChoiceError
    from foregate.predictors.base import HIDDEN
    from foregate.splits import without_duplicates
    from foregate.traces.schema import concat
    from foregate.traces.storage import read_trace

    parts = _parts(predictor, name, traces, how, stream)
    if parts is None:
        hidden = bool(predictor.needs & HIDDEN)
        trace = without_duplicates(concat([read_trace(path, hidden=hidden) for path in traces]))
        first = trace
    else:
        first = next(iter(parts))
    if distance >= first.spec.num_layers:
        raise ChoiceError(f"distance {distance} does not fit {first.spec.num_layers} layers; choose a smaller one")
    reason = missing(predictor, first)
    if reason is not None:
        raise ChoiceError(f"{name} cannot be trained here: {reason}")
    if parts is None:
        fold = _division(trace, how, seed)
        judges = fold.validation
        return _Lesson(trace.spec, _amount(fold.train), judges, lambda: predictor.fit(fold.train, judges))
    from foregate.streaming import split_parts

    streamed = split_parts(parts, seed=seed)
    amount = f"{sum(map(len, streamed.train)):,} streamed tokens of {len(streamed.train.prompts):,} prompts"
    fit = lambda: predictor.fit_parts(streamed.train, streamed.validation)  # type: ignore[attr-defined]  # noqa: E731
    return _Lesson(parts.spec, amount, streamed.validation, fit)


def _parts(predictor: Predictor, name: str, traces: list[Path], how: str, stream: bool | None) -> Parts | None:
    """The trace to stream; None: it is to be read whole. Raises: ChoiceError where --stream does not fit."""
    from foregate.errors import ChoiceError
    from foregate.traces.parts import Parts
    from foregate.traces.storage import read_shape

    able = getattr(predictor, "streams", False) and len(traces) == 1 and how == "prompt" and traces[0].is_file()
    if stream and not able:
        raise ChoiceError(f"--stream is for one trace file, a split by prompt and a predictor that streams; not {name}")
    if stream is False or not able:
        return None
    spec, _, tokens = read_shape(traces[0])
    return Parts.stored(traces[0]) if stream or tokens * spec.num_layers * spec.top_k > LARGE else None


def _division(trace: Trace, how: str, seed: int) -> Fold:
    """What is trained on, and what it is judged by."""
    from foregate.errors import ChoiceError
    from foregate.splits import LEAKING, Fold, split

    if how == "none":
        return Fold(trace, None, trace)
    if how not in ("prompt", *LEAKING):
        raise ChoiceError(f"--split {how} is not one of prompt, {', '.join(LEAKING)}, none")
    if how == "prompt" and len(trace.prompts) < 3:
        raise ChoiceError(f"{len(trace.prompts)} prompts cannot be split; train on all of them with --split none")
    return next(split(trace, how, seed=seed))


def _validation(predictor: Predictor, lesson: _Lesson, distance: int) -> dict[str, Any]:
    """The scores on the validation rows, means over layers; empty where there are none."""
    import numpy as np

    from foregate.evaluation import evaluate

    validation = lesson.validation
    if validation is None or len(validation) == 0:
        return {}
    k = validation.spec.top_k
    tally = evaluate(predictor, validation, distance=distance, budgets=(k,))
    shown = (("top-1", "top1"), ("top-2", "top2"), (f"recall@{k}", f"recall@{k}"))
    scores = {title: float(np.nanmean(tally.mean(key))) for title, key in shown if key in tally.sums}
    return {"on": _amount(validation), "distance": distance, **scores}


def _report(found: dict[str, Any], points: list[Point], *, json: Path | None, curve: Path | None) -> None:
    """Say what was done, and write it where that was asked for."""
    from dataclasses import asdict
    from json import dumps

    from foregate.cli.terminal import alone, file_size, write_text

    whole = {**found, "curve": [asdict(point) for point in points]}
    if json is not None:
        write_text(json, dumps(whole, indent=1) + "\n")
    if curve is not None and not points:
        from foregate.cli.terminal import warn

        warn(f"{found['predictor']} learns in no epochs; {curve} was not written")
    elif curve is not None and curve.suffix == ".json":
        write_text(curve, dumps(whole["curve"], indent=1) + "\n")
    elif curve is not None:
        from foregate.report.curve import build_curve_page

        title = f"Training {found['predictor']}"
        write_text(curve, build_curve_page(points, title=title, commands=[]))
    if alone(json):
        return
    size, seconds, trained = file_size(found["bytes"]), found["fit_s"], found["trained_on"]
    print(f"wrote {found['output']} ({size}): {found['predictor']}, fitted in {seconds:.1f} s on {trained}")
    scores = dict(found["validation"])
    if not scores:
        print("no validation: every prompt was trained on")
        return
    amount, distance = scores.pop("on"), scores.pop("distance")
    ahead = f"{distance} layer{'s' if distance > 1 else ''} ahead"
    text = ", ".join(f"{title} {score:.1%}" for title, score in scores.items())
    print(f"validation ({amount}, {ahead}; mean over layers): {text}")


def _amount(trace: Trace) -> str:
    prompts = f"{len(trace.prompts):,} prompt{'s' if len(trace.prompts) > 1 else ''}"
    cells = trace.answers
    return f"{len(trace):,} tokens of {prompts}" if cells is None else f"{int(cells.sum()):,} cells of {prompts}"


@contextmanager
def _progress(title: str, predictor: Predictor) -> Iterator[None]:
    """A bar on standard error with the time left, once the predictor has told how far it is."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from foregate.cli.terminal import chatter

    console = chatter()
    shown = console.is_terminal and not console.quiet
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown)
    with bar as progress:
        task = progress.add_task(title, total=None)
        predictor.on_epoch = lambda epoch, score: progress.update(
            task, description=f"{title}: epoch {epoch}, validation score {score:.1%}"
        )
        if predictor.session is not None:
            predictor.session.advance = lambda share: progress.update(task, total=1.0, completed=share)
        try:
            yield
        finally:
            predictor.on_epoch = None
