"""Moving experts beside computing them, as a part of the page: times, and where each way breaks even."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from foregate.report import numbers
from foregate.report.figures import BASELINE, COLOURS, DASHES, MARKERS, Data, Figure, axes, choices
from foregate.report.section import Section
from foregate.report.sortable import Heading, Line, cell, sortable
from foregate.report.transfer import Moved, Transfer

HEADINGS = (
    Heading("size of one", lower=True),
    Heading("experts", lower=True),
    Heading("p50", lower=True),
    Heading("p95", lower=True),
    Heading("p99", lower=True),
    Heading("rate"),
    Heading("runs"),
    Heading("experts computed meanwhile", lower=True),
)


def transfer_section(found: Transfer, number: int) -> Section:
    """`number` tells these figures from others'."""
    machine = found.machine
    about = (
        f"Measured on {machine.get('cpu') or 'an unknown processor'}, GPU: {machine.get('gpu') or 'none'}; disk "
        f"{machine.get('disk') or 'unknown'}, past the page cache: {'yes' if machine.get('direct') else 'no'}; others "
        f"kept {machine.get('foreign_load', 'unknown')} cores busy. Ways took turns, {found.rounds} "
        f"round{'s' if found.rounds > 1 else ''}; experts are bf16, one token each. A way breaks even where as many "
        "experts compute meanwhile as the last column says. Select a heading to sort."
    )
    return Section(
        name=f"transfer-{number}",
        title="Moving experts beside computing them",
        body=f'<p class="soft">{escape(about)}</p>{_table(found)}',
        figures=(_times(found, number), _break_even(found, number)),
    )


def _table(found: Transfer) -> str:
    rows = sorted(found.rows, key=lambda r: (r.expert_bytes, found.ways.index(r.way), r.experts))
    lines = [
        Line(
            row.way,
            (
                cell(numbers.size, row.expert_bytes),
                cell(str, row.experts),
                *(cell(numbers.seconds, t) for t in (row.p50, row.p95, row.p99)),
                cell("{:.2f} GB/s".format, row.gb_s),
                cell(str, row.count),
                cell("{:.1f}".format, row.break_even),
            ),
        )
        for row in rows
    ]
    return sortable("Experts moved together (measured)", "way", HEADINGS, lines)


def _times(found: Transfer, number: int) -> Figure:
    """p50 by number of experts, whiskers to p99."""

    def drawn(size: int) -> Data:
        lines = [
            {
                **_look(way, place),
                "x": [r.experts for r in found.of(way, size)],
                "y": [numbers.ms(r.p50) for r in found.of(way, size)],
                "customdata": [[numbers.ms(r.p95), numbers.ms(r.p99)] for r in found.of(way, size)],
                "error_y": {
                    "type": "data",
                    "symmetric": False,
                    "array": [numbers.ms(r.p99 - r.p50) for r in found.of(way, size)],
                    "arrayminus": [0 for _ in found.of(way, size)],
                    "color": COLOURS[place % len(COLOURS)],
                    "thickness": 1,
                    "width": 4,
                },
                "hovertemplate": "%{x} experts: p50 %{y:.4~g} ms, p95 %{customdata[0]:.4~g}, p99 %{customdata[1]:.4~g}"
                "<extra>%{fullData.name}</extra>",
            }
            for place, way in enumerate(found.ways)
        ]
        counts = sorted({r.experts for r in found.rows if r.expert_bytes == size})
        each = next(r.compute_p50 for r in found.rows if r.expert_bytes == size)
        work = {**_look("computing as many", 0), "x": counts, "y": [numbers.ms(n * each) for n in counts]}
        return [
            *lines,
            {**work, "line": {"color": BASELINE, "width": 3}, "marker": {"symbol": "circle-open", "size": 8}},
        ]

    return _figure(
        found,
        f"transfer-times-{number}",
        title="How long experts take to come",
        caption="Median time until the last of so many experts is there; whiskers reach to the 99th percentile. Grey: "
        "one token computed through as many experts. A way above the grey line is waited for. Measured.",
        drawn=drawn,
        told=lambda rows: "; ".join(
            f"{r.way}, {r.experts}: {' / '.join(f'{1e3 * t:.3g}' for t in (r.p50, r.p95, r.p99))}" for r in rows
        ),
        prefix="milliseconds at p50, p95 and p99 by way and number of experts: ",
        layout=axes("experts moved together", "milliseconds", ticks=_counts(found)),
    )


def _break_even(found: Transfer, number: int) -> Figure:
    """Experts computed meanwhile, for each one moved."""

    def drawn(size: int) -> Data:
        return [
            {
                **_look(way, place),
                "x": [r.experts for r in found.of(way, size)],
                "y": [float(f"{r.break_even / r.experts:.4g}") for r in found.of(way, size)],
                "hovertemplate": "%{x} moved: %{y:.3~g} computed for each<extra>%{fullData.name}</extra>",
            }
            for place, way in enumerate(found.ways)
        ]

    layout = axes("experts moved together", "experts computed per expert moved", ticks=_counts(found))
    line = {
        "type": "line",
        "xref": "paper",
        "x0": 0,
        "x1": 1,
        "y0": 1,
        "y1": 1,
        "line": {"color": BASELINE, "dash": "dot"},
    }
    return _figure(
        found,
        f"transfer-even-{number}",
        title="Break-even against compute",
        caption="How many experts one token computes in the time that one is moved. Above the dotted line (1) moving "
        "is slower than computing, and no prefetch hides all of it. Derived from measured medians.",
        drawn=drawn,
        told=lambda rows: "; ".join(f"{r.way}, {r.experts}: {r.break_even / r.experts:.3g}" for r in rows),
        prefix="experts computed per expert moved, by way and number moved: ",
        layout={**layout, "shapes": [line]},
    )


def _figure(
    found: Transfer,
    name: str,
    *,
    title: str,
    caption: str,
    drawn: Callable[[int], Data],
    told: Callable[[Sequence[Moved]], str],
    prefix: str,
    layout: dict[str, Any],
) -> Figure:
    """With a view for each size of experts."""
    labels = {f"experts of {numbers.size(size)}": size for size in found.sizes}
    views = {label: drawn(size) for label, size in labels.items()}
    texts = {
        label: f"With {label}, {prefix}{told([r for r in found.rows if r.expert_bytes == size])}."
        for label, size in labels.items()
    }
    return Figure(
        name=name,
        title=title,
        caption=caption,
        layout=layout,
        **choices("Size", views, texts, follows=f"transfer-size-{name.rpartition('-')[2]}", single=False),
    )


def _counts(found: Transfer) -> list[int]:
    return sorted({row.experts for row in found.rows})


def _look(way: str, place: int) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": way,
        "line": {"color": COLOURS[place % len(COLOURS)], "width": 2, "dash": DASHES[place % len(DASHES)]},
        "marker": {"symbol": MARKERS[place % len(MARKERS)], "size": 8},
    }
