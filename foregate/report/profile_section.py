"""A machine's profile as a part of the page: what bytes and work take on it, how many reads work hides."""

from collections.abc import Sequence
from html import escape

from foregate.hardware.profile import KINDS, Profile, Timing
from foregate.report import numbers, profile_figures
from foregate.report.section import Section
from foregate.report.sortable import Cell, Heading, Line, cell, sortable
from foregate.report.tables import pairs_table

HEADINGS = (
    Heading("size", lower=True),
    Heading("at once", lower=True),
    Heading("reckoned", lower=True),
    Heading("p50", lower=True),
    Heading("p95", lower=True),
    Heading("p99", lower=True),
    Heading("rate"),
    Heading("times"),
    Heading("how"),
)


def profile_section(profile: Profile, number: int) -> Section:
    """`number` tells this profile's figures from others'."""
    drawn = (
        profile_figures.moved(profile, number),
        profile_figures.rates(profile, number),
        profile_figures.spread(profile, number),
        profile_figures.experts(profile, number),
        profile_figures.work(profile, number),
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in (*profile.notes, *profile.sources))
    listed = f'<h3>Notes on the measurement</h3><ul class="notes">{notes}</ul>' if notes else ""
    moved = [t for kind, unit in KINDS.items() if unit == "bytes" for t in profile.of(kind)]
    computed = [t for kind, unit in KINDS.items() if unit == "tokens" for t in profile.of(kind)]
    tables = [_table("How bytes move", moved)] + ([_table("How long it computes", computed)] if computed else [])
    about = "Reckoned: what simulation counts with. p50, p95, p99: of all single runs. Select a heading to sort."
    return Section(
        name=f"profile-{number}",
        title=f"What {profile.name} gives",
        body=pairs_table("the machine", _facts(profile)) + listed + f'<p class="soft">{about}</p>' + "".join(tables),
        figures=tuple(figure for figure in drawn if figure is not None),
    )


def _facts(profile: Profile) -> list[tuple[str, str]]:
    machine, model = profile.machine, profile.model
    pairs = []
    if machine.cpu is not None:
        working = "" if machine.threads is None else f", {machine.threads} of them computing"
        pairs.append(("processor", f"{machine.cpu}, {machine.cores} cores{working}"))
    if machine.ram_bytes is not None:
        pairs.append(("memory", numbers.size(machine.ram_bytes)))
    if machine.disk is not None:
        way = "read past the page cache" if machine.direct else "read through the page cache"
        pairs.append(("disk", f"{machine.disk} ({machine.file_system}), {way}"))
    pairs.append(("GPU", machine.gpu or "none that torch could use"))
    if model is not None:
        experts = (
            f"{model.layers} layers of {model.experts} experts of {numbers.size(model.expert_bytes)}, {model.dtype}"
        )
        pairs.append(("model", f"{model.name}: {experts}"))
    if profile.of("read"):
        line = profile.read_line()
        pairs.append(
            (
                "a read",
                f"{numbers.seconds(line.latency)} and {numbers.size(1 / line.per_byte)} a second; the line is off by "
                f"{line.error:.0%} (median), {line.worst:.0%} (worst size)",
            )
        )
    if profile.of("work-beside-reads") and profile.of("work-alone"):
        pairs.append(
            (
                "side by side",
                f"computing takes {profile.work_slowed:.2f} times as long while the disk is read, reading "
                f"{profile.reads_slowed:.2f} times as long while experts are computed",
            )
        )
    if machine.foreign_load is not None:
        pairs.append(("others", f"kept {machine.foreign_load} cores busy meanwhile"))
    return pairs


def _table(caption: str, timings: Sequence[Timing]) -> str:
    bases = {t.basis for t in timings}
    how = f" ({next(iter(bases))})" if len(bases) == 1 else ""
    return sortable(caption + how, "what", HEADINGS, [_line(t) for t in timings])


def _line(timing: Timing) -> Line:
    of_bytes = KINDS[timing.kind] == "bytes"
    size = numbers.size(timing.size) if of_bytes else f"{timing.size:,} token{'s' if timing.size > 1 else ''}"
    rate = f"{numbers.size(timing.rate)}/s" if of_bytes else f"{numbers.rate(timing.rate)}/s"
    return Line(
        profile_figures.TITLES.get(timing.kind, timing.kind),
        (
            Cell(size, float(timing.size)),
            cell(str, timing.at_once),
            *(cell(numbers.seconds, t) for t in (timing.seconds, timing.p50, timing.p95, timing.p99)),
            Cell(rate, timing.rate),
            cell("{:,}".format, timing.count or None),
            Cell(timing.basis, timing.basis),
        ),
    )
