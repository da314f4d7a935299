"""What several commands print alike: a warning, progress, a file or standard output, a size. Knows no results."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from foregate.cli.command import QUIET

STYLE: dict[str, Any] = {"box": SIMPLE_HEAD, "pad_edge": False, "padding": (0, 1, 0, 0)}


def warn(text: str) -> None:
    """One yellow line on standard error, with --quiet too."""
    Console(stderr=True).print(f"warning: {text}", style="yellow", highlight=False)


def chatter() -> Console:
    """Standard error, for progress and for what nobody asked for; silent with --quiet."""
    return Console(stderr=True, quiet=QUIET.get())


def say(*lines: str, console: Console | None = None) -> None:
    """What the numbers above rest on: dim lines on standard output, as they are."""
    for line in lines:
        (console or Console()).print(line, style="dim", highlight=False, markup=False)


def facts_table(facts: Iterable[tuple[str, str | Text]], title: str | None = None) -> Table:
    """Names and what they are."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(name, Text(value) if isinstance(value, str) else value)
    return table


def write_text(path: Path, text: str) -> None:
    """A file, whole or not at all; "-" is standard output."""
    import sys

    if alone(path):
        sys.stdout.write(text)
        return
    from foregate.traces.storage import replacing

    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, found: Any) -> None:
    """What --json was asked for: a JSON value in a file, or ("-") on standard output.

    Raises: ValueError for a number that JSON does not have.
    """
    from json import dumps

    write_text(path, dumps(found, indent=1, allow_nan=False) + "\n")


def alone(json: Path | None) -> bool:
    """Whether standard output is for JSON, and for nothing else."""
    return str(json) == "-"


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[str, float], None]]:
    """A bar on standard error with the time left; gives `advance(what, share of all work)`."""
    columns = (TextColumn("{task.description:14}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    console = chatter()
    shown = console.is_terminal and not console.quiet
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not shown) as progress:
        task = progress.add_task(title, total=1.0)
        yield lambda what, share: progress.update(task, description=what, advance=share)


def file_size(size: int) -> str:
    """Bytes as a short text."""
    value = float(size)
    for unit in ("B", "kB", "MB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} GB"
