"""A predictor, fitted on some prompts, that guesses for the simulated run of others. Compares nothing."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import numpy as np

from foregate.arrays import Float32, Int
from foregate.comparison import missing
from foregate.components import build
from foregate.errors import ChoiceError
from foregate.evaluation import predict_us
from foregate.hardware.profile import Profile
from foregate.memory.eviction import eviction
from foregate.memory.predicted import Predicted, UInt16
from foregate.predictors import PREDICTORS
from foregate.predictors.base import Predictor
from foregate.predictors.storage import load
from foregate.simulation.chances import chances_of, oracle_chances
from foregate.simulation.foresight import foresee
from foregate.simulation.passes import Passes, passes_of
from foregate.simulation.shapes import ModelShape
from foregate.simulation.simulate import simulate
from foregate.simulation.strategies import ORACLE, Strategy
from foregate.simulation.timeline import Timeline
from foregate.traces.schema import Trace


@final
@dataclass(frozen=True, eq=False)
class Stage:
    """Where strategies are tried.

    train, validation  what predictors are fitted on
    test               what is simulated
    shape, profile     of the model and of the machine
    host_slots         experts in host memory between disk and device; 0 = none, None = all of them, from the start
    as_decode          prefill is replayed token by token
    """

    train: Trace
    validation: Trace | None
    test: Trace
    shape: ModelShape
    profile: Profile
    host_slots: int | None = 0
    as_decode: bool = False

    def usage(self) -> Int:
        """[L, E] how often the training prompts used each expert."""
        L, E = self.shape.layers, self.shape.experts
        counts = np.zeros((L, E), np.int64)
        for layer in range(L):
            used = self.train.experts[:, layer]
            counts[layer] = np.bincount(used[used >= 0].reshape(-1), minlength=E)
        return counts


@final
@dataclass(frozen=True, eq=False)
class Said:
    """What is said of the passes.

    chance   Float32[P, L, H, E], see `chances.py`
    seconds  of an answer about one layer for one token, measured here
    entered  whoever says it is asked as a layer is entered
    """

    chance: Float32
    seconds: float = 0.0
    entered: bool = False


@final
@dataclass(eq=False)
class Guesser:
    """One predictor, and what it says of the test prompts; asked once for each batch size.

    text      component, file, ORACLE; None: nobody
    horizon   the largest distance that will be asked for
    """

    stage: Stage
    text: str | None
    horizon: int
    _fitted: Predictor | None = field(default=None, init=False)
    _said: dict[int | None, tuple[Passes, Said | None]] = field(default_factory=dict, init=False)
    _foreseen: dict[tuple[str, int | None], UInt16 | None] = field(default_factory=dict, init=False)

    def run(
        self, strategy: Strategy, slots: int, batch: int | None, window: range | None = None
    ) -> tuple[Timeline, float]:
        """A strategy of this predictor, and the seconds it is charged for an answer; events are noted of the passes in
        the window. Raises: ChoiceError.
        """
        stage = self.stage
        passes, said = self.said(batch)
        assert said is not None or strategy.predictor is None
        look = 0.0 if said is None else said.seconds
        decoding = passes.rows[~passes.prefill]
        sequences = float(decoding.mean()) if len(decoding) else 1.0  # each is asked about by itself
        timeline = simulate(
            passes,
            stage.shape,
            stage.profile,
            slots,
            strategy.evict,
            strategy.policy(stage.test.spec),
            chances=None if said is None else said.chance[:, :, : strategy.distance],
            entered=said is not None and said.entered,
            host_slots=stage.host_slots,
            look_seconds=stage.profile.look_seconds(answer=look * sequences) if look else 0.0,
            usage=stage.usage() if strategy.evict == "static" else None,
            foreseen=self.foreseen(strategy.evict, batch),
            window=window,
        )
        return timeline, look

    @property
    def tells_chances(self) -> bool:
        """Whether it says how likely an expert is, not only which comes first."""
        return self.text == ORACLE or (self.text is not None and self.predictor().probabilities)

    def predictor(self) -> Predictor:
        """The fitted predictor. Raises: see `fit`."""
        if self._fitted is None:
            assert self.text is not None
            self._fitted = fit(self.text, self.stage, self.horizon)
        return self._fitted

    def said(self, batch: int | None) -> tuple[Passes, Said | None]:
        """The passes, and what is said of them."""
        if batch not in self._said:
            passes = passes_of(self.stage.test, as_decode=self.stage.as_decode, batch=batch)
            self._said[batch] = passes, self._asked(passes)
        return self._said[batch]

    def foreseen(self, evict: str, batch: int | None) -> UInt16 | None:
        """What `predicted` eviction thinks as the passes run; None for another eviction."""
        kind, key = eviction(evict), (evict, batch)
        if not isinstance(kind, Predicted):
            return None
        if key not in self._foreseen:
            self._foreseen[key] = foresee(self.said(batch)[0], kind)
        return self._foreseen[key]

    def _asked(self, passes: Passes) -> Said | None:
        if self.text is None:
            return None
        if self.text == ORACLE:
            return Said(oracle_chances(passes, self.horizon))
        predictor, test, as_decode = self.predictor(), self.stage.test, self.stage.as_decode
        seconds = predict_us(predictor, test, distance=1, as_decode=as_decode) * 1e-6
        entered = "residual" in predictor.needs
        return Said(chances_of(predictor, test, passes, self.horizon), seconds, entered)


def fit(text: str, stage: Stage, horizon: int) -> Predictor:
    """The predictor, fitted on the training prompts; one in a file is as it is.

    Raises: ChoiceError where the traces cannot feed it; SourceError for a broken file; ModelError.
    """
    made = load(Path(text), stage.test.spec) if in_file(text) else build(PREDICTORS, text, horizon=horizon)
    if (reason := missing(made, stage.test)) is not None:
        raise ChoiceError(f"{text} cannot be asked, {reason}")
    return made if in_file(text) else made.fit(stage.train, stage.validation)


def in_file(text: str) -> bool:
    """Whether a predictor's text names a file."""
    return text.endswith(".npz")
