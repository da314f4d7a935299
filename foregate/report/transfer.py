"""What benchmarks/memory_transfer.py wrote: experts moved, beside experts computed. Draws nothing, measures nothing."""

from dataclasses import dataclass
from typing import Any, final

from foregate.errors import SourceError
from foregate.report import decode


@final
@dataclass(frozen=True)
class Moved:
    """`experts` of `expert_bytes` moved one way together; seconds until the last is there.

    compute_p50  seconds of one token through one such expert
    break_even   experts that one token computes in the p50
    """

    way: str
    expert_bytes: int
    experts: int
    p50: float
    p95: float
    p99: float
    count: int
    gb_s: float
    compute_p50: float
    break_even: float


@final
@dataclass(frozen=True)
class Transfer:
    """One run of the benchmark."""

    rows: tuple[Moved, ...]
    rounds: int
    machine: dict[str, Any]

    @property
    def sizes(self) -> list[int]:
        """Bytes of an expert, ascending."""
        return sorted({row.expert_bytes for row in self.rows})

    def of(self, way: str, size: int) -> list[Moved]:
        """By number of experts."""
        found = [row for row in self.rows if (row.way, row.expert_bytes) == (way, size)]
        return sorted(found, key=lambda row: row.experts)

    @property
    def ways(self) -> list[str]:
        """In the order of the rows."""
        return list(dict.fromkeys(row.way for row in self.rows))


def transfer(values: Any, source: str) -> Transfer:
    """The object of `memory_transfer.py --json`. Raises: SourceError that names the field."""
    found = decode.record(Transfer, values, source)
    assert isinstance(found, Transfer)
    if not found.rows or any(row.p50 <= 0 or row.experts < 1 for row in found.rows):
        raise SourceError(f"{source} holds no times above zero; run benchmarks/memory_transfer.py anew with --json")
    return found
