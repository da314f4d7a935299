"""What benchmarks/sim_vs_run.py wrote: tokens a second of the same routing, measured and simulated. Draws nothing."""

import statistics
from dataclasses import dataclass
from typing import Any, final

from foregate.errors import SourceError
from foregate.report import decode

CLOSE = 0.10
"""The share that a simulation may be off by and still be called right."""


@final
@dataclass(frozen=True)
class Case:
    """One way to run: eviction, prefetch policy, share of the experts that slots hold.

    measured, simulated  tokens a second: medians over prompts
    error                simulated / measured - 1, the median over prompts; errors: of each prompt
    load                 of the machine meanwhile
    """

    evict: str
    policy: str
    budget: float
    measured: float
    simulated: float
    error: float
    errors: tuple[float, ...]
    load: float

    @property
    def name(self) -> str:
        """In words."""
        ahead = "" if self.policy == "none" else f" + {self.policy}"
        return f"{self.evict}{ahead}, {self.budget:.0%}"


@final
@dataclass(frozen=True)
class Validation:
    """All cases of one run of the benchmark, and what it ran on."""

    rows: tuple[Case, ...]
    machine: dict[str, Any]
    command: dict[str, Any]

    @property
    def median(self) -> float:
        """Of the errors' sizes."""
        return statistics.median(abs(case.error) for case in self.rows)

    @property
    def close(self) -> int:
        """Cases whose error is at most CLOSE."""
        return sum(abs(case.error) <= CLOSE for case in self.rows)


def validation(values: Any, source: str) -> Validation:
    """The object of `sim_vs_run.py --json`; what else it holds is not read.

    Raises: SourceError that names the field.
    """
    if not isinstance(values, dict) or not isinstance(values.get("rows"), list) or not values["rows"]:
        raise SourceError(f"{source} holds no rows of benchmarks/sim_vs_run.py; run it with --json")
    rows = [decode.known(Case, row) for row in values["rows"]]
    kept = {"machine": {}, "command": {}, **decode.known(Validation, values), "rows": rows}
    found = decode.record(Validation, kept, source)
    assert isinstance(found, Validation)
    for i, case in enumerate(found.rows):
        if case.measured <= 0 or case.simulated <= 0:
            raise SourceError(f"{source}: rows[{i}] has no speed above zero; run the benchmark anew")
    return found
