"""The uses of one layer's experts as a few numbers, by the definitions of the original project's files. No file here.

What the definitions are was found out from the published files: `docs/statistics.md` says how, and how surely.
"""

import math
from dataclasses import dataclass, fields
from typing import final

import numpy as np

from foregate.arrays import Int64

TOP = 5


@final
@dataclass(frozen=True)
class Moments:
    """The 16 numbers of a layer, in the files' order, over all E experts, unused ones too.

    std           of the population: squares are divided by E
    entropy_bits  of the shares of uses, base 2
    skewness      third central moment over std cubed, not corrected for E; None where all experts are used alike
    kurtosis      fourth central moment over std to the fourth, less 3, not corrected; None as for the skewness
    q25, q75      between neighbouring values by straight lines (numpy's "linear")
    iqr           q75 - q25

    coefficient_of_variation  std / mean; None where nothing was used
    expert_diversity          share of the experts that were used at all
    """

    mean: float
    std: float
    coefficient_of_variation: float | None
    entropy_bits: float
    min_usage: int
    max_usage: int
    skewness: float | None
    kurtosis: float | None
    median: float
    q25: float
    q75: float
    iqr: float
    active_experts: int
    expert_diversity: float
    total_usage: int
    zero_usage_experts: int


METRICS = tuple(field.name for field in fields(Moments))


@final
@dataclass(frozen=True)
class Analysis:
    """What `expert_statistics_3d.json` says of a layer beside its counts.

    entropy        bits
    top_5_experts  (id, uses) of the most used, of equals the lower id first; ids are text
    """

    active_experts: int
    diversity_percentage: float
    entropy: float
    total_usage: int
    top_5_experts: tuple[tuple[str, int], ...]


def moments_of(counts: Int64) -> Moments:
    """Of one layer's counts [E]."""
    experts, total = len(counts), int(counts.sum())
    mean, std = float(counts.mean()), float(counts.std())
    q25, median, q75 = (float(q) for q in np.quantile(counts, (0.25, 0.5, 0.75)))
    active = int((counts > 0).sum())
    return Moments(
        mean=mean,
        std=std,
        coefficient_of_variation=std / mean if total else None,
        entropy_bits=entropy_bits(counts),
        min_usage=int(counts.min()),
        max_usage=int(counts.max()),
        skewness=float(((counts - mean) ** 3).mean() / std**3) if std else None,
        kurtosis=float(((counts - mean) ** 4).mean() / std**4 - 3) if std else None,
        median=median,
        q25=q25,
        q75=q75,
        iqr=q75 - q25,
        active_experts=active,
        expert_diversity=active / experts,
        total_usage=total,
        zero_usage_experts=experts - active,
    )


def analysis_of(counts: Int64) -> Analysis:
    """Of one layer's counts [E]."""
    active = int((counts > 0).sum())
    top = np.argsort(-counts, kind="stable")[:TOP]
    return Analysis(
        active_experts=active,
        diversity_percentage=100 * active / len(counts),
        entropy=entropy_bits(counts),
        total_usage=int(counts.sum()),
        top_5_experts=tuple((str(e), int(counts[e])) for e in top),
    )


def entropy_bits(counts: Int64) -> float:
    """Of the shares of uses of one layer's experts [E]; 0 without any use.

    Summed one expert after the other: so the original's file comes out again to its last digit.
    """
    total = int(counts.sum())
    shares = [int(count) / total for count in counts if count]
    return abs(sum(share * math.log2(share) for share in shares))
