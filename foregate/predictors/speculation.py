"""The speculation modes of an earlier engine, by its names, as predictors of ours. Names only."""

from pathlib import Path

from foregate.components import build
from foregate.errors import ChoiceError
from foregate.predictors import PREDICTORS
from foregate.predictors.base import Predictor
from foregate.predictors.storage import load

LEARNABLE = "learnable"
SPECULATION_MODES: dict[str, str | None] = {
    "none": None,  # nobody is asked, nothing is fetched ahead
    "layer_minus_1": "repeat",
    "multi_layer": "multi-layer",
    "pattern": "cooccur",  # the same transition counts per layer, smoothed with layer frequency
    "adaptive": "adaptive",
    LEARNABLE: None,  # any predictor that was fitted and saved: see `speculator`
}
"""Mode -> the component it stands for."""


def speculator(mode: str, file: Path | None = None, horizon: int = 1) -> Predictor | None:
    """The predictor of a mode: a saved one for "learnable", one yet to be fitted for the others, None for "none".

    Raises: ChoiceError for an unknown mode, and where a file is missing or has no use; SourceError for a damaged file.
    """
    if mode not in SPECULATION_MODES:
        raise ChoiceError(f"there is no speculation mode {mode!r}; choose one of {', '.join(SPECULATION_MODES)}")
    if (file is not None) != (mode == LEARNABLE):
        raise ChoiceError(
            f"speculation mode {mode!r} takes no predictor file; use {LEARNABLE}"
            if file is not None
            else f"speculation mode {LEARNABLE!r} needs a predictor file; make one with foregate train"
        )
    if file is not None:
        return load(file)
    component = SPECULATION_MODES[mode]
    return None if component is None else build(PREDICTORS, component, horizon=horizon)
