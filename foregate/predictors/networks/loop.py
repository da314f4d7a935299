"""The one training loop: batches through a torch module until its judge has heard enough. What the module is, what a
batch holds and what is asked of it are the caller's.

`accelerate` places the module and its batches: one device, or the processes that `accelerate launch` started, which
then take turns at the batches. A run that was killed resumes from its checkpoint as if nothing had happened; a loss or
a gradient that is not finite stops it before it can touch the weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from foregate.arrays import Float32
from foregate.errors import ChoiceError, TrainingError, need
from foregate.predictors.networks.checkpoints import read_checkpoint, write_checkpoint
from foregate.predictors.networks.run import Recipe, Run
from foregate.predictors.session import Checkpoints, Session


@dataclass(frozen=True, eq=False)
class Fitted:
    """The best epoch's parameters and buffers by their names in the module, that epoch, and its score."""

    state: dict[str, Float32]
    epoch: int
    score: float


def train(
    network: Callable[[], Any],
    batches: Callable[[int], Iterable[Any]],
    loss: Callable[[Any, Any], Any],
    judge: Callable[[Any], float],
    recipe: Recipe,
    *,
    steps: int,
    told: Callable[[int, float], None] | None = None,
    session: Session | None = None,
) -> Fitted:
    """Train a module; the epoch that its judge scores highest is kept, the first of equals.

    network  makes the module; called once torch's draws follow from the seed
    batches  gives an epoch's batches (epochs count from 1), the same ones whenever it is asked for that epoch: tensors
             or numpy arrays, in tuples, lists or dicts; they are moved to the module's device
    loss     (module, batch) -> a scalar to make smaller
    judge    module -> its score, higher = better; the module is in eval mode, gradients are off
    steps    batches of an epoch; what schedules, warm-up and the time left count by
    told     hears (epoch, score) after each; what it raises stops the run

    Raises: ChoiceError if there is no such device, or the checkpoint is of another run; TrainingError if a loss, a
    gradient, a weight or a score is not finite.
    """
    torch = need("torch", "train")
    session = Session() if session is None else session
    with _seeded(torch, recipe), _accelerator(torch, recipe) as accelerator:
        run = Run.begin(torch, accelerator, network(), recipe)
        keeper = _Keeper(run, recipe, steps, session.checkpoints)
        keeper.resume()
        session.curve[:] = run.curve
        lesson = _Lesson(batches, loss, steps, session.advance)
        while not run.over:
            _epoch(run, keeper, lesson)
            point = run.judged(judge)
            session.curve.append(point)
            if told is not None and accelerator.is_main_process:
                told(point.epoch, point.score)
        state = {name: tensor.float().numpy() for name, tensor in run.best.items()}
        return Fitted(state, run.best_epoch, run.curve[run.best_epoch - 1].score)


@dataclass(eq=False)
class _Keeper:
    """When a run's state is written, and from what it is resumed."""

    run: Run
    recipe: Recipe
    steps: int
    checkpoints: Checkpoints | None
    written: float = field(default_factory=time.monotonic)

    def resume(self) -> None:
        kept = self.checkpoints
        if kept is not None and kept.resume and kept.path.exists():
            state = read_checkpoint(kept.path, self._about(), self.run.accelerator.device)
            self.run.restore(state)

    def due(self) -> None:
        """After each batch: write if it is time."""
        kept = self.checkpoints
        if kept is not None and time.monotonic() - self.written >= kept.every:
            self.write()

    def write(self) -> None:
        """Write the state, unless a weight is not finite."""
        if self.checkpoints is None or not self.run.accelerator.is_main_process or not self.run.sound:
            return
        write_checkpoint(self.checkpoints.path, self._about(), self.run.state())
        self.written = time.monotonic()

    def stopped(self, error: TrainingError) -> TrainingError:
        """The error, with where the last good state is."""
        kept = self.checkpoints
        if kept is None:
            return TrainingError(f"{error}; no checkpoint was asked for, so nothing of this run is kept")
        if not kept.path.exists():
            self.write()  # one batch's draws further than it should be, but better than nothing
        if not kept.path.exists():
            return TrainingError(f"{error}; no state was good enough to keep")
        return TrainingError(f"{error}; the last good state is kept in {kept.path}, resume from there")

    def _about(self) -> dict[str, str]:
        """What must be the same for a state to make sense: the rate and how long to train may change."""
        assert self.checkpoints is not None
        sizes = ", ".join("x".join(map(str, p.shape)) for p in self.run.module.parameters())
        fixed = {"batches an epoch": str(self.steps), "seed": str(self.recipe.seed), "sizes": sizes}
        return {**self.checkpoints.about, **fixed, "average": str(self.recipe.average)}


@dataclass(frozen=True)
class _Lesson:
    """What an epoch teaches, as `train` was given it."""

    batches: Callable[[int], Iterable[Any]]
    loss: Callable[[Any, Any], Any]
    steps: int
    advance: Callable[[float], None]


def _epoch(run: Run, keeper: _Keeper, lesson: _Lesson) -> None:
    """What is left of the epoch that the run stands in. Of several processes, each takes every so-many-th batch."""
    run.model.train()
    world, rank = run.accelerator.num_processes, run.accelerator.process_index
    steps = max(1, lesson.steps // world)
    turns = _turns(islice(lesson.batches(run.epoch), run.batch * world, None), world)
    try:
        for turn in turns:
            run.step(turn[rank], lesson.loss, steps)
            lesson.advance(min(1.0, (run.epoch - 1 + run.batch / steps) / run.recipe.epochs))
            keeper.due()
    except TrainingError as error:
        raise keeper.stopped(error) from error


def _turns(batches: Iterator[Any], world: int) -> Iterator[tuple[Any, ...]]:
    """`world` batches at a time; the few that are left over are dropped, as every process must have one."""
    while len(turn := tuple(islice(batches, world))) == world:
        yield turn


@contextmanager
def _accelerator(torch: Any, recipe: Recipe) -> Iterator[Any]:
    """Where the run takes place. Raises: ChoiceError if there is no such device."""
    accelerate = need("accelerate", "train")
    cpu = recipe.device == "cpu"
    if not cpu and not (recipe.device.startswith("cuda") and torch.cuda.is_available()):
        raise ChoiceError(f"torch cannot train on {recipe.device!r} here; use device=cpu")
    able = torch.cpu._is_avx512_bf16_supported() if cpu else torch.cuda.is_bf16_supported()
    mixed = recipe.mixed and able
    _forget(accelerate)
    chosen = torch.cuda.device(recipe.device) if ":" in recipe.device else nullcontext()
    with chosen:
        yield accelerate.Accelerator(cpu=cpu, mixed_precision="bf16" if mixed else "no")


def _forget(accelerate: Any) -> None:
    """An earlier run's device and precision, which accelerate keeps for the process; launched ones must stay."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


@contextmanager
def _seeded(torch: Any, recipe: Recipe) -> Iterator[None]:
    """Torch's draws follow from the seed, and its settings are left as they were."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if recipe.device != "cpu" else []):
        torch.manual_seed(recipe.seed)
        torch.set_num_threads(recipe.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)
