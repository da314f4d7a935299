"""A predictor of your own: `echo` expects what this very token was routed to when it last came in its sequence."""

from dataclasses import dataclass, field
from typing import Self, final

import numpy as np

from foregate import PREDICTORS, Predictor, Query, Trace
from foregate.arrays import Bool, Float32, Int64
from foregate.predictors.counting import layer_frequency


@final
@dataclass
class Echo(Predictor):
    """`trust` is shared out among what the token used last, the rest among all experts as the layer uses them."""

    trust: float = 0.5
    frequency_: Float32 = field(init=False, repr=False)  # [L, E]
    needs = frozenset({"token_id"})
    probabilities = True

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.frequency_ = layer_frequency(trace)  # counts trace.answers_at(layer), no other cell
        return self

    def predict(self, query: Query) -> Float32:
        scores = np.repeat(self.frequency_[query.target][None], query.rows, axis=0)  # [N, E]
        for n, place in enumerate(_last(query)):
            if place >= 0:
                used = query.past.experts[place, query.target]  # [k], -1 = absent
                scores[n] *= 1 - self.trust
                scores[n, used[used >= 0]] += self.trust / (used >= 0).sum()
        return scores

    def covers(self, query: Query) -> Bool:
        return _last(query) >= 0


def _last(query: Query) -> Int64:
    """[N] the last earlier token, among those that the row may see, with the row's id and a recorded set; -1 = none."""
    past, found = query.past, np.full(query.rows, -1)
    recorded = (past.experts[:, query.target] >= 0).any(axis=1)
    for n, seen in enumerate(query.seen):
        places = np.flatnonzero(recorded[:seen] & (past.token_id[:seen] == query.token_id[n]))
        found[n] = places[-1] if len(places) else -1
    return found


PREDICTORS["echo"] = Echo
