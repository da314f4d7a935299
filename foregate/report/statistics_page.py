"""One page of what the original project drew of a trace, as `foregate statistics --figures` writes it."""

from collections.abc import Sequence
from pathlib import Path

from foregate.description import describe
from foregate.moments import moments_of
from foregate.report import expert_pairs, statistics_figures
from foregate.report.export import write_data, write_pictures
from foregate.report.page import build_page, commands_section
from foregate.report.section import Section
from foregate.report.sortable import EMPTY, Cell, Heading, Line, sortable
from foregate.traces.schema import Trace
from foregate.traces.storage import replacing
from foregate.usage import Usage, usage_of

PAGE = "expert_statistics.html"
FIGURES = "figures"
ROOM = 1_500_000  # bytes of transition matrices
SHOWN = {
    "mean": "mean",
    "std": "std",
    "coefficient_of_variation": "std / mean",
    "entropy_bits": "bits",
    "min_usage": "least",
    "q25": "q25",
    "median": "median",
    "q75": "q75",
    "max_usage": "most",
    "skewness": "skewness",
    "kurtosis": "kurtosis",
    "zero_usage_experts": "unused",
}
"""Moment -> its column."""


def write_page(trace: Trace, samples: int, folder: Path, *, commands: Sequence[str]) -> list[Path]:
    """The page in a folder, and its figures as CSV, SVG and PNG in another inside it.

    Raises: ExtraError where plotly or, for the pictures alone, a browser is missing; StorageError.
    """
    sections = statistics_sections(trace, samples)
    spec = trace.spec
    text = (
        f"{len(trace):,} tokens of {len(trace.prompts):,} prompts through {spec.num_layers} mixture layers of "
        f"{spec.num_experts} experts, {spec.top_k} a token ({spec.stack})."
    )
    page = build_page(
        [*sections, *commands_section(commands)], title=f"Expert statistics of {spec.model}", summary=[text]
    )
    with replacing(folder / PAGE) as temporary:
        temporary.write_text(page, encoding="utf-8")
    figures = [figure for section in sections for figure in section.figures]
    data = write_data(figures, folder / FIGURES)
    return [folder / PAGE, *data, *write_pictures(figures, folder / FIGURES)]


def statistics_sections(trace: Trace, samples: int) -> list[Section]:
    """Use, what takes order (transitions, sequences, use over time), and the moments."""
    usage = usage_of(trace)
    counted = (statistics_figures.use(usage, "use"), statistics_figures.comparison(usage, "comparison"))
    ordered = [
        statistics_figures.sequences(trace, samples, "sequences"),
        statistics_figures.over_time(trace, "over-time"),
    ]
    if trace.spec.num_layers > 1:
        ordered.append(expert_pairs.transition(describe(trace), "transition", ROOM))
    return [
        Section("counts", "How often experts are used", "", counted),
        Section("order", "In which order", "", tuple(ordered)),
        Section("moments", "Moments of each layer", _moments_table(usage)),
    ]


def _moments_table(usage: Usage) -> str:
    """What of `layer_statistics` does not follow from the rest, a row a layer."""
    lines = [
        Line(str(layer), tuple(_cell(getattr(moments_of(counts), name)) for name in SHOWN))
        for layer, counts in zip(usage.layer_ids, usage.counts, strict=True)
    ]
    caption = f"Uses of an expert, over the {usage.num_experts} experts of a layer (derived)"
    return sortable(caption, "layer", [Heading(text) for text in SHOWN.values()], lines)


def _cell(value: float | None) -> Cell:
    if value is None:
        return EMPTY
    return Cell(f"{value:,}" if isinstance(value, int) else f"{value:,.2f}", value)
