"""What `foregate run --json` wrote, as frozen data that can be asked. Draws nothing."""

from dataclasses import dataclass
from typing import Any, final

from foregate.errors import SourceError
from foregate.report import decode
from foregate.report.names import short
from foregate.runtime.sizes import MemoryPlan
from foregate.runtime.telemetry import FIELDS


@final
@dataclass(frozen=True)
class Phase:
    """All prefills of a run, or all that was decoded.

    tokens_per_second  None where nothing ran; so are the shares, which are of the experts that were demanded
    resident_share     of those that were there already, not by a guess
    in_time_share      of those that were read ahead, and there
    stall              seconds waited for bytes
    """

    tokens: int
    seconds: float
    tokens_per_second: float | None
    demanded: int
    resident_share: float | None
    in_time_share: float | None
    bytes: int
    stall: float

    @property
    def stall_share(self) -> float | None:
        """Of the seconds."""
        return self.stall / self.seconds if self.seconds else None


@final
@dataclass(frozen=True)
class Ran:
    """One run.

    model, setting  what ran and how, empty where an older foregate did not say
    memory          None where nobody planned it
    by_layer        a field of the runtime's telemetry -> of each mixture layer, over the whole run
    cold_precision  share of the guesses read that were used before they left; None where nothing was guessed
    """

    prefill: Phase
    decode: Phase
    by_layer: dict[str, tuple[float, ...]]
    cold_precision: float | None
    memory: MemoryPlan | None
    model: str = ""
    setting: str = ""

    @property
    def name(self) -> str:
        """In words."""
        model = short(self.model) if self.model else "a model"
        if self.memory is None:
            return model
        return f"{model} with {self.memory.slots / self.memory.experts:.0%} of its experts in slots"

    @property
    def phases(self) -> dict[str, Phase]:
        """Those in which anything ran."""
        return {name: phase for name, phase in (("prefill", self.prefill), ("decode", self.decode)) if phase.demanded}

    @property
    def tokens(self) -> int:
        """Of both phases."""
        return self.prefill.tokens + self.decode.tokens

    @property
    def seconds(self) -> float:
        """Of both phases."""
        return self.prefill.seconds + self.decode.seconds

    def total(self, field: str) -> float:
        """Over all layers."""
        return sum(self.by_layer[field])

    def per_token(self, field: str) -> list[float]:
        """Of each layer."""
        return [value / self.tokens for value in self.by_layer[field]]


def ran(values: dict[str, Any], source: str) -> Ran:
    """The object of `run --json`; what else it holds, its text too, is not read. Raises: SourceError."""
    stats = values["stats"] if isinstance(values["stats"], dict) else {}
    flat = decode.known(Ran, {**values, **stats})
    parts = {"prefill": Phase, "decode": Phase, "memory": MemoryPlan}
    flat |= {name: decode.known(kind, flat[name]) for name, kind in parts.items() if name in flat}
    found = decode.record(Ran, flat, source)
    assert isinstance(found, Ran)
    lengths = {len(found.by_layer.get(name, ())) for name in FIELDS}
    if len(lengths) != 1 or not found.phases or found.tokens < 1:
        raise SourceError(f"{source} holds no run with all its layers' numbers; run foregate run --json anew")
    return found
