"""The inter-layer speculation transformer as predictors: the plain one, several contexts fused, trained on augmented
batches. What they are asked and how they answer; the network is in `interlayer_network`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self, TypeVar, final

import numpy as np

from foregate.arrays import Bool, Float32
from foregate.errors import ChoiceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.chances import softmax
from foregate.predictors.counting import everywhere
from foregate.predictors.interlayer.answer import answer
from foregate.predictors.interlayer.augment import Augmentation
from foregate.predictors.interlayer.batches import Grid
from foregate.predictors.interlayer.training import Course, fit, frequency
from foregate.predictors.space import Choice, Options, Range
from foregate.splits import held_out
from foregate.traces.parts import Parts
from foregate.traces.schema import Trace

SPACE: Mapping[str, Choice] = {
    "preset": Options(("baseline", "improved", "enhanced")),
    "window": Range(0, 64),
    "learning_rate": Options((0.0, 1e-4, 3e-4, 1e-3, 2e-3)),  # 0 = the preset's
    "batch": Options((0, 8, 16, 32, 64)),
}


@final
@dataclass
class Interlayer(Predictor):
    """A small transformer over the last routed layers' sets and this sequence's earlier tokens; it is told the target
    layer and the distance, and keeps the epoch that is best on the validation trace (a tenth of the training prompts
    where none is given). Layer frequency answers farther ahead than it learned.

    An epoch shows each training token once, with a random target layer and distance; the published epochs (50, 120,
    100) are hours on a few cores, so that `epochs` is far fewer, and a preset's schedule is scaled to it.

    preset         published size and recipe: baseline (dim 256, 8 heads, ff 1024, 4 layers, dropout .1), improved
                   (320, 10, 1280, 5, .12), enhanced (512, 16, 2048, 6, .15)
    contexts       routed layers that it sees; "2+3+4" encodes several side by side and fuses them
    window         earlier tokens that it sees
    augment        train on changed copies: layers hidden, wrong experts, sub-sequences, mixup
    dim, heads, ff, depth, batch, learning_rate  0 = the preset's; dropout, smoothing  below 0 = the preset's
    epochs, seed, threads, device, mixed         as in `run.Recipe`; it always answers in numpy, in full precision
    horizon        the largest distance it learns

    Source: specMoE, "MoE Expert Speculation Model Architecture" (2025); `interlayer_network` says what differs.
    """

    preset: str = "baseline"
    contexts: str = "3"
    window: int = 16
    augment: bool = False
    dim: int = 0
    heads: int = 0
    ff: int = 0
    depth: int = 0
    dropout: float = -1.0
    smoothing: float = -1.0
    batch: int = 0
    learning_rate: float = 0.0
    epochs: int = 6
    horizon: int = 1
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    mixed: bool = True
    frequency_: Float32 = field(init=False, repr=False)
    weights_: dict[str, Float32] = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = SPACE
    streams: ClassVar[bool] = True

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        if validation is None:
            held = held_out(trace, self.seed)
            trace, validation = trace.take(~held), trace.take(held)
        return self.fit_parts(Parts.of(trace), validation)

    def fit_parts(self, parts: Parts, validation: Trace) -> Self:
        self.frequency_ = frequency(parts)
        self.weights_ = fit(self.course, parts, validation, self.frequency_, told=self.on_epoch, session=self.session)
        return self

    def predict(self, query: Query) -> Float32:
        if query.distance > self.horizon:
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        return softmax(self._answer(query)[0])

    def confidence(self, query: Query) -> Float32:
        """[N] how likely the first guess is routed, by the head that was trained to know; 0 beyond the horizon."""
        if query.distance > self.horizon:
            return np.zeros(query.rows, dtype=np.float32)
        logits = self._answer(query)[1]
        sure: Float32 = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
        return sure

    def covers(self, query: Query) -> Bool:
        return everywhere(query) if query.distance <= self.horizon else ~everywhere(query)

    @property
    def course(self) -> Course:
        """The preset with what the options change. Raises: ChoiceError for options that do not fit."""
        course = Course.of(self.preset, self.epochs)
        given = {"dim": self.dim, "heads": self.heads, "ff": self.ff, "depth": self.depth}
        sizes = replace(course.sizes, scales=_scales(self.contexts), **{k: v for k, v in given.items() if v})
        if self.dropout >= 0:
            sizes = replace(sizes, dropout=self.dropout)
        if sizes.dim % sizes.heads:
            raise ChoiceError(f"dim {sizes.dim} cannot be divided among {sizes.heads} heads; choose a multiple")
        recipe = replace(course.recipe, seed=self.seed, threads=self.threads, device=self.device, mixed=self.mixed)
        return replace(
            course,
            sizes=sizes,
            window=self.window,
            horizon=self.horizon,
            batch=self.batch or course.batch,
            smoothing=course.smoothing if self.smoothing < 0 else self.smoothing,
            augmentation=Augmentation() if self.augment else None,
            recipe=replace(recipe, learning_rate=self.learning_rate or recipe.learning_rate),
        )

    def _answer(self, query: Query) -> tuple[Float32, Float32]:
        sizes = self.course.sizes
        return answer(self.weights_, sizes, Grid.of(query.spec, max(sizes.scales), self.window), query)


@final
@dataclass
class Multiscale(Predictor):
    """`interlayer` with contexts of 2, 3 and 4 routed layers, encoded side by side and fused.

    Its options mean what they mean there.

    Source: specMoE's multi-scale variant, whose published run ended in NaN.
    """

    preset: str = "baseline"
    window: int = 16
    dim: int = 0
    heads: int = 0
    ff: int = 0
    depth: int = 0
    dropout: float = -1.0
    batch: int = 0
    learning_rate: float = 0.0
    epochs: int = 6
    horizon: int = 1
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    mixed: bool = True
    frequency_: Float32 = field(init=False, repr=False)
    weights_: dict[str, Float32] = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = SPACE
    streams: ClassVar[bool] = True

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        return _learned(self, self.plain.fit(trace, validation))

    def fit_parts(self, parts: Parts, validation: Trace) -> Self:
        return _learned(self, self.plain.fit_parts(parts, validation))

    def predict(self, query: Query) -> Float32:
        return self.plain.predict(query)

    def confidence(self, query: Query) -> Float32:
        """As `Interlayer.confidence`."""
        return self.plain.confidence(query)

    def covers(self, query: Query) -> Bool:
        return self.plain.covers(query)

    @property
    def plain(self) -> Interlayer:
        """The same as an `Interlayer`, as fitted as this is."""
        return _plain(self, contexts="2+3+4")


@final
@dataclass
class Augmented(Predictor):
    """`interlayer` trained on changed copies of its batches: layers hidden behind a mask token, wrong experts,
    sub-sequences, mixup; what judges it is never changed.

    Its options mean what they mean there.

    Source: specMoE's augmented variant, whose published run ended in a shape error.
    """

    preset: str = "baseline"
    window: int = 16
    dim: int = 0
    heads: int = 0
    ff: int = 0
    depth: int = 0
    dropout: float = -1.0
    batch: int = 0
    learning_rate: float = 0.0
    epochs: int = 6
    horizon: int = 1
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    mixed: bool = True
    frequency_: Float32 = field(init=False, repr=False)
    weights_: dict[str, Float32] = field(init=False, repr=False)
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = SPACE
    streams: ClassVar[bool] = True

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        return _learned(self, self.plain.fit(trace, validation))

    def fit_parts(self, parts: Parts, validation: Trace) -> Self:
        return _learned(self, self.plain.fit_parts(parts, validation))

    def predict(self, query: Query) -> Float32:
        return self.plain.predict(query)

    def confidence(self, query: Query) -> Float32:
        """As `Interlayer.confidence`."""
        return self.plain.confidence(query)

    def covers(self, query: Query) -> Bool:
        return self.plain.covers(query)

    @property
    def plain(self) -> Interlayer:
        """The same as an `Interlayer`, as fitted as this is."""
        return _plain(self, augment=True)


Variant = TypeVar("Variant", Multiscale, Augmented)


def _plain(variant: Multiscale | Augmented, **fixed: Any) -> Interlayer:
    options = {f.name: getattr(variant, f.name) for f in fields(variant) if f.init}
    plain = Interlayer(**options, **fixed)
    plain.on_epoch, plain.session = variant.on_epoch, variant.session
    vars(plain).update({name: value for name, value in vars(variant).items() if name.endswith("_")})
    return plain


def _learned(variant: Variant, plain: Interlayer) -> Variant:
    variant.frequency_, variant.weights_ = plain.frequency_, plain.weights_
    return variant


def _scales(contexts: str) -> tuple[int, ...]:
    """ "2+3+4" -> (2, 3, 4). Raises: ChoiceError."""
    parts = contexts.split("+")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise ChoiceError(f"contexts={contexts!r} is not a number of layers such as 3, or several such as 2+3+4")
    return tuple(sorted({int(part) for part in parts}))
