"""`foregate describe`: a trace's facts and statistics as tables that fit 80 columns, or as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from foregate.description import Description
    from foregate.usage import Usage

SHADES = " .:-=+*#%@"  # legible without colour and in any font
WIDEST = 32  # cells of a load line; more experts share cells
LISTED = 8  # data sets, notes and duplicates to list; all are in the JSON


def command(
    trace: Annotated[
        Path,
        typer.Argument(help="A trace, the .partial folder of a stopped recording, or an expert_statistics_3d.json."),
    ],
    json: Annotated[
        Path | None, typer.Option(help="Write everything here, matrices included ('-' = standard output).")
    ] = None,
) -> None:
    """Say what a trace holds and what its routing looks like.

    Example: foregate describe trace.parquet --json description.json
    """
    from json import dumps

    from foregate.cli.terminal import alone, chatter, write_text
    from foregate.description import describe
    from foregate.traces.storage import read_trace
    from foregate.usagefiles import is_counts

    if is_counts(trace):
        from foregate.cli.popularity import describe_counts

        describe_counts(trace, json)
        return
    with chatter().status("describing"):
        described = describe(read_trace(trace, hidden=False))
    if not alone(json):
        show(described)
    if json is not None:
        write_text(json, dumps(described.to_json(), allow_nan=False) + "\n")


def show(described: Description, console: Console | None = None) -> None:
    """Print the tables."""
    from rich.console import Console

    from foregate.cli.terminal import facts_table, say
    from foregate.facts import facts

    console = console or Console()
    console.print(facts_table(facts(described)))
    if described.doubtful:
        console.print(f"! {described.trust()}: re-running the routers gives other experts", style="bold red")
    for note in described.provenance.notes[:LISTED]:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)
    _more(console, len(described.provenance.notes), "notes")
    console.print(loads(described, described.spec.layer_ids))
    console.print(_memory(described))
    say(_explanation(described), console=console)


def loads(described: Description | Usage, layer_ids: Sequence[int]) -> Table:
    """Who does a layer's work, a row a layer."""
    from rich.table import Table
    from rich.text import Text

    experts = described.counts.shape[1]
    per_cell = -(-experts // WIDEST)
    span = "one expert a sign" if per_cell == 1 else f"{per_cell} experts a sign"
    table = Table(title=f"Load of the experts, {span} (derived)", title_justify="left", box=None, padding=(0, 1))
    table.add_column("layer", justify="right")
    table.add_column("load", no_wrap=True)
    table.add_column("entropy", justify="right")
    table.add_column("share", justify="right")
    table.add_column("top experts")
    table.add_column("unused", justify="right")
    for layer, model_layer in enumerate(layer_ids):
        top = " ".join(f"{e}:{share:.0%}" for e, share in described.top_experts(layer, 2))
        table.add_row(
            str(model_layer),
            Text(_line(described, layer, per_cell), style="cyan"),
            f"{described.entropy[layer]:.2f}",
            f"{described.entropy_share[layer]:.1%}",
            top,
            str(len(described.never_used(layer)) or "-"),
        )
    return table


def _line(described: Description | Usage, layer: int, per_cell: int) -> str:
    """One sign for each group of experts: blank = unused, the darkest = three times the even share or more."""
    import numpy as np

    counts = described.counts[layer]
    groups = [counts[i : i + per_cell] for i in range(0, len(counts), per_cell)]
    even = max(counts.sum() / len(counts), 1e-12)
    relative = np.array([g.mean() / even for g in groups])
    signs = np.ceil(np.clip(relative / 3, 0, 1) * (len(SHADES) - 1)).astype(int)
    return "".join(SHADES[s] for s in signs)


def _memory(described: Description) -> Table:
    import numpy as np
    from rich.table import Table

    from foregate.reuse import median_distance

    table = Table(title="What a layer remembers (derived)", title_justify="left", box=None, padding=(0, 1))
    table.add_column("layer", justify="right")
    table.add_column("reuse\nmedian", justify="right")
    for slots in described.slots:
        table.add_column(f"LRU hit\n{slots} slots", justify="right")
    table.add_column("next layer\nbits", justify="right")
    table.add_column("by chance\nbits", justify="right")
    rates, medians = described.hit_rates(), median_distance(described.reuse)
    for layer, model_layer in enumerate(described.spec.layer_ids):
        last = layer == described.spec.num_layers - 1
        table.add_row(
            str(model_layer),
            "-" if np.isnan(medians[layer]) else f"{medians[layer]:g}",
            *(f"{rate:.1%}" for rate in rates[layer]),
            "-" if last else f"{described.information[layer]:.3f}",
            "-" if last else f"{described.chance[layer]:.3f}",
        )
    return table


def loads_explained(experts: int) -> str:
    """What `loads` shows of so many experts."""
    return (
        f"Load: '{SHADES[-1]}' is three times the even share or more, blank is unused. Entropy in bits, and as a share "
        f"of log2({experts})."
    )


def _explanation(described: Description) -> str:
    return (
        f"{loads_explained(described.spec.num_experts)} Reuse: how many other experts the layer used before one was "
        "used again, in execution order; an LRU with c slots for the layer hits the uses whose distance is below c. "
        "Next layer: mutual information between an expert and the next mixture layer's; by chance: the same with the "
        "tokens shuffled. All derived from the recorded routing."
    )


def _more(console: Console, found: int, what: str) -> None:
    if found > LISTED:
        console.print(f"... and {found - LISTED} more {what}; see --json", style="dim")
