"""Counting "after this context, that expert": a sparse table over integer contexts. Shared by the lookup predictors."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Int, Int64


@dataclass(frozen=True, eq=False)
class CountTable:
    """Counts per context: context `keys[i]` saw `experts[s]` `counts[s]` times, for s in starts[i]..starts[i + 1].

    keys [C] sorted, starts [C + 1], experts [S], counts [S]
    """

    keys: Int64
    starts: Int64
    experts: Int
    counts: Float32

    @classmethod
    def count(cls, observations: Iterable[tuple[Int64, Int]], num_experts: int) -> "CountTable":
        """Count (contexts [N], answers [N, k]) pairs; -1 on either side is left out.

        The contexts of the observations must not overlap (each belongs to a layer, say).
        """
        found = [_pairs(contexts, answers, num_experts) for contexts, answers in observations]
        pairs = np.concatenate([p for p, _ in found]) if found else np.empty(0, dtype=np.int64)
        counts = np.concatenate([c for _, c in found]) if found else np.empty(0, dtype=np.int64)
        order = np.argsort(pairs, kind="stable")
        pairs, counts = pairs[order], counts[order]
        keys, starts = np.unique(pairs // num_experts, return_index=True)
        return cls(
            keys=keys,
            starts=np.append(starts, len(pairs)).astype(np.int64),
            experts=(pairs % num_experts).astype(np.min_scalar_type(num_experts)),
            counts=counts.astype(np.float32),
        )

    def find(self, contexts: Int64) -> Int64:
        """[N] places of the contexts in the table, -1 = never seen."""
        if len(self.keys) == 0:
            return np.full(len(contexts), -1, dtype=np.int64)
        place = np.minimum(np.searchsorted(self.keys, contexts), len(self.keys) - 1)
        return np.where(self.keys[place] == contexts, place, -1)

    def seen(self, contexts: Int64) -> Bool:
        """[N] whether the contexts were ever counted."""
        return self.find(contexts) >= 0

    def blend(self, contexts: Int64, prior: Float32, strength: float) -> Float32:
        """[N, E] (counts + strength * prior) / (total + strength), the prior alone where never seen."""
        scores: Float32 = np.ascontiguousarray(prior, dtype=np.float32).copy()
        _blend((self.starts, self.experts, self.counts), self.find(contexts), np.float32(strength), scores)
        return scores


def _pairs(contexts: Int64, answers: Int, num_experts: int) -> tuple[Int64, Int64]:
    usable = (answers >= 0) & (contexts >= 0)[:, None]
    joined = contexts[:, None].astype(np.int64) * num_experts + answers
    pairs, counts = np.unique(joined[usable], return_counts=True)
    return pairs, counts.astype(np.int64)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _blend(table: tuple[Int64, Int, Float32], places: Int64, strength: float, scores: Float32) -> None:
    starts, experts, counts = table
    for n in range(len(places)):
        if places[n] < 0:
            continue
        first, last = starts[places[n]], starts[places[n] + 1]
        total = np.float32(strength)
        for s in range(first, last):
            total += counts[s]
        for e in range(scores.shape[1]):
            scores[n, e] *= strength / total
        for s in range(first, last):
            scores[n, experts[s]] += counts[s] / total
