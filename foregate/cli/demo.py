"""`foregate demo`: the whole loop on the embedded model, by calling the other commands and saying what it calls."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

PROMPTS = Path(__file__).parent.parent / "data" / "demo_prompts.jsonl"
EMBEDDED = Path(__file__).parent.parent.parent / "models" / "tiny"
NEW_TOKENS = 40  # to write after each prompt: enough decoding to learn from, and the demo stays short
BATCH = 4
DISTANCES = "1,2,4"
SMALL = 100_000_000  # bytes of weights
REPLAY = "decode"  # token by token: prefetching pays there, and the prompts are most of so short a recording
FOLDS = 5  # every prompt is tested once; one split would test seven prompts


def command(
    out: Annotated[Path, typer.Option(help="Folder to write to; earlier demo results in it are replaced.")] = Path(
        "demo"
    ),
    model: Annotated[
        Path | None, typer.Option(help="Folder of another Mixture-of-Experts model.  [default: models/tiny]")
    ] = None,
) -> None:
    """Record a small model, describe its routing, compare all predictors, and make a report page: a minute or two.

    Example: foregate demo --out demo/
    """
    import time

    from rich.console import Console

    from foregate.cli import compare, describe, record, report
    from foregate.errors import need

    for module, extra in (("torch", "models"), ("transformers", "models"), ("plotly", "report")):
        need(module, extra)  # before minutes of work, not after
    folder = _near(find_model(model))
    trace, results, page = out / "trace.parquet", out / "results.json", out / "report.html"
    console = Console()
    began = time.monotonic()

    _quiet(folder)
    commands = [_say(console, "1. Record which experts every token goes to.", _record_line(folder, trace))]
    record.command(
        str(folder),
        str(_near(PROMPTS)),
        trace,
        max_new_tokens=NEW_TOKENS,
        batch_size=BATCH,
        hidden=True,
        overwrite=True,
    )
    commands.append(_say(console, "2. Describe what was recorded.", _line("describe", trace)))
    describe.command(trace)
    line = _line("compare", trace, "--as", REPLAY, "--folds", FOLDS, "--distance", DISTANCES, "--json", results)
    commands.append(_say(console, "3. Compare all predictors on prompts that they were not fitted on.", line))
    compare.command([trace], replay=REPLAY, folds=FOLDS, distance=DISTANCES, json=results)
    commands.append(_say(console, "4. Put it all on one page.", _line("report", results, "--trace", trace, "-o", page)))
    report.write_page([results], [trace], page, commands=commands)
    _conclude(console, page, results, trace, time.monotonic() - began)


def find_model(asked: Path | None) -> Path:
    """The folder of the model to record.

    Raises: ModelError where there is none.
    """
    from foregate.errors import ModelError

    folder = asked or EMBEDDED
    if (folder / "config.json").is_file():
        return folder
    if asked is not None:
        raise ModelError(f"{asked} holds no config.json; give --model the folder of a model that transformers can read")
    raise ModelError(
        f"the embedded model is not at {folder} (it comes with the source, not with the installed package); "
        "pass --model FOLDER, the folder of any Mixture-of-Experts model"
    )


def _quiet(folder: Path) -> None:
    """No bars but ours; one thread for a small model, which gains nothing from more and loses much on shared cores."""
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    if sum(file.stat().st_size for file in folder.glob("*.safetensors")) < SMALL:
        torch.set_num_threads(1)


def _record_line(folder: Path, trace: Path) -> str:
    options = ("--max-new-tokens", NEW_TOKENS, "--batch-size", BATCH, "--hidden", "--overwrite")
    return _line("record", folder, "--prompts", PROMPTS, "-o", trace, *options)


def _line(*words: object) -> str:
    """The command line as the user would type it here."""
    import shlex

    return shlex.join(["foregate", *(str(_near(w) if isinstance(w, Path) else w) for w in words)])


def _near(path: Path) -> Path:
    """Relative where it lies below the current folder."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def _say(console: Console, what: str, line: str) -> str:
    console.print()
    console.print(what, style="bold", highlight=False)
    console.print(f"$ {line}", style="cyan", highlight=False, markup=False, soft_wrap=True)
    return line


def _conclude(console: Console, page: Path, results: Path, trace: Path, seconds: float) -> None:
    rows = (
        (page, f"open it in a browser: {page.resolve().as_uri()}"),
        (results, "every number of the page, a row each"),
        (trace, f"yours to explore: {_line('describe', trace)} --json -"),
    )
    console.print(f"\nDone in {seconds:.0f} s. Where to look next:", style="bold", highlight=False)
    for path, what in rows:
        console.print(f"  {_near(path)}  {what}", highlight=False, markup=False, soft_wrap=True)
    console.print("  foregate record --help  how to record a model of your own", highlight=False, soft_wrap=True)
