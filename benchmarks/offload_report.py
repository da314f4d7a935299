"""Tables of measured blocks, as Markdown: medians over rounds, ranges, ratios within rounds. Measures nothing."""

import statistics
from typing import Any

from offload_contestants import AUTO
from offload_measure import Block

HEAD = (
    "| contestant | tokens/s (low to high) | x lru | x Accelerate | MB a token | memory GB (limit) | rounds |",
    "|---|---|---|---|---|---|---|",
)
INSIDE = (
    "| contestant | experts missed | late | guessed | wasted | ms stalled | ms computing | ms predicting |",
    "|---|---|---|---|---|---|---|---|",
)


def tables(blocks: list[Block]) -> str:
    """A table for each budget, the fastest first."""
    lines = []
    for budget in sorted({block.budget for block in blocks if block.limit}):
        lines += ["", f"### {budget:.0%} of the experts", "", *HEAD]
        of_budget = [block for block in blocks if block.limit and block.budget == budget]
        names = sorted({b.contestant for b in of_budget}, key=lambda name: -_rate(of_budget, name))
        lines += [_line(of_budget, name) for name in names]
        ours = [name for name in names if any("missed" in b.counts for b in of_budget if b.contestant == name)]
        lines += ["", "A decoded token of foregate's, medians of rounds:", "", *INSIDE] if ours else []
        lines += [_inside([b for b in of_budget if b.contestant == name]) for name in ours]
    return "\n".join([*lines, *_resident(blocks), *_doubts(blocks)])


def load(blocks: list[Block]) -> str:
    """What else the machine did, in a sentence."""

    def spread(values: list[float]) -> str:
        return f"{statistics.median(values):.0%} ({min(values):.0%} to {max(values):.0%})"

    loads = [block.load for block in blocks]
    return (
        f"Of the machine's processor time other processes used {spread([b.foreign for b in blocks])} while a block ran,"
        f" and the host kept {spread([b.stolen for b in blocks])}; the load over a minute was"
        f" {statistics.median(loads):.1f} ({min(loads):.1f} to {max(loads):.1f})."
    )


def ratio(blocks: list[Block], name: str, against: str) -> tuple[float, float, float] | None:
    """Median, lowest and highest of the ratios of tokens a second, each of two blocks of one round; None: no round."""
    theirs = {block.round: block.rate for block in blocks if block.contestant == against}
    found = [b.rate / theirs[b.round] for b in blocks if b.contestant == name and b.round in theirs]
    return (statistics.median(found), min(found), max(found)) if found else None


def _line(blocks: list[Block], name: str) -> str:
    mine = [block for block in blocks if block.contestant == name]
    rates = [block.rate for block in mine]
    cells = [
        name,
        f"{statistics.median(rates):.2f} ({min(rates):.2f} to {max(rates):.2f})",
        _cell(ratio(blocks, name, "lru")),
        _cell(ratio(blocks, name, AUTO)),
        f"{statistics.median(b.bytes_per_token for b in mine) / 1e6:.0f}",
        f"{max(b.used for b in mine) / 1e9:.2f} ({max(b.limit for b in mine) / 1e9:.2f})",
        str(len(mine)),
    ]
    return f"| {' | '.join(cells)} |"


def _inside(mine: list[Block]) -> str:
    """What foregate counted."""

    def median(field: str) -> float:
        each: list[float] = [b.counts[field] / max(b.counts["passes"], 1) for b in mine]
        return statistics.median(each)

    cells = [f"{median(name):.2f}" for name in ("missed", "late", "guessed", "wasted")]
    cells += [f"{median(name) * 1e3:.0f}" for name in ("stall", "compute", "predictor")]
    return f"| {' | '.join([mine[0].contestant, *cells])} |"


def _cell(found: tuple[float, float, float] | None) -> str:
    return f"{found[0]:.2f} ({found[1]:.2f} to {found[2]:.2f})" if found else ""


def _rate(blocks: list[Block], name: str) -> float:
    return statistics.median(block.rate for block in blocks if block.contestant == name)


def _resident(blocks: list[Block]) -> list[str]:
    whole = [block for block in blocks if not block.limit]
    names = list(dict.fromkeys(block.contestant for block in whole))
    if len(names) < 2:
        return []
    lines = [
        "",
        "### Everything resident",
        "",
        "| | ms a token (low to high) | MB a token | blocks |",
        "|---|---|---|---|",
    ]
    for name in sorted(names, reverse=True):
        mine = [block for block in whole if block.contestant == name]
        times = [statistics.median(block.seconds) * 1e3 for block in mine]
        read = statistics.median(block.bytes_per_token for block in mine) / 1e6
        spread = f"{statistics.median(times):.1f} ({min(times):.1f} to {max(times):.1f})"
        lines.append(f"| {name} | {spread} | {read:.0f} | {len(mine)} |")
    plain = {b.round: statistics.median(b.seconds) for b in whole if b.contestant.startswith("transformers")}
    more = [
        statistics.median(b.seconds) / plain[b.round] - 1
        for b in whole
        if not b.contestant.startswith("transformers") and b.round in plain
    ]
    lines += [
        "",
        f"foregate took {statistics.median(more):+.1%} ({min(more):+.1%} to {max(more):+.1%}) against plain"
        " transformers' time a token, in pairs of blocks one right after the other in one process.",
    ]
    return lines


def _doubts(blocks: list[Block]) -> list[str]:
    """Who wrote something else than the 16-bit experts do."""
    lines = []
    for number in sorted({block.round for block in blocks if block.limit}):
        mine = [block for block in blocks if block.limit and block.round == number]
        first = next((block for block in mine if block.contestant == "lru"), mine[0])
        others = sorted({block.contestant for block in mine if block.ids != first.ids})
        if others:
            lines += ["", f"Prompt {number}: other tokens than {first.contestant} wrote {', '.join(others)}."]
    return lines


def block_of(row: dict[str, Any]) -> Block:
    """From a row of `Block.row`, as JSON gives it back."""
    fields = {name: row[name] for name in Block.__dataclass_fields__}
    return Block(**fields | {"seconds": tuple(row["seconds"]), "ids": tuple(row["ids"])})
