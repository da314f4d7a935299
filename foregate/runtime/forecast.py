"""Asks a predictor about the layers to come, and has the planner read ahead by its answer. Learns nothing."""

from time import perf_counter
from typing import final

import numpy as np

from foregate.arrays import Float32
from foregate.errors import ChoiceError
from foregate.memory.planner import Planner
from foregate.predictors.base import Predictor
from foregate.predictors.chances import first_come, used, used_blindly
from foregate.runtime.fetch import Fetch
from foregate.runtime.passes import Passes
from foregate.runtime.telemetry import Telemetry

MANY = 32  # tokens of a pass: with more, nearly every expert is used, and no predictor is asked


@final
class Forecast:
    """Looks ahead in one stack.

    first  the stack's first mixture layer, in the planner's count
    """

    def __init__(
        self,
        predictor: Predictor,
        passes: Passes,
        *,
        distance: int,
        first: int,
        planner: Planner,
        fetch: Fetch,
        counts: Telemetry,
    ) -> None:
        self._predictor, self._distance, self._passes, self._first = predictor, distance, passes, first
        self._planner, self._fetch, self._counts = planner, fetch, counts

    def look(self, layer: int) -> None:
        """The stack's layer has been routed (-1: none yet): read ahead for those that follow.

        Raises: ChoiceError if the predictor's answer is none.
        """
        # A part of the model may be run by itself: then nobody saw what.
        if self._passes.layer != layer or not self._planner.asks:
            return
        started = perf_counter()
        spec = self._passes.spec
        end = min(layer + self._distance, spec.num_layers - 1)
        for target in range(layer + 1, end + 1):
            held = self._chance(target)[: self._planner.num_experts]  # some families route to experts without weights
            self._planner.expect(self._first + target, held)
        for target in range(layer + 1, end + 1):
            self._fetch.issue(self._planner.speculate(self._first + target))
        self._counts.add(self._first + max(layer, 0), "predictor", perf_counter() - started)

    def _chance(self, target: int) -> Float32:
        """[E] that any of the pass's tokens uses an expert of the layer."""
        spec = self._passes.spec
        if self._passes.tokens > MANY:
            return used_blindly(self._passes.tokens, spec.top_k, spec.num_experts)
        asked = (sequence.history.query(target) for sequence in self._passes.sequences)
        queries = [query for query in asked if query.rows]
        if not queries:
            return used_blindly(0, spec.top_k, spec.num_experts)
        scores = np.concatenate([self._predictor.predict(query) for query in queries])
        if scores.shape[1:] != (spec.num_experts,) or not np.isfinite(scores).all():
            raise ChoiceError(
                f"{type(self._predictor).__name__} was asked about mixture layer {target} and answered with numbers "
                f"that are not finite, or not {spec.num_experts} a token; fit it again, or choose another --prefetch"
            )
        return used(scores, spec.top_k) if self._predictor.probabilities else first_come(scores)
