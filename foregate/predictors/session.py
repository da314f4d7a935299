"""What outlives one run of training: its checkpoint on disk, its learning curve, how far it has come. No torch here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Point:
    """One epoch of a learning curve.

    epoch  from 1
    loss   mean over the epoch's batches, as they were trained
    score  on what judges, higher = better
    rate   learning rate of the epoch's last batch
    """

    epoch: int
    loss: float
    score: float
    rate: float


@dataclass(frozen=True)
class Checkpoints:
    """Where a run keeps its state, and how often.

    path    the file: written whole or not at all, the last state only
    every   seconds between two of them; 0 = after every batch
    resume  go on from the file where it exists, instead of starting anew
    about   what the run is about (predictor, traces, split): a file that says otherwise is not resumed
    """

    path: Path
    every: float = 600.0
    resume: bool = False
    about: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Session:
    """How one call of `fit` is watched and kept; a predictor that trains in torch heeds `Predictor.session`.

    advance  hears the share of all epochs that is done, 0..1, after every batch; early stopping ends before 1
    curve    grows by a point an epoch; a resumed run brings back its earlier ones
    """

    checkpoints: Checkpoints | None = None
    advance: Callable[[float], None] = lambda share: None
    curve: list[Point] = field(default_factory=list)
