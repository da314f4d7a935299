"""The shape of a model's mixture layers: what a trace, a predictor and a cache must agree on. No weights, no tokens."""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from foregate.errors import TraceError


class ExpertId(NamedTuple):
    """One expert: its layer counts mixture layers only, from 0."""

    layer: int
    expert: int


@dataclass(frozen=True)
class MoESpec:
    """One stack of mixture layers.

    model         name or path of the model
    stack         "decoder" or "encoder"
    layer_ids     the model's own number of each mixture layer
    num_experts   routed experts of a layer (the most that any layer has)
    top_k         routed experts of a token (the most that any layer routes to)
    expert_bytes  bytes of one expert, a number per layer; None where the source does not say
    """

    model: str
    stack: str
    layer_ids: tuple[int, ...]
    num_experts: int
    top_k: int
    expert_bytes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.stack not in ("decoder", "encoder"):
            raise TraceError(f"stack is {self.stack!r}; it must be decoder or encoder")
        if not self.layer_ids:
            raise TraceError(f"{self.model} has no mixture layers")
        if not 1 <= self.top_k <= self.num_experts:
            raise TraceError(f"top_k {self.top_k} does not fit {self.num_experts} experts")
        if self.expert_bytes is not None and len(self.expert_bytes) != len(self.layer_ids):
            raise TraceError(f"expert_bytes names {len(self.expert_bytes)} layers of {len(self.layer_ids)}")

    @property
    def num_layers(self) -> int:
        """How many mixture layers the stack has (L)."""
        return len(self.layer_ids)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "MoESpec":
        """The inverse of `to_json`."""
        sizes = values["expert_bytes"]
        return cls(
            model=values["model"],
            stack=values["stack"],
            layer_ids=tuple(values["layer_ids"]),
            num_experts=values["num_experts"],
            top_k=values["top_k"],
            expert_bytes=None if sizes is None else tuple(sizes),
        )
