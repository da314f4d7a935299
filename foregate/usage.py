"""How often each expert was used, and nothing else: no order, no tokens, no weights. Popularity, as a value."""

from dataclasses import asdict, dataclass
from typing import Any, final

import numpy as np

from foregate.arrays import Float64, Int64
from foregate.moments import moments_of
from foregate.traces.schema import Trace

WITHOUT_ORDER = "counts hold no order and no tokens: it takes a trace"
"""Why nothing can be said of reuse, caches as they ran, transitions, prompts, phases or weights."""


@final
@dataclass(frozen=True, eq=False)
class Usage:
    """Counts of one stack of mixture layers.

    layer_ids  the model's own number of each mixture layer
    counts     [L, E] uses of each expert
    source     where they are from
    """

    layer_ids: tuple[int, ...]
    counts: Int64
    source: str

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.counts)

    @property
    def num_experts(self) -> int:
        """E."""
        return len(self.counts[0])

    @property
    def shares(self) -> Float64:
        """[L, E] of the layer's uses; 0 in a layer without any."""
        shares: Float64 = self.counts / np.maximum(self.counts.sum(axis=1, keepdims=True), 1)
        return shares

    @property
    def entropy(self) -> Float64:
        """[L] bits of the layer's shares."""
        return load_entropy(self.counts)

    @property
    def entropy_share(self) -> Float64:
        """[L] entropy as a share of the most there could be, log2(E)."""
        share: Float64 = self.entropy / max(np.log2(self.num_experts), 1e-12)
        return share

    @property
    def imbalance(self) -> Float64:
        """[L] uses of the layer's most used expert over those of an even load."""
        worst: Float64 = self.shares.max(axis=1) * self.num_experts
        return worst

    def never_used(self, layer: int) -> list[int]:
        """Experts of a layer that no token used."""
        return [int(e) for e in np.flatnonzero(self.counts[layer] == 0)]

    def top_experts(self, layer: int, most: int) -> list[tuple[int, float]]:
        """The most used experts of a layer, with their share of its uses."""
        shares = self.shares[layer]
        return [(int(e), float(shares[e])) for e in np.argsort(-shares, kind="stable")[:most] if shares[e] > 0]

    def to_json(self) -> dict[str, Any]:
        """What is known, as plain JSON values; what is not is null, with the reason."""
        return {
            "source": self.source,
            "how": "derived from counts of uses alone",
            "unknown": WITHOUT_ORDER,
            **dict.fromkeys(("tokens", "prompts", "phases", "duplicates", "has_weights", "neighbours")),
            "layers": [self._layer(layer) for layer in range(self.num_layers)],
        }

    def _layer(self, layer: int) -> dict[str, Any]:
        return {
            "layer": layer,
            "model_layer": self.layer_ids[layer],
            "counts": self.counts[layer].tolist(),
            "entropy_bits": float(self.entropy[layer]),
            "entropy_share": float(self.entropy_share[layer]),
            "imbalance": float(self.imbalance[layer]),
            "never_used": self.never_used(layer),
            "moments": asdict(moments_of(self.counts[layer])),
            **dict.fromkeys(("reuse_histogram", "median_reuse_distance", "lru_hit_rate")),
        }


def usage_of(trace: Trace) -> Usage:
    """The counts of a trace: every routed expert of every token once; absent experts count for nothing."""
    return Usage(trace.spec.layer_ids, expert_counts(trace), trace.spec.model)


def expert_counts(trace: Trace) -> Int64:
    """[L, E] how many tokens used each expert."""
    experts = trace.experts
    counts = [np.bincount(layer[layer >= 0], minlength=trace.spec.num_experts) for layer in experts.swapaxes(0, 1)]
    return np.stack(counts).astype(np.int64)


def load_entropy(counts: Int64) -> Float64:
    """[L] bits of the distribution of a layer's uses over its experts; 0 for a layer without any."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    bits: Float64 = -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    return np.abs(bits)  # -0.0 reads badly
