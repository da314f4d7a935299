"""What this sequence used lately in the target layer, whatever the token: running counts. Nothing else is looked at."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Int, Int64
from foregate.errors import ChoiceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.counting import layer_frequency
from foregate.predictors.space import Choice, Range
from foregate.traces.schema import Trace


@final
@dataclass
class Counts(Predictor):
    """How often the sequence's latest tokens used each expert of the target layer, older ones counting less.

    half_life  tokens after which a use counts half
    smoothing  pseudo-tokens of layer frequency
    window     how many of the latest tokens are counted, so that the cost does not grow with the sequence
    """

    half_life: float = 20.0
    smoothing: float = 10.0
    window: int = 512
    frequency_: Float32 = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = {
        "half_life": Range(1.0, 1000.0, log=True),
        "smoothing": Range(0.1, 100.0, log=True),
    }

    def __post_init__(self) -> None:
        for name in ("half_life", "smoothing", "window"):
            if getattr(self, name) <= 0:
                raise ChoiceError(f"counts:{name}={getattr(self, name)} counts nothing; choose more than 0")

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)
        return self

    def predict(self, query: Query) -> Float32:
        scores = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        fade = 0.5 ** (1 / self.half_life)
        _count(query.past.experts, (query.seen, query.target, self.window), (fade, self.smoothing), scores)
        return scores

    def covers(self, query: Query) -> Bool:
        return query.seen > 0


@njit(cache=True)  # type: ignore[untyped-decorator]
def _count(experts: Int, asked: tuple[Int64, int, int], settings: tuple[float, float], scores: Float32) -> None:
    """Mix what is in scores [N, E] with the faded counts of each row's latest tokens; a set counts 1 in all."""
    seen, target, window = asked
    fade, smoothing = settings
    counts = np.zeros(scores.shape[1])
    for n in range(len(seen)):
        counts[:] = 0
        worth, total = 1.0, smoothing
        for p in range(seen[n] - 1, max(seen[n] - window, 0) - 1, -1):
            size = 0
            for slot in range(experts.shape[2]):
                size += experts[p, target, slot] >= 0
            for slot in range(experts.shape[2]):
                if experts[p, target, slot] >= 0:
                    counts[experts[p, target, slot]] += worth / size
            total += worth * (size > 0)
            worth *= fade
        for e in range(scores.shape[1]):
            scores[n, e] = (counts[e] + smoothing * scores[n, e]) / total
