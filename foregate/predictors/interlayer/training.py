"""Fitting the inter-layer network: its published sizes and recipes, which runs an epoch shows, what judges it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from foregate.arrays import Float32, Int64
from foregate.errors import ChoiceError, TraceError, need
from foregate.predictors.counting import layer_frequency
from foregate.predictors.interlayer.augment import Augmentation, augmented
from foregate.predictors.interlayer.batches import SPAN, Grid, Runs, questions, shuffled
from foregate.predictors.interlayer.network import Sizes, loss, network
from foregate.predictors.networks import loop, run
from foregate.predictors.networks.schedules import OneCycle, Plateau, Restarts
from foregate.predictors.session import Session
from foregate.traces.schema import Trace

BLIND = 0.1  # share of training runs that see no earlier token, as in a recorded prefill
JUDGED = 2  # questions that each run of validation tokens is asked
ASK = 64  # validation runs asked at once


@dataclass(frozen=True)
class Preset:
    """A published size with its published recipe; `recipe.epochs` is the published number.

    batch  runs; smoothing: of labels
    """

    sizes: Sizes
    batch: int
    smoothing: float
    recipe: run.Recipe


PRESETS = {
    "baseline": Preset(Sizes(256, 8, 1024, 4, 0.1, (3,)), 16, 0.0, run.Recipe(1e-3, 50, schedule=OneCycle(), clip=1.0)),
    "improved": Preset(
        Sizes(320, 10, 1280, 5, 0.12, (3,)), 28, 0.06, run.Recipe(3e-4, 120, schedule=Plateau(5, 0.5), clip=0.8)
    ),
    "enhanced": Preset(
        Sizes(512, 16, 2048, 6, 0.15, (3,)),
        16,
        0.1,
        run.Recipe(
            5e-5, 100, betas=(0.9, 0.95), weight_decay=0.02, schedule=Restarts(20, 2, 1e-7), warmup=2000, clip=0.5
        ),
    ),
}


@dataclass(frozen=True)
class Course:
    """What is fitted, and how."""

    sizes: Sizes
    window: int
    horizon: int
    batch: int
    smoothing: float
    augmentation: Augmentation | None
    recipe: run.Recipe

    @classmethod
    def of(cls, preset: str, epochs: int) -> Course:
        """A preset, its schedule scaled from the published number of epochs to this one.

        Raises: ChoiceError for an unknown name.
        """
        if preset not in PRESETS:
            raise ChoiceError(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
        chosen = PRESETS[preset]
        recipe, share = chosen.recipe, epochs / chosen.recipe.epochs
        schedule = recipe.schedule
        if isinstance(schedule, Restarts):
            schedule = replace(schedule, period=schedule.period * share)
        if isinstance(schedule, Plateau):
            schedule = replace(schedule, patience=round(schedule.patience * share))
        recipe = replace(recipe, epochs=epochs, schedule=schedule, warmup=round(recipe.warmup * min(1.0, share)))
        return cls(chosen.sizes, 0, 1, chosen.batch, chosen.smoothing, None, recipe)


def frequency(parts: Iterable[Trace]) -> Float32:
    """[L, E] `layer_frequency` of all parts together."""
    counts: Any = 0
    for part in parts:
        k = np.array([(part.answers_at(layer) >= 0).sum() for layer in range(part.spec.num_layers)])
        counts = counts + layer_frequency(part) * (k + part.spec.num_experts)[:, None] - 1
    shares = np.round(counts) + 1
    found: Float32 = (shares / shares.sum(axis=1, keepdims=True)).astype(np.float32)
    return found


def fit(
    course: Course,
    parts: Iterable[Trace],
    judged: Trace,
    frequency: Float32,
    *,
    told: Callable[[int, float], None] | None = None,
    session: Session | None = None,
) -> dict[str, Float32]:
    """The weights of the epoch that is best on `judged`: the mean share of the routed set among the first k guesses.

    parts  the training tokens, a trace of whole sequences at a time; they are gone through once an epoch

    Raises: what `loop.train` does; TraceError if there is nothing to learn from.
    """
    torch = need("torch", "train")
    grid = Grid.of(judged.spec, max(course.sizes.scales), course.window)

    def exam() -> Iterator[dict[str, Any]]:
        return _exam(grid, course.horizon, judged, course.recipe.seed)

    steps = sum(max(1, round(len(Runs.of(part)) / course.batch)) for part in parts)
    if steps == 0 or not any((batch["answers"] >= 0).any() for batch in exam()):
        raise TraceError("there are too few tokens to train on some and judge by others")
    fitted = loop.train(
        lambda: network(torch, course.sizes, grid, course.horizon, frequency),
        lambda epoch: _lessons(course, grid, parts, epoch),
        lambda model, batch: loss(torch, model, batch, course.smoothing),
        lambda model: _recall(torch, model, exam()),
        course.recipe,
        steps=steps,
        told=told,
        session=session,
    )
    return fitted.state


def _lessons(course: Course, grid: Grid, parts: Iterable[Trace], epoch: int) -> Iterator[dict[str, Any]]:
    """An epoch's batches: each training token once, with a random target layer and distance for its run."""
    rng = np.random.default_rng((course.recipe.seed, epoch))
    for part in parts:
        phase = None
        if course.augmentation is not None:  # sub-sequences: runs begin elsewhere in each epoch
            phase = rng.integers(0, SPAN, len(part.prompts))
        runs = Runs.of(part, phase)
        for chosen in shuffled(runs, course.batch, rng):
            yield _lesson(course, grid, runs, chosen, rng)


def _lesson(course: Course, grid: Grid, runs: Runs, chosen: Int64, rng: np.random.Generator) -> dict[str, Any]:
    batch: dict[str, Any] = runs.batch(grid, chosen, *questions(grid, course.horizon, len(chosen), rng))
    blind = rng.random(len(chosen)) < BLIND
    batch["there"] &= ~blind[:, None]
    batch["seen"] = np.where(blind[:, None], 0, batch["seen"])
    return batch if course.augmentation is None else augmented(batch, grid, course.augmentation, rng)


def _exam(grid: Grid, horizon: int, judged: Trace, seed: int) -> Iterator[dict[str, Any]]:
    """The same questions about the same tokens after every epoch."""
    rng = np.random.default_rng(seed)
    runs = Runs.of(judged)
    for _ in range(JUDGED):
        for begin in range(0, len(runs), ASK):
            chosen = np.arange(begin, min(begin + ASK, len(runs)))
            yield runs.batch(grid, chosen, *questions(grid, horizon, len(chosen), rng))


def _recall(torch: Any, model: Any, exam: Iterable[dict[str, Any]]) -> float:
    """Mean over rows of the share of the routed set among the first k guesses."""
    device = next(model.parameters()).device
    found, rows = 0.0, 0
    for batch in exam:
        batch = run.moved(batch, device)  # noqa: PLW2901
        answers = batch["answers"]
        guesses = model(batch)[0].topk(answers.shape[-1], dim=-1).indices
        present = answers >= 0
        hits = ((answers[..., None] == guesses[:, :, None]).any(dim=-1) & present).sum(dim=-1)
        size = present.sum(dim=-1)
        found += float((hits / size.clamp(min=1)).sum())
        rows += int((size > 0).sum())
    return found / rows
