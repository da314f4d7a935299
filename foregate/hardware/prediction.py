"""How long a fitted predictor takes to answer, asked live through a History on random routing. Judges no answer."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from foregate.errors import ChoiceError
from foregate.hardware.profile import Timing
from foregate.hardware.sampling import Pace, interleaved, timing
from foregate.history import History, Query
from foregate.predictors.base import HIDDEN
from foregate.predictors.storage import load, model_of
from foregate.spec import MoESpec

PAST = 128  # tokens seen before
PASSES = 8  # one after the other, so that those who learn from each token do


def time_predictor(path: Path, hidden: int | None, tokens: Sequence[int], pace: Pace) -> list[Timing]:
    """One answer about the next layer, by tokens of the pass; layers take turns.

    hidden  width of the model's hidden states, for those who read them

    Raises: SourceError for a broken file, ChoiceError where the file does not say enough to make up a query.
    """
    predictor, spec = load(path), model_of(path)
    if spec is None:
        raise ChoiceError(f"{path} does not say which model it was fitted on; fit it anew with foregate train")
    reads = bool(HIDDEN & predictor.needs)
    if reads and hidden is None:
        raise ChoiceError(f"{path} reads hidden states: name its model too, so that their width is known")
    works = []
    for count in tokens:
        queries = itertools.cycle(_queries(spec, count, hidden if reads else None))

        def work(queries: "itertools.cycle[Query]" = queries) -> None:
            predictor.predict(next(queries))

        works.append(work)
    times = interleaved(works, pace)
    return [timing("predict", count, found) for count, found in zip(tokens, times, strict=True)]


def _queries(spec: MoESpec, tokens: int, hidden: int | None) -> list[Query]:
    """Queries about each next layer of passes on random tokens, after a longer one."""
    history = History(spec, hidden=hidden is not None)
    rng = np.random.default_rng(0)
    asked: list[Query] = []
    for number, count in enumerate([PAST, *[tokens] * PASSES]):
        history.begin(rng.integers(0, 1000, count))
        for layer in range(spec.num_layers):
            states = None if hidden is None else rng.normal(size=(count, hidden)).astype(np.float32)
            if states is not None:
                history.enter(layer, states)
            if layer and number:
                asked.append(history.query(layer))
            experts = np.argsort(rng.random((count, spec.num_experts)), axis=1)[:, : spec.top_k]
            weights = np.full((count, spec.top_k), 1 / spec.top_k, dtype=np.float32)
            history.observe(layer, experts, weights, states)
    return asked
