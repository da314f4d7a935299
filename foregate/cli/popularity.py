"""`describe` and `simulate` of a file of counts: what popularity alone says, and what it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.table import Table

    from foregate.hardware.profile import Profile
    from foregate.simulation.popularity import Expected, Machine
    from foregate.simulation.shapes import ModelShape
    from foregate.usage import Usage


def describe_counts(path: Path, json: Path | None) -> None:
    """`foregate describe` of a file of counts."""
    from foregate.cli.terminal import alone, write_json
    from foregate.usagefiles import read_counts

    usage = read_counts(path)
    if not alone(json):
        show(usage)
    if json is not None:
        write_json(json, usage.to_json())


def show(usage: Usage, console: Console | None = None) -> None:
    """Print the facts, the loads, and what counts say nothing of."""
    from rich.console import Console

    from foregate.cli.describe import loads, loads_explained
    from foregate.cli.terminal import facts_table, say
    from foregate.usage import WITHOUT_ORDER

    console = console or Console()
    totals = sorted({int(n) for n in usage.counts.sum(axis=1)})
    uses = f"{totals[0]:,}" if len(totals) == 1 else f"{totals[0]:,} to {totals[-1]:,}"
    worst = usage.imbalance
    facts = (
        ("source", f"{usage.source}: counts of uses, not a trace"),
        ("routing", f"{usage.num_layers} mixture layers of {usage.num_experts} experts; experts a token -"),
        ("model's layers", ", ".join(map(str, usage.layer_ids))),
        ("uses", f"{uses} in each layer"),
        ("imbalance", f"a layer's most used expert has {worst.min():.1f} to {worst.max():.1f} times the even load"),
        ("tokens, prompts", f"- ({WITHOUT_ORDER})"),
        ("reuse, LRU hits", f"- ({WITHOUT_ORDER})"),
        ("next layer's bits", f"- ({WITHOUT_ORDER})"),
    )
    console.print(facts_table(facts))
    console.print(loads(usage, usage.layer_ids))
    say(f"{loads_explained(usage.num_experts)} All derived from the counts alone.", console=console)


@dataclass(frozen=True)
class Asked:
    """What was typed at `simulate`.

    refused  options that need a trace -> whether they were given
    """

    counts: Path
    profile: str
    model: str | None
    memories: Sequence[str]
    host_memory: str | None
    refused: dict[str, bool]


def estimate(asked: Asked, json: Path | None) -> None:
    """`foregate simulate` of a file of counts: nothing is run. Raises: ChoiceError for what takes a trace."""
    from rich.console import Console

    from foregate.cli.terminal import alone, say, write_json
    from foregate.errors import ChoiceError
    from foregate.simulation.popularity import HOW, expected
    from foregate.simulation.profiles import find_profile
    from foregate.usagefiles import read_counts

    if given := [name for name, there in asked.refused.items() if there]:
        raise ChoiceError(f"{asked.counts} holds counts without order; {given[0]} takes a trace, record or import one")
    usage = read_counts(asked.counts)
    profile = find_profile(asked.profile)
    shape = None if asked.model is None else _shape(asked.model, usage)
    machine = None if shape is None else _machine(shape, profile, asked.host_memory)
    top_k = 1 if shape is None else shape.top_k
    slots = {text: _slots(text, usage, shape) for text in asked.memories}
    rows = expected(usage, top_k, slots, machine)
    facts = _facts(usage, top_k, profile, machine)
    if json is not None:
        write_json(json, _found(asked, rows, facts, machine))
    if not alone(json):
        console = Console()
        console.print(HOW.capitalize(), style="bold", highlight=False)
        for memory in slots:
            console.print(_table([r for r in rows if r.memory == memory]))
        say(*facts, console=console)


def _shape(model: str, usage: Usage) -> ModelShape:
    """The model's, if it is of as many layers and experts. Raises: ChoiceError."""
    from foregate.errors import ChoiceError
    from foregate.simulation.shapes import MODELS, of_config

    shape = MODELS[model] if model in MODELS else of_config(model)
    if (shape.layers, shape.experts) != usage.counts.shape:
        raise ChoiceError(
            f"{usage.source} counts {usage.num_layers} layers of {usage.num_experts} experts, {shape.name} has "
            f"{shape.layers} of {shape.experts}; name the model that was counted"
        )
    return shape


def _machine(shape: ModelShape, profile: Profile, host_memory: str | None) -> Machine:
    from foregate.errors import ChoiceError
    from foregate.simulation.popularity import Machine

    if host_memory not in (None, "all", "none"):
        raise ChoiceError(f"--host-memory {host_memory} takes a trace; with counts it is all or none")
    in_host = profile.has_device if host_memory is None else host_memory == "all"
    return Machine(shape, profile, in_host)


def _slots(memory: str, usage: Usage, shape: ModelShape | None) -> int:
    """Slots in a share of the experts, or, of a known model, in a size. Raises: ChoiceError."""
    from foregate.cli.staging import slots_of
    from foregate.errors import ChoiceError
    from foregate.sizes import parse_size

    if shape is not None:
        return slots_of(memory, shape)
    percent = parse_size(memory).percent
    if percent is None:
        raise ChoiceError(f"--memory {memory} in bytes needs --model, for counts do not say how large an expert is")
    slots = int(percent * usage.counts.size / 100 + 1e-9)
    if slots < 2:
        raise ChoiceError(f"{memory} of {usage.counts.size} experts are {slots} slots; give a share of 2 or more")
    return slots


def _table(rows: Sequence[Expected]) -> Table:
    """The caches of one memory."""
    from rich.table import Table

    from foregate.cli.simulate import number
    from foregate.cli.terminal import STYLE, file_size

    first = rows[0]
    held = "" if first.bytes is None else f", {file_size(first.bytes)} of experts"
    title = f"{first.memory}: {first.slots} slots{held}"
    made = Table(title=title, title_justify="left", **STYLE)
    made.add_column("cache", no_wrap=True)
    for heading in ("hits", "experts read", "read", "stall", "tok/s"):
        made.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        made.add_row(
            row.cache,
            f"{row.hit_rate:.1%}",
            f"{row.reads_per_token:.2f}",
            "-" if row.bytes_per_token is None else file_size(int(row.bytes_per_token)),
            "-" if row.stall_share is None else f"{row.stall_share:.0%}",
            "-" if row.tokens_per_second is None else number(row.tokens_per_second),
        )
    return made


def _facts(usage: Usage, top_k: int, profile: Profile, machine: Machine | None) -> list[str]:
    """What every number rests on, a sentence each."""
    from foregate.cli.staging import doubts
    from foregate.simulation.profiles import basis

    told = [
        f"Nothing was run: {usage.source} holds popularity only. Each token is taken to draw {top_k} expert"
        f"{'s' if top_k > 1 else ''} a layer by these shares, independent of the tokens and layers before; real "
        "routing has habits, which only a trace shows. Tokens come one by one, as in decoding, without prefetching, "
        "and the cache is full.",
        "static: the most used experts of all layers stay. lru: the longest unused one leaves (Che's approximation). "
        "experts read and read: per token.",
    ]
    if machine is None:
        return [
            *told,
            "read, stall, tok/s: - (counts do not say how large an expert is, or how many a token uses, here taken as "
            "1; name the --model that was counted).",
        ]
    place = "all experts in host memory" if machine.in_host else "all experts on disk"
    machine_told = f"Machine: {profile.name} ({basis(profile)}), {place}. Model: {machine.shape.source}."
    return [*told, f"{machine_told} No read is taken to hide behind computing.", *doubts(profile)]


def _found(asked: Asked, rows: Sequence[Expected], facts: Sequence[str], machine: Machine | None) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "counts": str(asked.counts),
        "how": rows[0].how,
        "profile": asked.profile,
        "model": None if machine is None else asdict(machine.shape),
        "facts": list(facts),
        "rows": [asdict(row) for row in rows],
    }
