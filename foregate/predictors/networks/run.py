"""One run of training: the module, its optimiser, what it has learned so far and how to take it up again. When batches
come and when the state is kept is `loop`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from foregate.errors import TrainingError
from foregate.predictors.networks.schedules import Constant, Plateau, Schedule, rate_at
from foregate.predictors.session import Point


@dataclass(frozen=True)
class Recipe:
    """How a module is trained, by AdamW.

    learning_rate  its peak, where a schedule moves it
    warmup         batches over which it first rises to what the schedule says
    clip           the largest gradient norm; 0 = any
    patience       epochs without a better score before training ends; 0 = all epochs are run
    average        decay of a moving average of the weights, which is then what is judged and kept; 0 = no average
    mixed          bfloat16 matrix products where the device has them (a GPU, or a CPU with AVX512-BF16); about twice
                   as fast, and not the same numbers as on another machine
    threads        CPU threads; with one, a seed gives the same weights however many there are. 0 = as torch has them
    device         "cpu", or "cuda" (accelerate places the processes that it launched)
    """

    learning_rate: float
    epochs: int
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.01
    schedule: Schedule = field(default_factory=Constant)
    warmup: int = 0
    clip: float = 0.0
    patience: int = 0
    average: float = 0.0
    mixed: bool = False
    seed: int = 0
    threads: int = 1
    device: str = "cpu"


def moved(batch: Any, device: Any) -> Any:
    """A batch with its tensors and numpy arrays as tensors on a device."""
    import numpy as np
    import torch

    if isinstance(batch, dict):
        return {key: moved(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        values = [moved(value, device) for value in batch]
        return batch._make(values) if hasattr(batch, "_make") else type(batch)(values)
    if isinstance(batch, np.ndarray):
        batch = torch.from_numpy(batch)
    return batch.to(device) if isinstance(batch, torch.Tensor) else batch


@dataclass(eq=False)
class Run:
    """All that changes while training goes on; `state` and `restore` are the two halves of a checkpoint.

    model, module the module as accelerate wrapped it, and itself
    epoch, batch  the epoch that is being trained (from 1), and how many of its batches are done
    total         sum of their losses
    peak          the learning rate that the schedule starts from; Plateau lowers it
    """

    torch: Any
    accelerator: Any
    recipe: Recipe
    model: Any
    module: Any
    optimizer: Any
    averaged: Any
    peak: float
    best: dict[str, Any]
    epoch: int = 1
    batch: int = 0
    total: float = 0.0
    best_epoch: int = 0
    plateau_best: float = -math.inf
    plateau_since: int = 0
    curve: list[Point] = field(default_factory=list)

    @classmethod
    def begin(cls, torch: Any, accelerator: Any, module: Any, recipe: Recipe) -> Run:
        averaged = None
        if recipe.average:
            decay = torch.optim.swa_utils.get_ema_multi_avg_fn(recipe.average)
            averaged = torch.optim.swa_utils.AveragedModel(
                module.to(accelerator.device), multi_avg_fn=decay, use_buffers=True
            )
        module = module.to(accelerator.device)
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=recipe.learning_rate, betas=recipe.betas, weight_decay=recipe.weight_decay
        )
        model, optimizer = accelerator.prepare(module, optimizer)
        module = accelerator.unwrap_model(model)
        return cls(torch, accelerator, recipe, model, module, optimizer, averaged, recipe.learning_rate, {})

    @property
    def over(self) -> bool:
        """Whether there is nothing left to train."""
        since = self.epoch - 1 - self.best_epoch
        return self.epoch > self.recipe.epochs or 0 < self.recipe.patience <= since

    def step(self, batch: Any, loss: Callable[[Any, Any], Any], steps: int) -> None:
        """Learn from one batch."""
        self._set_rate(steps)
        self.optimizer.zero_grad()
        value = loss(self.model, moved(batch, self.accelerator.device))
        amount = float(value.detach())
        self._refuse(amount, "loss")
        self.accelerator.backward(value)
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = self.torch.nn.utils.get_total_norm(gradients)
        self._refuse(float(norm), "gradient")
        if self.recipe.clip:
            self.torch.nn.utils.clip_grads_with_norm_(self.model.parameters(), self.recipe.clip, norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update_parameters(self.module)
        self.batch += 1
        self.total += amount

    def judged(self, judge: Callable[[Any], float]) -> Point:
        """End the epoch."""
        if not self.sound:
            raise TrainingError(f"a weight is not finite after epoch {self.epoch}; {advice(self.recipe)}")
        module = self.module if self.averaged is None else self.averaged.module
        module.eval()
        with self.torch.no_grad():
            score = _shared(self.accelerator, float(judge(module)))
        if math.isnan(score):
            raise TrainingError(f"the score after epoch {self.epoch} is not a number; {advice(self.recipe)}")
        point = Point(self.epoch, self.total / max(self.batch, 1), score, self.optimizer.param_groups[0]["lr"])
        if not self.best_epoch or score > self.curve[self.best_epoch - 1].score:
            self.best_epoch = self.epoch
            self.best = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
        self.curve.append(point)
        self._plateau(score)
        self.epoch, self.batch, self.total = self.epoch + 1, 0, 0.0
        return point

    @property
    def sound(self) -> bool:
        """Whether every weight and buffer is finite."""
        return all(bool(self.torch.isfinite(tensor).all()) for tensor in self.module.state_dict().values())

    def state(self) -> dict[str, Any]:
        """What `restore` needs."""
        cuda = self.torch.cuda
        return {
            "model": self.module.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "best": self.best,
            "curve": [asdict(point) for point in self.curve],
            "draws": [self.torch.get_rng_state(), *(cuda.get_rng_state_all() if self.recipe.device != "cpu" else [])],
            **{name: getattr(self, name) for name in _COUNTERS},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken."""
        self.module.load_state_dict(state["model"])
        if self.averaged is not None:
            self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.best = state["best"]
        self.curve = [Point(**values) for values in state["curve"]]
        cpu, *gpus = state["draws"]
        self.torch.set_rng_state(cpu)
        for device, draws in enumerate(gpus):
            self.torch.cuda.set_rng_state(draws, device)
        for name in _COUNTERS:
            setattr(self, name, state[name])

    def _set_rate(self, steps: int) -> None:
        """Before each batch."""
        recipe, done = self.recipe, self.epoch - 1 + self.batch / max(steps, 1)
        rate = rate_at(recipe.schedule, self.peak, min(done, recipe.epochs), recipe.epochs)
        number = (self.epoch - 1) * steps + self.batch + 1
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, number / recipe.warmup) if recipe.warmup else rate

    def _plateau(self, score: float) -> None:
        schedule = self.recipe.schedule
        if not isinstance(schedule, Plateau):
            return
        if score > self.plateau_best * 1.0001 or self.plateau_best == -math.inf:
            self.plateau_best, self.plateau_since = score, 0
        else:
            self.plateau_since += 1
        if self.plateau_since > schedule.patience:
            self.peak, self.plateau_since = self.peak * schedule.factor, 0

    def _refuse(self, value: float, what: str) -> None:
        if not math.isfinite(value):
            where = f"epoch {self.epoch}, batch {self.batch + 1}"
            raise TrainingError(f"the {what} at {where} is not finite ({value}); {advice(self.recipe)}")


_COUNTERS = ("epoch", "batch", "total", "peak", "best_epoch", "plateau_best", "plateau_since")


def advice(recipe: Recipe) -> str:
    """What to try when a number is not finite."""
    clip = f"a smaller clip than {recipe.clip:g}" if recipe.clip else "gradient clipping"
    return f"try a lower learning_rate than {recipe.learning_rate:g}, or {clip}, and look for NaN in the trace"


def _shared(accelerator: Any, score: float) -> float:
    """The first process' score, so that all keep the same epoch."""
    if accelerator.num_processes == 1:
        return score
    from accelerate.utils import broadcast_object_list

    return float(broadcast_object_list([score])[0])
