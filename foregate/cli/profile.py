"""`foregate profile`: measure this machine, and a model's experts on it, for plan, simulate and budget:."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from foregate.cli.options import TrustRemoteCode, written

if TYPE_CHECKING:
    from rich.table import Table

    from foregate.hardware.profile import Profile, Timing

TITLES = {
    "read": "disk read",
    "memcpy": "memory copy",
    "memread": "memory read",
    "pinned": "to GPU, pinned",
    "pageable": "to GPU, pageable",
    "readback": "from GPU",
    "on-device": "GPU copy",
    "device-read": "GPU memory read",
    "expert": "one expert",
    "dense": "dense layer",
    "head": "output head",
    "expert-turn": "expert turn",
    "layer-turn": "layer turn",
    "pass-turn": "pass turn",
    "look-turn": "look turn",
    "read-turn": "read turn",
    "predict": "predictor",
}
"""Kind -> what a table calls it; kinds that are not here stand above the tables."""


def command(
    model: Annotated[str | None, typer.Argument(help="Folder or Hugging Face name: times its experts too.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="The profile to write, JSON.")] = None,
    *,
    disk: Annotated[
        Path | None, typer.Option(help="Folder on the disk to measure.  [default: the model's, or this one]")
    ] = None,
    predictor: Annotated[Path | None, typer.Option(help="A predictor of foregate train: times its answers.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads that compute.")] = None,
    json: Annotated[Path | None, written("the profile")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of a minute; rough.")] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Measure this machine: disk (cold, by block size and depth), memory, GPU link, a model's experts, a predictor.

    No weights are needed: experts are timed on random weights of the model's shapes. Needs 640 MiB of disk for
    half a minute, unless the model's own files are there to read. On a busy machine the numbers are of a busy machine;
    how busy others kept it is in the profile.

    Example: foregate profile models/tiny -o machine.json
    """
    # As `run` computes: threads that wait spinning would take the cores from those that read. Before torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from foregate.cli.terminal import alone, progress_bar, write_json
    from foregate.errors import StorageError, need
    from foregate.hardware.measure import FULL, QUICK, measure
    from foregate.hardware.storage import to_json, write

    if disk is not None and not disk.is_dir():
        raise StorageError(f"there is no folder {disk}; --disk names one on the disk to measure")
    if threads is not None:
        need("torch", "models").set_num_threads(threads)
    local = model is not None and Path(model).is_dir()
    folder = disk or (Path(str(model)) if local else Path())
    with progress_bar("starting") as advance:
        profile = measure(
            folder,
            model=model,
            predictor=predictor,
            effort=QUICK if quick else FULL,
            trust_remote_code=trust_remote_code,
            advance=advance,
        )
    if output is not None:
        write(profile, output)
    if json is not None:
        write_json(json, to_json(profile))
    if alone(json):
        return
    show(profile)
    if output is not None:
        print(f"wrote {output}")


def show(profile: Profile) -> None:
    """The profile as tables that fit 80 columns."""
    from rich.console import Console

    console = Console()
    console.print(_facts(profile))
    console.print(_table(profile, "bytes", "How bytes move"))
    if any(profile.of(kind) for kind in ("expert", "dense", "head", "predict")):
        console.print(_table(profile, "tokens", "How long it computes"))
    for note in profile.notes:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)


def _facts(profile: Profile) -> Table:
    from rich.table import Table

    table = Table(show_header=False, box=None, padding=(0, 1))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    machine, model, line = profile.machine, profile.model, profile.read_line()
    memory = None if machine.ram_bytes is None else f"{machine.ram_bytes / 2**30:.1f} GiB"
    table.add_row("processor", f"{machine.cpu}, {machine.cores} cores, {machine.threads} computing, {memory}")
    table.add_row("disk", f"{machine.disk} ({machine.file_system}), {'O_DIRECT' if machine.direct else 'buffered'}")
    table.add_row("GPU", machine.gpu or "none that torch can use")
    if model is not None:
        size = f"{model.expert_bytes / 1e6:.3g} MB"
        table.add_row("model", f"{model.name}: {model.layers} x {model.experts} experts of {size}, {model.dtype}")
    table.add_row(
        "one read takes",
        f"{line.latency * 1e6:.0f} us + bytes / {1 / line.per_byte / 1e9:.2f} GB/s, off by {line.error:.0%} (median), "
        f"{line.worst:.0%} (worst size)",
    )
    table.add_row(
        "overlap", f"reading slows compute x{profile.work_slowed:.2f}, and it reads x{profile.reads_slowed:.2f}"
    )
    table.add_row("others", f"kept {machine.foreign_load} cores busy meanwhile")
    return table


def _table(profile: Profile, unit: str, title: str) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from foregate.hardware.profile import KINDS

    kinds = [kind for kind in TITLES if KINDS[kind] == unit]
    others = sorted({timing.basis for kind in kinds for timing in profile.of(kind)} - {"measured"})
    title += f" (measured; * {', '.join(others)})" if others else " (measured)"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("what", no_wrap=True)
    for heading in (unit, "at once", "p50 ms", "p95 ms", "p99 ms", "GB/s" if unit == "bytes" else "per s", "times"):
        table.add_column(heading, justify="right")
    for kind in kinds:
        what = TITLES[kind]
        for timing in profile.of(kind):
            table.add_row(what if timing.basis == "measured" else f"{what}*", *_cells(timing, unit))
    return table


def _cells(timing: Timing, unit: str) -> list[str]:
    spread = ["-" if value is None else _number(value * 1e3) for value in (timing.p50, timing.p95, timing.p99)]
    size = _size(timing.size) if unit == "bytes" else str(timing.size)
    rate = f"{timing.rate / 1e9:.2f}" if unit == "bytes" else f"{timing.rate:,.0f}"
    return [size, str(timing.at_once), *spread, rate, str(timing.count)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _size(size: int) -> str:
    for unit in ("B", "KiB"):
        if size % 1024:
            return f"{size:,} {unit}"
        size //= 1024
    return f"{size:,} MiB"
