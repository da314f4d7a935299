"""How often a piece of work is repeated, and what is kept of the times. Knows no piece of work."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from foregate.hardware.profile import Basis, Timing

Work = Callable[[], object]


class Pace(NamedTuple):
    """How long each piece of work is measured: so many rounds, of about so many seconds each."""

    rounds: int
    seconds: float


def repeat(work: Work, seconds: float, least: int = 1) -> list[float]:
    """The times of single runs, one after another for about so many seconds; at least so many runs."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return times


def interleaved(works: Sequence[Work], pace: Pace) -> list[list[list[float]]]:
    """For each work its rounds of times. Works take turns, so that what disturbs the machine disturbs all of them."""
    for work in works:
        work()  # the first run pays for pages and kernels
    times: list[list[list[float]]] = [[] for _ in works]
    for _ in range(pace.rounds):
        for one, work in zip(times, works, strict=True):
            one.append(repeat(work, pace.seconds))
    return times


def timing(
    kind: str,
    size: int,
    rounds: Sequence[Sequence[float]],
    *,
    at_once: int = 1,
    basis: Basis = "measured",
    reckoned: Sequence[float] | None = None,
) -> Timing:
    """All rounds' times as their spread and one number: the median of what each round reckons, else of their medians,
    which what interrupts a computation now and then does not move.
    """
    seconds = float(np.median([np.median(one) for one in rounds] if reckoned is None else reckoned))
    everything = np.concatenate([np.asarray(one) for one in rounds])
    p50, p95, p99 = (float(v) for v in np.percentile(everything, (50, 95, 99)))
    return Timing(kind, size, seconds, basis, at_once, p50, p95, p99, len(everything))
