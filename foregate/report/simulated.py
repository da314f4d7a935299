"""What `foregate simulate --json` wrote, as frozen data that can be asked. Draws nothing."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

from foregate.errors import SourceError
from foregate.report import decode
from foregate.simulation.rows import Row
from foregate.simulation.shapes import ModelShape
from foregate.simulation.strategies import Strategy

FLOOR = "on-demand"
"""LRU, nothing read ahead: what any other strategy must beat."""


@final
@dataclass(frozen=True)
class Simulated:
    """One comparison: one trace on one machine, several strategies, memories and batches.

    basis  measured or datasheet, of the machine's numbers
    facts  what every number rests on, a sentence each
    """

    trace: str
    profile: str
    basis: str
    model: ModelShape
    replay: str
    split: str
    leaks: bool
    seed: int
    facts: tuple[str, ...]
    strategies: dict[str, Strategy]
    left_out: dict[str, str]
    rows: tuple[Row, ...]

    @cached_property
    def memories(self) -> list[str]:
        """As they were asked for, the smallest first."""
        return list(dict.fromkeys(r.memory for r in sorted(self.rows, key=lambda r: r.slots)))

    @cached_property
    def batches(self) -> list[int | None]:
        """Sequences at a time; None: as recorded."""
        return list(dict.fromkeys(r.batch for r in sorted(self.rows, key=lambda r: r.batch or 0)))

    @cached_property
    def names(self) -> list[str]:
        """Strategies that were run: those that can be run by their mean speed relative to the floor's, the best first;
        then the floor, then bounds, which know the future.
        """
        found = dict.fromkeys(r.strategy for r in self.rows)
        bounds = {r.strategy for r in self.rows if r.knows_future}
        return sorted(found, key=lambda n: (n in bounds, n == FLOOR, -self._gain(n)))

    def at(self, memory: str, batch: int | None) -> list[Row]:
        """The rows of one budget, in the order of `names`."""
        found = [self.find(name, memory, batch) for name in self.names]
        return [row for row in found if row is not None]

    def find(self, strategy: str, memory: str, batch: int | None) -> Row | None:
        """One row."""
        return self._index.get((strategy, memory, batch))

    def share(self, row: Row) -> float:
        """Of all experts, how many its slots hold."""
        return row.slots / self.model.all_experts

    @property
    def middle(self) -> str:
        """The memory in the middle of the sweep."""
        return self.memories[(len(self.memories) - 1) // 2]

    def best(self, memory: str, batch: int | None) -> Row | None:
        """The fastest of those that can be run; None where only bounds were."""
        able = [row for row in self.at(memory, batch) if not row.knows_future]
        return max(able, key=lambda row: row.tokens_per_second, default=None)

    @cached_property
    def _index(self) -> dict[tuple[str, str, int | None], Row]:
        return {(r.strategy, r.memory, r.batch): r for r in self.rows}

    def _gain(self, name: str) -> float:
        """Mean over memories and batches of the speed as a share of the best of all rows there."""
        gains = [
            row.tokens_per_second / max(r.tokens_per_second for r in self.rows if _together(r, row))
            for row in self.rows
            if row.strategy == name
        ]
        return sum(gains) / len(gains)


def simulated(values: Any, source: str) -> Simulated:
    """The object of `simulate --json`. Raises: SourceError that names the field."""
    found = decode.record(Simulated, values, source)
    assert isinstance(found, Simulated)
    if not found.rows:
        raise SourceError(f"{source} holds no rows; nothing was simulated")
    return found


def _together(one: Row, other: Row) -> bool:
    return (one.memory, one.batch) == (other.memory, other.batch)
