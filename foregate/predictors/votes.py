"""Which answers followed a context, in the order they were first seen: what a majority vote with "ties to the first
seen" needs. Counting only; what a context means is its owner's business.
"""

from dataclasses import dataclass

import numpy as np

from foregate.arrays import Int, Int64


@dataclass(frozen=True, eq=False)
class Votes:
    """Context `keys[i]` was followed by `answers[s]` `counts[s]` times, for s in starts[i]..starts[i + 1].

    keys [C] sorted, starts [C + 1], answers [S] in first-seen order, counts [S], first [S] row of each's first
    """

    keys: Int64
    starts: Int64
    answers: Int64
    counts: Int64
    first: Int64

    @classmethod
    def count(cls, contexts: Int64, answers: Int, num_experts: int) -> "Votes":
        """Count contexts [N] and their answers [N] in 0..num_experts-1; rows with -1 on either side are left out.

        Contexts are below 2**63 / num_experts.
        """
        rows = np.flatnonzero((contexts >= 0) & (answers >= 0))
        pairs = contexts[rows] * num_experts + answers[rows]
        pairs, first, counts = np.unique(pairs, return_index=True, return_counts=True)
        owners = pairs // num_experts
        order = np.lexsort((first, owners))
        keys, starts = np.unique(owners, return_index=True)
        return cls(
            keys=keys,
            starts=np.append(starts, len(pairs)).astype(np.int64),
            answers=(pairs % num_experts)[order],
            counts=counts[order].astype(np.int64),
            first=rows[first[order]].astype(np.int64),
        )

    def sizes(self) -> Int64:
        """[C] how many different answers each context has."""
        return np.diff(self.starts)

    def totals(self) -> Int64:
        """[C] how many votes each context has."""
        return np.diff(np.append(0, np.cumsum(self.counts))[self.starts])

    def winners(self) -> Int64:
        """[C] the answer with most votes; of equals, the first seen."""
        if len(self.keys) == 0:
            return np.empty(0, dtype=np.int64)
        most = np.repeat(np.maximum.reduceat(self.counts, self.starts[:-1]), self.sizes())
        place = np.flatnonzero(self.counts == most)
        _, leaders = np.unique(np.searchsorted(self.starts, place, side="right"), return_index=True)
        return self.answers[place[leaders]]

    def places(self) -> Int64:
        """[S] the place of each answer in its context's first-seen order, from 0."""
        return np.arange(len(self.answers)) - np.repeat(self.starts[:-1], self.sizes())
