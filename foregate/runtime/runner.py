"""One mixture layer's turn: demand its experts, look ahead, compute them as they arrive. No weights, no policy."""

from collections.abc import Callable
from time import perf_counter
from typing import Any, final

from foregate.memory.planner import Planner, Wave
from foregate.runtime.experts import Work
from foregate.runtime.fetch import Fetch
from foregate.runtime.slots import Slots
from foregate.runtime.telemetry import Telemetry


@final
class Runner:
    """Runs layers one after the other.

    ahead  is called once all of a layer's own reads are under way, to read for later layers
    """

    def __init__(
        self, planner: Planner, fetch: Fetch, slots: Slots, counts: Telemetry, ahead: Callable[[int], None]
    ) -> None:
        self._planner, self._fetch, self._slots, self._counts, self._ahead = planner, fetch, slots, counts, ahead
        self._layer = -1
        self._under_way = False

    def begin(self, *, reset: bool) -> None:
        """A pass starts; `reset`: of other sequences than the last."""
        if self._under_way:  # the last one broke off, perhaps in the middle of a read
            self._fetch.recover()
        self._under_way = True
        self._layer = -1
        self._planner.begin(reset)

    def end(self) -> None:
        """The pass is over, and nothing went wrong."""
        self._under_way = False

    def run(self, layer: int, work: Work) -> Any:
        """The layer's output.

        Raises: StorageError, SourceError if an expert's bytes cannot be had.
        """
        if layer <= self._layer or not self._under_way:  # a part of the model is run by itself, without its root
            self.begin(reset=False)
        self._layer = layer
        try:
            wave = self._demand(layer, work.experts)
            self._fetch.passed(layer)
            if not len(wave.rest):
                self._ahead(layer)
                slots = wave.slots.tolist()
                if len(self._fetch.arrived(slots)) == len(slots):
                    return self._whole(layer, work, wave)
            while len(wave.rest):
                # what comes next is on its way while this is computed; its slots are not this wave's
                later = self._demand(layer, wave.rest)
                if not len(later.rest):
                    self._ahead(layer)
                self._compute(layer, work, wave)
                wave = later
            self._compute(layer, work, wave)
            return work.result()
        finally:
            work.release()

    def _whole(self, layer: int, work: Work, wave: Wave) -> Any:
        """All experts at once: they are there."""
        started = perf_counter()
        for expert, slot in zip(wave.experts.tolist(), wave.slots.tolist(), strict=True):
            work.hold(expert, self._slots.weights(slot))
        output = work.whole()
        self._slots.computed(wave.slots.tolist())
        self._counts.add(layer, "compute", perf_counter() - started)
        return output

    def _demand(self, layer: int, experts: Any) -> Wave:
        wave = self._planner.demand(layer, experts)
        self._fetch.issue(wave.transfers)
        self._fetch.demand(layer, wave.experts.tolist(), wave.slots.tolist(), wave.hit.tolist())
        return wave

    def _compute(self, layer: int, work: Work, wave: Wave) -> None:
        """Each expert of a wave, those that are there first."""
        waiting = dict(zip(wave.slots.tolist(), wave.experts.tolist(), strict=True))
        while waiting:
            ready = self._fetch.arrived(waiting)
            if not ready:
                ready = [next(iter(waiting))]
                self._fetch.wait(layer, ready[0])
            started = perf_counter()
            for slot in ready:
                expert = waiting.pop(slot)
                work.hold(expert, self._slots.weights(slot))
                work.compute(expert)
            self._slots.computed(ready)
            self._counts.add(layer, "compute", perf_counter() - started)
