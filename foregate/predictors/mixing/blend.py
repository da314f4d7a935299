"""A predictor that mixes others: what it is, what its members and its mixer are fitted on. The mixer is in `mixing`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Self, final

import numpy as np

from foregate.arrays import Bool, Float32
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.mixing.members import Hearing, beliefs, covers, needs
from foregate.predictors.mixing.network import Mixer, Recipe, mix, train
from foregate.predictors.space import Choice, Range
from foregate.traces.schema import Trace


@final
@dataclass
class Blend(Predictor):
    """Several predictors as one: a small network turns what they say of each expert, how sure they are, the layer and
    how much past there is into the probability that the expert is routed. One mixer for each distance.

    The mixer learns from prompts that the members were not fitted on, those of the validation trace or held out (see
    Hearing.hold): fitted on half of them while the other half says how many epochs are best, then on all. Fitted files
    were fitted elsewhere: give a validation trace that they have not seen.

    members        joined by "+", with options in parentheses, or files of fitted predictors:
                   memory+rules(order=2,smoothing=3)+mlp.npz
    rows           held-out rows that are asked at most, at each distance
    learning_rate, epochs, seed, threads  of the mixer
    horizon        the largest distance it learns; farther ahead it answers as at that
    """

    members: str = "memory+tokens+cooccur+previous"
    rows: int = 100_000
    learning_rate: float = 0.01
    epochs: int = 8
    horizon: int = 1
    seed: int = 0
    threads: int = 1
    members_: tuple[Predictor, ...] = field(init=False, repr=False)
    mixer_: dict[str, Float32] = field(init=False, repr=False)  # each array of `mixing.Mixer` by distance
    probabilities: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Choice]] = {"learning_rate": Range(1e-3, 0.1, log=True)}

    @property
    def needs(self) -> frozenset[Need]:
        """What its members need."""
        return needs(self.members, vars(self).get("members_", ()))

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        hearing = Hearing(self.members, self.horizon, self.rows, self.seed)
        self.members_, said = hearing.hold(trace, validation)
        recipe = Recipe(self.learning_rate, self.epochs, self.seed, self.threads)
        mixers: list[Mixer] = []
        for rows in said:
            told = self.on_epoch if not mixers else None  # each mixer counts its epochs from 1; the nearest speaks
            mixers.append(train(rows, trace.spec.num_layers, recipe, told))
        self.mixer_ = {name: np.stack([mixer[name] for mixer in mixers]) for name in mixers[0]}
        return self

    def predict(self, query: Query) -> Float32:
        at = min(query.distance, self.horizon) - 1
        mixer = {name: stack[at] for name, stack in self.mixer_.items()}
        return mix(mixer, beliefs(self.members_, query), query.seen, query.target, query.spec.top_k)

    def covers(self, query: Query) -> Bool:
        return covers(self.members_, query)
