"""`foregate tune`: the best options of a predictor."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foregate.cli import completion
from foregate.cli.options import Replay, replayed_as_decode, written

if TYPE_CHECKING:
    from foregate.traces.schema import Trace
    from foregate.tuning import Attempt, Tuned


def command(
    name: Annotated[
        str,
        typer.Argument(
            help="Predictor, e.g. memory; options that it names stay: memory:prior=1.",
            autocompletion=completion.predictors,
        ),
    ],
    source: Annotated[Path, typer.Argument(metavar="TRACE", help="The trace to learn and validate on.")],
    *,
    trials: Annotated[
        int, typer.Option(min=1, help="Finished trials to reach, over all workers and resumptions.")
    ] = 50,
    storage: Annotated[
        str | None,
        typer.Option(
            help="Database address (SQLAlchemy's); share one between workers.  [default: sqlite:///NAME.tune.db]"
        ),
    ] = None,
    study: Annotated[str | None, typer.Option(help="Name of the study to begin or resume.  [default: NAME]")] = None,
    split: Annotated[str, typer.Option(help="prompt; token, sample (they leak, and say so).")] = "prompt",
    seed: Annotated[int, typer.Option(min=0, help="Of the split, and of a new study's search.")] = 0,
    metric: Annotated[
        str, typer.Option(help="recall, top1, top2, exact_set or log_loss, on the validation prompts.")
    ] = ("recall"),
    budget: Annotated[int | None, typer.Option(help="Experts fetched per layer, for recall.  [default: k]")] = None,
    distance: Annotated[int, typer.Option(help="How many layers ahead.")] = 1,
    replay: Replay = "recorded",
    layers: Annotated[
        str | None, typer.Option(help="Only the first so many mixture layers (5), or some (3-8): cheaper.")
    ] = None,
    heartbeat: Annotated[
        int, typer.Option(min=1, help="Seconds between a worker's signs of life; six missing, and it counts as dead.")
    ] = 10,
    plot: Annotated[Path | None, typer.Option(help="Write a page on the study here (HTML).")] = None,
    json: Annotated[Path | None, written("the trials")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Fit the best on all layers and save it here (.npz).")
    ] = None,
) -> None:
    """Search the options of a predictor. Type it again to resume, or at once elsewhere to share the work.

    Example: foregate tune memory deepseek.parquet --as decode --trials 50 --layers 5
    """
    from foregate.cli.terminal import alone, warn
    from foregate.components import build
    from foregate.errors import need
    from foregate.layers import some_layers
    from foregate.predictors import PREDICTORS
    from foregate.predictors.base import HIDDEN
    from foregate.splits import LEAKING
    from foregate.traces.storage import read_trace
    from foregate.tuning import Question, tune

    need("optuna", "train")
    if plot is not None:
        need("plotly", "report")  # before hours of work, not after
    as_decode = replayed_as_decode(replay)
    if split in LEAKING:
        warn(f"--split {split} leaks: tokens of one prompt stand on both sides; what it prefers holds nowhere else")
    plain = name.partition(":")[0]
    whole = read_trace(source, hidden=bool(build(PREDICTORS, name).needs & HIDDEN))
    question = Question(
        name,
        metric=metric,
        budget=whole.spec.top_k if budget is None else budget,
        distance=distance,
        as_decode=as_decode,
        how=split,
        seed=seed,
    )
    with _teller(trials) as tell:
        tuned = tune(
            whole if layers is None else some_layers(whole, *_layers(layers)),
            question,
            trials=trials,
            storage=storage or f"sqlite:///{plain}.tune.db",
            study=study or plain,
            heartbeat=heartbeat,
            told=tell,
        )
    if not alone(json):
        _show(tuned, source)
    _write(tuned, whole, source, plot=plot, json=json, output=output)


@contextmanager
def _teller(trials: int) -> Iterator[Callable[[Attempt], None]]:
    """A line on standard error for each trial, above a bar with the time left."""
    from foregate.cli.terminal import chatter, progress_bar

    left = 0
    with progress_bar("tuning") as advance:

        def tell(attempt: Attempt) -> None:
            nonlocal left
            left = left or max(trials - attempt.number, 1)  # earlier runs may have done some
            score = "stopped early" if attempt.score is None else f"{attempt.score:.4f}"
            line = f"trial {attempt.number}: {score} in {attempt.seconds:.1f} s, {attempt.component}"
            chatter().print(line, highlight=False, markup=False, soft_wrap=True)
            advance(f"{attempt.number + 1}/{trials} trials", 1 / left)

        yield tell


def _show(tuned: Tuned, source: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from foregate.cli.terminal import STYLE, say
    from foregate.report.study import prompts

    console = Console()
    table = Table(title=f"{_heading(tuned)} on {prompts(tuned)}", title_justify="left", **STYLE)
    table.add_column("")
    table.add_column("score", justify="right")
    table.add_column("trial", justify="right")
    table.add_column("predictor", overflow="fold")
    for label, attempt in (("best", tuned.best), ("as it comes", tuned.default)):
        if attempt is not None and attempt.score is not None:
            table.add_row(label, _scored(tuned, attempt.score), str(attempt.number), attempt.component)
        else:
            table.add_row(label, "-", "-", "its trial has not finished")
    console.print(table)
    say(_explanation(tuned), console=console)
    print(f"next: {_next(tuned, source)}")


def _explanation(tuned: Tuned) -> str:
    question = tuned.question
    stopped = sum(a.score is None for a in tuned.attempts)
    return (
        f"Measured; mean over layers, {question.distance} ahead, replayed as {_replay(tuned)}, split by "
        f"{question.how}, seed {question.seed}. {len(tuned.attempts)} trials in study {tuned.study.study_name!r}, "
        f"{stopped} stopped early. The best was chosen on these prompts, so its score flatters; the test prompts were "
        "not looked at."
    )


def _next(tuned: Tuned, source: Path) -> str:
    """The command that asks the test prompts of the same split."""
    question = tuned.question
    names = dict.fromkeys([question.predictor, tuned.best.component])
    words = ["foregate", "compare", str(source), "--predictors", ",".join(names)]
    words += ["--split", question.how] if question.how != "prompt" else []
    words += ["--as", "decode"] if question.as_decode else []
    words += ["--distance", str(question.distance)] if question.distance != 1 else []
    return shlex.join(words)


def _write(
    tuned: Tuned, whole: Trace, source: Path, *, plot: Path | None, json: Path | None, output: Path | None
) -> None:
    from foregate.cli.terminal import write_text

    if json is not None:
        write_text(json, _json(tuned))
    if plot is not None:
        from foregate.report.study import build_study_page

        title = f"Tuning {tuned.question.predictor} on {whole.spec.model}"
        write_text(plot, build_study_page(tuned, title=title, commands=[_next(tuned, source)]))
        print(f"wrote {plot}")
    if output is not None:
        from foregate.predictors.storage import save
        from foregate.tuning import fit_best

        save(fit_best(whole, tuned), output, whole.spec)
        print(f"wrote {output}: {tuned.best.component}, fitted on the training prompts, all layers")


def _json(tuned: Tuned) -> str:
    from dataclasses import asdict
    from json import dumps

    found = {
        "question": asdict(tuned.question),
        "study": tuned.study.study_name,
        "prompts": tuned.prompts,
        "best": asdict(tuned.best),
        "default": None if tuned.default is None else asdict(tuned.default),
        "trials": [asdict(a) for a in tuned.attempts],
    }
    return dumps(found, indent=1) + "\n"


def _heading(tuned: Tuned) -> str:
    from foregate.report.numbers import metric_name

    question = tuned.question
    return metric_name(question.metric, question.budget if question.metric == "recall" else None)


def _scored(tuned: Tuned, score: float) -> str:
    from foregate.report.numbers import PERCENT

    return f"{score:.2%}" if tuned.question.metric in PERCENT else f"{score:.4f}"


def _replay(tuned: Tuned) -> str:
    return "decode" if tuned.question.as_decode else "recorded"


def _layers(text: str) -> tuple[int, int]:
    from foregate.errors import ChoiceError

    first, dash, last = text.partition("-")
    try:
        return (int(first), int(last)) if dash else (0, int(first) - 1)
    except ValueError:
        raise ChoiceError(f"--layers {text!r} is neither a number such as 5 nor a range such as 3-8") from None
