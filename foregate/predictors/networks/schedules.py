"""How the learning rate moves while a network is trained. Numbers only: no torch, no optimiser."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """The same throughout."""


@dataclass(frozen=True)
class Cosine:
    """Falls along half a cosine from the rate to `floor` (a learning rate) over all epochs."""

    floor: float = 0.0


@dataclass(frozen=True)
class OneCycle:
    """Rises along a cosine from rate / 25 to the rate in the first `rise` of the run, then falls to almost nothing.

    Source: "Super-Convergence" (Smith & Topin 2017), with torch's defaults; the optimiser's betas stay as they are.
    """

    rise: float = 0.3


@dataclass(frozen=True)
class Restarts:
    """Falls along half a cosine to `floor`, then starts again: after `period` epochs, then `growth` times as many.

    Source: "SGDR" (Loshchilov & Hutter 2016); torch's CosineAnnealingWarmRestarts.
    """

    period: float
    growth: int = 1
    floor: float = 0.0


@dataclass(frozen=True)
class Plateau:
    """Falls by `factor` whenever `patience` epochs did not better the validation score by a ten-thousandth."""

    patience: int
    factor: float = 0.1


Schedule = Constant | Cosine | OneCycle | Restarts | Plateau
START, END = 1 / 25, 1 / 250_000  # of OneCycle's peak


def rate_at(schedule: Schedule, peak: float, at: float, epochs: int) -> float:
    """The learning rate after `at` epochs (a batch counts as its share of one); Plateau moves `peak` itself."""
    match schedule:
        case Cosine(floor):
            return _fall(peak, floor, at / epochs)
        case OneCycle(rise):
            share = at / epochs
            if share < rise:
                return _fall(peak * START, peak, share / rise)
            return _fall(peak, peak * END, (share - rise) / (1 - rise))
        case Restarts(period, growth, floor):
            while at >= period:
                at, period = at - period, period * growth
            return _fall(peak, floor, at / period)
        case _:
            return peak


def _fall(high: float, low: float, share: float) -> float:
    """Half a cosine from `high` to `low`."""
    return low + (high - low) * (1 + math.cos(math.pi * share)) / 2
