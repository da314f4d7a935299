"""`foregate train`: a predictor as a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from foregate.predictors.base import Predictor
    from foregate.splits import Fold
    from foregate.traces.schema import Trace


def command(
    name: Annotated[str, typer.Argument(help="Predictor, with options if any: mlp, rules:order=2.")],
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE", help="Traces of one model; several are joined.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write (.npz).")],
    split: Annotated[
        str,
        typer.Option(
            help="prompt: train on the training prompts that compare has, its test prompts stay unseen; token, sample "
            "(they leak, and say so); none: train on every prompt."
        ),
    ] = "prompt",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    distance: Annotated[int, typer.Option(min=1, help="The most layers ahead that it learns to look.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it exists.")] = False,
) -> None:
    """Fit one predictor and save it. Python reads it: foregate.load_predictor(path).

    Example: foregate train mlp deepseek.parquet -o mlp.npz
    """
    import time

    from foregate.cli.terminal import file_size, warn
    from foregate.comparison import missing
    from foregate.components import build
    from foregate.errors import ChoiceError, StorageError
    from foregate.predictors import PREDICTORS
    from foregate.predictors.storage import save
    from foregate.splits import LEAKING, without_duplicates
    from foregate.traces.schema import concat
    from foregate.traces.storage import read_trace

    if output.exists() and not overwrite:
        raise StorageError(f"{output} exists; choose another name, or replace it with --overwrite")
    predictor = build(PREDICTORS, name, horizon=distance)
    if split in LEAKING:
        warn(f"--split {split} leaks: tokens of one prompt stand on both sides; its score holds nowhere else")
    hidden = "hidden" in predictor.needs
    trace = without_duplicates(concat([read_trace(path, hidden=hidden) for path in traces]))
    if distance >= trace.spec.num_layers:
        raise ChoiceError(f"distance {distance} does not fit {trace.spec.num_layers} layers; choose a smaller one")
    reason = missing(type(predictor), trace)
    if reason is not None:
        raise ChoiceError(f"{name} cannot be trained here: {reason}")
    fold = _division(trace, split, seed)
    started = time.perf_counter()
    with _spinner(f"training {name}") as say:
        predictor.on_epoch = lambda epoch, score: say(f"epoch {epoch}, validation score {score:.1%}")
        predictor.fit(fold.train, fold.validation)
        predictor.on_epoch = None
    seconds = time.perf_counter() - started
    save(predictor, output)
    size = file_size(output.stat().st_size)
    print(f"wrote {output} ({size}): {name}, fitted in {seconds:.1f} s on {_amount(fold.train)}")
    print(_validation(predictor, fold, distance))


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


def _validation(predictor: Predictor, fold: Fold, distance: int) -> str:
    """The score on the validation rows, as a line."""
    import numpy as np

    from foregate.evaluation import evaluate

    validation = fold.validation
    if validation is None or len(validation) == 0:
        return "no validation: every prompt was trained on"
    k = validation.spec.top_k
    tally = evaluate(predictor, validation, distance=distance, budgets=(k,))
    shown = (("top-1", "top1"), ("top-2", "top2"), (f"recall@{k}", f"recall@{k}"))
    scores = [f"{title} {np.nanmean(tally.mean(key)):.1%}" for title, key in shown if key in tally.sums]
    ahead = f"{distance} layer{'s' if distance > 1 else ''} ahead"
    return f"validation ({_amount(validation)}, {ahead}; mean over layers): {', '.join(scores)}"


def _amount(trace: Trace) -> str:
    prompts = f"{len(trace.prompts):,} prompt{'s' if len(trace.prompts) > 1 else ''}"
    cells = trace.answers
    return f"{len(trace):,} tokens of {prompts}" if cells is None else f"{int(cells.sum()):,} cells of {prompts}"


@contextmanager
def _spinner(title: str) -> Iterator[Callable[[str], None]]:
    """A turning wheel on standard error, and what to say beside it."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: None
        return
    with console.status(title) as status:
        yield lambda text: status.update(f"{title}: {text}")
