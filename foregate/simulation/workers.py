"""Work that each predictor does by itself, in processes. Knows nothing of what the work is."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from typing import TypeVar

from foregate.errors import ForegateError
from foregate.simulation.guesser import Stage
from foregate.simulation.strategies import wants_hidden

T = TypeVar("T")
Work = Callable[[Stage, str | None], T]


def spread(
    stage: Stage, predictors: Iterable[str | None], work: Work[T], jobs: int
) -> Iterator[tuple[str | None, T | ForegateError]]:
    """What `work(stage, predictor)` returns for each, as it comes; or the user's error that it raised.

    work  can be pickled: a function of a module, or a partial of one
    jobs  processes; who reads hidden states, which are large, stays in this one
    """
    texts = list(predictors)
    here = [text for text in texts if jobs < 2 or wants_hidden(text)]
    away = [text for text in texts if text not in here]
    if not away:
        yield from ((text, _tried(stage, work, text)) for text in here)
        return
    # Fresh processes: a copy of one that runs threads may wait for them for ever.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(away)), context, _begin, (_light(stage),)) as pool:
        waiting = {pool.submit(_work, work, text): text for text in away}
        yield from ((text, _tried(stage, work, text)) for text in here)
        for done in as_completed(waiting):
            yield waiting[done], done.result()


_stage: Stage | None = None
"""A worker's own; set as it begins."""


def _begin(stage: Stage) -> None:
    global _stage  # noqa: PLW0603 - sent once to a process, not with each piece of work
    _stage = stage


def _work(work: Work[T], text: str | None) -> T | ForegateError:
    assert _stage is not None
    return _tried(_stage, work, text)


def _tried(stage: Stage, work: Work[T], text: str | None) -> T | ForegateError:
    try:
        return work(stage, text)
    except ForegateError as error:
        return error


def _light(stage: Stage) -> Stage:
    """Without hidden states."""
    validation = None if stage.validation is None else stage.validation.without(hidden=True)
    return replace(
        stage, train=stage.train.without(hidden=True), validation=validation, test=stage.test.without(hidden=True)
    )
