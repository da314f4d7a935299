"""How often a guess must be right for reading ahead to pay on a machine: guesses of a known quality, simulated."""

from dataclasses import dataclass
from typing import final

import numpy as np

from foregate.arrays import Float32
from foregate.simulation.chances import oracle_chances
from foregate.simulation.guesser import Stage
from foregate.simulation.passes import Passes, passes_of
from foregate.simulation.simulate import simulate

QUALITIES = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


@final
@dataclass(frozen=True)
class BreakEven:
    """Reading ahead as many experts as a layer will use, guessed so many layers ahead.

    precision  the cold precision from which on it is as fast as reading on demand; None: not even 1 is enough
    points     (cold precision, speed as a share of reading on demand), by quality of the guesses
    distance   layers ahead, at most
    """

    precision: float | None
    points: tuple[tuple[float, float], ...]
    distance: int


def break_even(stage: Stage, slots: int, distance: int = 1, *, seed: int = 0) -> BreakEven:
    """Of a machine, a model and its routing. LRU on both sides, the same memory; who guesses takes no time.

    A guess is a set as large as the true one, with each expert right by a chance; those that are there already are not
    read, so that the cold precision is lower.
    """
    passes = passes_of(stage.test, as_decode=stage.as_decode)
    rng = np.random.default_rng(seed)
    alone = simulate(passes, stage.shape, stage.profile, slots, host_slots=stage.host_slots).seconds
    points = []
    for quality in QUALITIES:
        said = guesses(passes, distance, quality, rng)
        run = simulate(
            passes,
            stage.shape,
            stage.profile,
            slots,
            "lru",
            "threshold:0.5",
            chances=said,
            host_slots=stage.host_slots,
            look_seconds=0.0,
        )
        points.append((run.cold_precision or 0.0, alone / run.seconds))
    return BreakEven(_crossing(points), tuple(points), distance)


def guesses(passes: Passes, distance: int, quality: float, rng: np.random.Generator) -> Float32:
    """[P, L, H, E] sets as large as the true ones: each expert is true by a chance of `quality`, else drawn from those
    that are not used. The same set is guessed at every distance.
    """
    true = oracle_chances(passes, 1)[:, :, 0] > 0
    draw = rng.random(true.shape)
    kept = true & (draw < quality)
    missing = true.sum(axis=2) - kept.sum(axis=2)
    order = np.argsort(np.where(true, 2.0, draw), axis=2)  # those that are not used, shuffled, first
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(true.shape[2])[None, None], axis=2)
    said: Float32 = (kept | ((rank < missing[:, :, None]) & ~true)).astype(np.float32)
    return np.repeat(said[:, :, None], distance, axis=2)


def _crossing(points: list[tuple[float, float]]) -> float | None:
    """Where the speed reaches that of reading on demand for good."""
    if points[-1][1] < 1:
        return None
    last = max((i for i, (_, speed) in enumerate(points) if speed < 1), default=-1)
    if last < 0:
        return points[0][0]
    (low, slow), (high, fast) = points[last], points[last + 1]
    return low + (high - low) * (1 - slow) / (fast - slow)
