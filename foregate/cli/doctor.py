"""`foregate doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foregate.cli.options import written

if TYPE_CHECKING:
    from foregate.hardware.doctor import Checkup, Disk, Library

Row = tuple[str, str, str]  # what, what of it, and "good", "bad" or "" for its colour
STYLES = {"good": "green", "bad": "red", "": ""}


def command(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Write no file: leave out O_DIRECT and disk speed.")] = False,
    json: Annotated[Path | None, written("everything")] = None,
) -> None:
    """Say what this machine has, which features work on it, and what to type for the others.

    A file of 256 MiB is written to the disks in question, read once past the page cache, and removed. Exits with 1 if
    something that foregate cannot do without is broken.

    Example: foregate doctor --quick
    """
    from rich.console import Console

    from foregate.cli.terminal import alone, chatter, write_json
    from foregate.hardware.doctor import examine

    with chatter().status("looking around"):
        found = examine(quick=quick)
    if json is not None:
        write_json(json, {**found.to_json(), **_places()})
    if not alone(json):
        for title, rows in _sections(found):
            _show(Console(), title, list(rows))
    if not found.sound:
        raise typer.Exit(1)


def _show(console: object, title: str, rows: list[Row]) -> None:
    """A table on a terminal; lines of text in a pipe."""
    from rich.console import Console
    from rich.text import Text

    from foregate.cli.terminal import facts_table

    assert isinstance(console, Console)
    if not console.is_terminal:
        print(f"{title}\n" + "\n".join(f"  {name:40}  {value}".rstrip() for name, value, _ in rows))
        return
    console.print(facts_table([(name, Text(value, style=STYLES[mood])) for name, value, mood in rows], title))


def _sections(found: Checkup) -> Iterator[tuple[str, Iterator[Row]]]:
    yield "versions", _versions(found)
    yield "places", _where()
    yield "machine", _machine(found)
    yield "disks", (row for disk in found.disks for row in _disk(disk))
    yield (
        "features",
        ((f.name, "works" if f.usable else f.advice or "", "good" if f.usable else "") for f in found.features),
    )


def _versions(found: Checkup) -> Iterator[Row]:
    yield "foregate", found.foregate, ""
    yield "python", found.python, ""
    for library in found.libraries:
        yield library.name, *_state(library)


def _state(library: Library) -> tuple[str, str]:
    if library.version is None:
        return ("missing, and foregate needs it", "bad") if library.required else ("not installed", "")
    if library.problem is not None:
        return f"{library.version}, which cannot be imported ({library.problem})", "bad"
    return library.version, ""


def _places() -> dict[str, str | None]:
    """Where foregate looks, and where it keeps what it may make again."""
    from foregate.cli.settings import settings_file
    from foregate.folders import cache_folder

    file = settings_file()
    return {"settings": None if file is None else str(file.absolute()), "cache": str(cache_folder())}


def _where() -> Iterator[Row]:
    from foregate.cli.settings import HERE
    from foregate.folders import settings_folder

    places = _places()
    none = f"none (no {HERE} in this folder, no {settings_folder() / 'config.toml'})"
    yield "settings", places["settings"] or none, ""
    yield "cache (FOREGATE_CACHE)", str(places["cache"]), ""


def _machine(found: Checkup) -> Iterator[Row]:
    from foregate.sizes import size_text

    def text(size: int | None) -> str:
        return "unknown" if size is None else size_text(size)

    yield "cores for this process", str(found.cores), ""
    yield "memory", f"{text(found.memory.available)} available of {text(found.memory.total)}", ""
    if found.memory.limit is not None:
        yield "limit of its control group", text(found.memory.limit), ""
    for name, size in found.devices:
        yield "CUDA device", f"{name}, {text(size)}", "good"
    if not found.devices:
        yield "CUDA device", "none", ""


def _disk(disk: Disk) -> Iterator[Row]:
    from foregate.sizes import size_text

    device = " ".join(filter(None, (disk.file_system, f"on {disk.device}" if disk.device else None)))
    yield disk.what, disk.folder, ""
    yield "", f"{device or 'unknown device'}, {size_text(disk.free)} free", ""
    if disk.bytes_per_s is not None:
        yield "", f"O_DIRECT works: {disk.bytes_per_s / 1e9:.2f} GB/s in blocks of 16 MiB (measured)", "good"
    elif disk.note is not None:
        yield "", disk.note, ""
