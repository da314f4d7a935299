"""What a trace holds and what its routing looks like: facts and statistics as one frozen value. No predictor.

Everything here is derived from the trace by counting; where the trace itself comes from, `provenance` says.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foregate.arrays import Float64, Int64
from foregate.cooccurrence import chance_information, mutual_information, transitions
from foregate.reuse import hit_rates, median_distance, reuse_histogram
from foregate.spec import MoESpec
from foregate.splits import duplicate_prompts
from foregate.traces.schema import Provenance, Trace
from foregate.usage import Usage, expert_counts, load_entropy

DEFINITIONS = {
    "counts": "tokens of the layer that used the expert",
    "entropy_bits": "entropy of the layer's share of uses per expert; log2(E) if all experts are used alike",
    "transitions": "tokens that used expert a at one mixture layer and expert b at the next",
    "mutual_information_bits": "plug-in estimate over (expert, next layer's expert) pairs of one token",
    "chance_bits": "the same estimate after shuffling the later layer's tokens: what is only the size of the sample",
    "reuse_histogram": "uses by how many other experts of the layer were used since the last use, in execution order "
    "(forward pass, sequence, position, order within the token); the last column counts first uses",
    "lru_hit_rate": "share of uses that an LRU with so many slots for the layer hits; starts empty, one use at a time",
    "incomplete_cells": "(token, layer) cells with fewer than k recorded experts",
    "duplicates": "prompts with the same token ids (or, where ids are unknown, the same routing) as an earlier one",
}


@dataclass(frozen=True)
class Dataset:
    """How much of a trace came from one data set."""

    name: str
    prompts: int
    tokens: int


@dataclass(frozen=True, eq=False)
class Description:
    """One trace, described.

    prefill, decode     tokens carried by each phase
    steps               forward passes
    incomplete_cells    of `cells` (token, layer) cells, those with fewer than k experts
    duplicates          (prompt, the earlier prompt it repeats), by index
    counts              [L, E] uses of each expert
    entropy             [L] bits of each layer's load
    transitions         [L-1, E, E] co-occurrence of neighbouring layers
    information         [L-1] bits of mutual information between neighbouring layers
    chance              [L-1] bits that a trace of this size shows for layers that know nothing of each other
    reuse               [L, E+1] uses by reuse distance; the last column counts first uses
    """

    spec: MoESpec
    provenance: Provenance
    tokens: int
    prompts: int
    datasets: tuple[Dataset, ...]
    prefill: int
    decode: int
    steps: int
    has_tokens: bool
    has_weights: bool
    cells: int
    incomplete_cells: int
    duplicates: tuple[tuple[int, int], ...]
    counts: Int64
    entropy: Float64
    transitions: Int64
    information: Float64
    chance: Float64
    reuse: Int64

    @property
    def usage(self) -> Usage:
        """The counts alone."""
        return Usage(self.spec.layer_ids, self.counts, self.spec.model)

    @property
    def entropy_share(self) -> Float64:
        """[L] entropy as a share of the most there could be, log2(E)."""
        return self.usage.entropy_share

    @property
    def slots(self) -> tuple[int, ...]:
        """Slots per layer to quote LRU hit rates for: k, 2k, a quarter and half of the experts."""
        k, experts = self.spec.top_k, self.spec.num_experts
        return tuple(sorted({c for c in (k, 2 * k, experts // 4, experts // 2) if 0 < c <= experts}))

    def hit_rates(self, slots: Sequence[int] | None = None) -> Float64:
        """[L, S] LRU hit rate for so many slots per layer (`self.slots` unless told)."""
        return hit_rates(self.reuse, self.slots if slots is None else slots)

    def never_used(self, layer: int) -> list[int]:
        """Experts of a layer that no token used."""
        return self.usage.never_used(layer)

    def top_experts(self, layer: int, most: int) -> list[tuple[int, float]]:
        """The most used experts of a layer, with their share of its uses."""
        return self.usage.top_experts(layer, most)

    def trust(self) -> str:
        """What the recording's self-check says, as a phrase."""
        check = self.provenance.self_check
        if check is None:
            return "self-check not checkable from this source"
        # Rounded down: 99.99 % must not read as 100 %.
        shown = f"self-check {np.floor(check * 1000) / 10:.1f} %"
        return shown if check >= 1 else f"{shown}: NOT fully trustworthy"

    @property
    def doubtful(self) -> bool:
        """Whether re-running the routers contradicted the recording."""
        check = self.provenance.self_check
        return check is not None and check < 1

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, matrices included."""
        return {
            "spec": self.spec.to_json(),
            "provenance": asdict(self.provenance),
            "trust": self.trust(),
            "how": "derived from the recorded routing",
            "definitions": DEFINITIONS,
            "tokens": self.tokens,
            "prompts": self.prompts,
            "datasets": [asdict(d) for d in self.datasets],
            "phases": {"prefill": self.prefill, "decode": self.decode},
            "steps": self.steps,
            "has_tokens": self.has_tokens,
            "has_weights": self.has_weights,
            "cells": self.cells,
            "incomplete_cells": self.incomplete_cells,
            "duplicates": [list(pair) for pair in self.duplicates],
            "layers": [self._layer(layer) for layer in range(self.spec.num_layers)],
            "neighbours": [self._neighbours(layer) for layer in range(self.spec.num_layers - 1)],
        }

    def _layer(self, layer: int) -> dict[str, Any]:
        median = float(median_distance(self.reuse)[layer])
        rates = self.hit_rates()[layer]
        return {
            "layer": layer,
            "model_layer": self.spec.layer_ids[layer],
            "counts": self.counts[layer].tolist(),
            "entropy_bits": float(self.entropy[layer]),
            "entropy_share": float(self.entropy_share[layer]),
            "never_used": self.never_used(layer),
            "reuse_histogram": self.reuse[layer].tolist(),
            "median_reuse_distance": None if np.isnan(median) else median,
            "lru_hit_rate": {str(c): float(r) for c, r in zip(self.slots, rates, strict=True)},
        }

    def _neighbours(self, layer: int) -> dict[str, Any]:
        return {
            "layer": layer,
            "next": layer + 1,
            "mutual_information_bits": float(self.information[layer]),
            "chance_bits": float(self.chance[layer]),
            "transitions": self.transitions[layer].tolist(),
        }


def describe(trace: Trace) -> Description:
    """Describe a trace; answers that a split withheld count like all others."""
    experts, spec = trace.experts, trace.spec
    counts = expert_counts(trace)
    pairs = transitions(experts, spec.num_experts)
    order = np.argsort(trace.step, kind="stable")
    prefill = int(trace.prefill.sum())
    return Description(
        spec=spec,
        provenance=trace.provenance,
        tokens=len(trace),
        prompts=len(trace.prompts),
        datasets=_datasets(trace),
        prefill=prefill,
        decode=len(trace) - prefill,
        steps=len(np.unique(trace.step)),
        has_tokens=trace.has_tokens,
        has_weights=trace.weights is not None,
        cells=experts.shape[0] * experts.shape[1],
        incomplete_cells=int((experts < 0).any(axis=2).sum()),
        duplicates=tuple(sorted(duplicate_prompts(trace).items())),
        counts=counts,
        entropy=load_entropy(counts),
        transitions=pairs,
        information=mutual_information(pairs),
        chance=chance_information(experts, spec.num_experts),
        reuse=reuse_histogram(experts[order], spec.num_experts),
    )


def _datasets(trace: Trace) -> tuple[Dataset, ...]:
    tokens = np.bincount(trace.sequence, minlength=len(trace.prompts))
    found: dict[str, list[int]] = {}
    for index, prompt in enumerate(trace.prompts):
        found.setdefault(prompt.dataset, []).append(index)
    return tuple(Dataset(name, len(rows), int(tokens[rows].sum())) for name, rows in found.items())
