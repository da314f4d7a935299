"""Has the planner compiled before a model is loaded: the first use takes long, and is no part of what runs after."""

import numpy as np

from foregate.arrays import Int
from foregate.memory.planner import Planner


def warm(
    evict: str,
    prefetch: str,
    *,
    usage: Int | None = None,
    read_seconds: float | None = None,
    window_seconds: float | None = None,
) -> None:
    """One pass of two layers; the options are `Planner`'s, and what it would refuse is refused here.

    Raises: ChoiceError.
    """
    planner = Planner(
        2,
        2,
        2,
        evict,
        prefetch,
        profile=None if usage is None else np.ones((2, 2), dtype=np.int64),
        expert_bytes=1,
        read_seconds=read_seconds,
        window_seconds=window_seconds,
    )
    planner.begin(reset=True)
    for layer in range(2):
        planner.demand(layer, np.arange(2))
        planner.expect(1 - layer, np.ones(2, dtype=np.float32))
        planner.speculate(1 - layer)
