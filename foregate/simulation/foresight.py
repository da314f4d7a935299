"""What `predicted` eviction thinks of every expert after every set of a run, computed once for many simulations of it.

It depends on the routing alone, not on what any cache holds: runs that differ in slots, prefetch or machine share it.
"""

import numpy as np

from foregate.arrays import Bool, Int32, Int64
from foregate.memory.compiled import entry
from foregate.memory.predicted import Forecast, Predicted, UInt16, make_forecast, observe, restart
from foregate.simulation.passes import Passes

MOST = 1 << 30
"""Bytes that are worth it: about 4 million sets of 128 experts."""


def foresee(passes: Passes, eviction: Predicted) -> UInt16 | None:
    """[S, E] levels after each set that is not empty, see `Forecast.foreseen`; None where they would be too many.

    Raises: see `make_forecast`.
    """
    sets = int((np.diff(passes.starts) > 0).sum())
    if sets * passes.num_experts * 2 > MOST:
        return None
    levels = np.zeros((sets, passes.num_experts), np.uint16)
    forecast = make_forecast(passes.layers, passes.num_experts, eviction)
    _observe(forecast, passes.starts, passes.experts, passes.fresh, levels)
    return levels


@entry
def _observe(forecast: Forecast, starts: Int64, experts: Int32, fresh: Bool, levels: UInt16) -> None:
    """As `begin` and `demand` would, pass by pass."""
    layers, row = len(forecast.level), 0
    for p in range(len(fresh)):
        if fresh[p]:
            restart(forecast)
        for layer in range(layers):
            first, last = starts[p * layers + layer], starts[p * layers + layer + 1]
            if first == last:
                continue
            observe(forecast, layer, experts[first:last])
            for e in range(levels.shape[1]):
                levels[row, e] = forecast.level[layer, e]
            row += 1
