"""What the leaderboard keeps, under names that say what it came from: trace, options, version of foregate."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from foregate import __version__
from foregate.comparison import fit_on
from foregate.components import describe
from foregate.predictors import PREDICTORS
from foregate.predictors.base import Predictor
from foregate.predictors.fusion.fusion import Fusion
from foregate.predictors.fusion.online import Online
from foregate.predictors.storage import load, save
from foregate.splits import Fold
from foregate.traces.schema import Trace
from foregate.traces.storage import replacing

KEPT = 20.0
"""Seconds of fitting, from which on the fitted predictor is kept."""


@dataclass(frozen=True)
class Keeper:
    """Fits a predictor on a fold, unless the folder holds it fitted on the same rows with the same options."""

    folder: Path

    def __call__(self, predictor: Predictor, fold: Fold) -> tuple[Predictor, float]:
        """The fitted predictor, and the seconds that fitting took, now or when it was kept."""
        path = self.place(predictor, fold)
        if path.exists():
            return load(path, fold.train.spec), float(json.loads(path.with_suffix(".json").read_text())["fit_s"])
        fitted, seconds = self._over(predictor, fold) if isinstance(predictor, Online) else fit_on(predictor, fold)
        if seconds >= KEPT:
            self.keep(fitted, fold, seconds)
        return fitted, seconds

    def _over(self, online: Online, fold: Fold) -> tuple[Predictor, float]:
        """`online` over fusions that may have been kept; the seconds that they took count."""
        elsewhere, began = 0.0, time.perf_counter()

        def fit(fusion: Fusion) -> Fusion:
            nonlocal elsewhere
            asked = time.perf_counter()
            found, seconds = self(fusion, fold)
            elsewhere += seconds - (time.perf_counter() - asked)
            return cast(Fusion, found)

        online.over(fit, fold.train.spec, fold.validation)
        return online, time.perf_counter() - began + elsewhere

    def keep(self, fitted: Predictor, fold: Fold, seconds: float) -> Path:
        """Put a fitted predictor where the next run finds it."""
        path = self.place(fitted, fold)
        write_json({"fit_s": seconds, "options": describe(fitted)}, path.with_suffix(".json"))
        save(fitted, path, fold.train.spec)
        return path

    def place(self, predictor: Predictor, fold: Fold) -> Path:
        """The file of a predictor with these options, fitted on these rows."""
        name = next(n for n, kind in PREDICTORS.items() if kind is type(predictor))
        rows = [digest(part) for part in (fold.train, fold.validation) if part is not None]
        return self.folder / f"{name}-{key(name, describe(predictor), rows)}.npz"


def digest(trace: Trace) -> str:
    """What a predictor can learn from a trace, in a word."""
    rows = (trace.sequence, trace.position, trace.step, trace.token_id, trace.experts)
    some = (trace.weights, trace.hidden, trace.residual, trace.answers)
    return key(str(trace.spec), *rows, *some)


def key(*parts: Any) -> str:
    """Of this version of foregate, and what it was given."""
    found = hashlib.sha256(__version__.encode())
    for part in parts:
        found.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())
    return found.hexdigest()[:16]


def write_json(values: dict[str, Any], path: Path) -> None:
    """A JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(values), encoding="utf-8")
