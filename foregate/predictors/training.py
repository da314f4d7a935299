"""Fitting the MLP in torch, and its weights as plain arrays. Which rows it learns from is the predictor's business."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.arrays import Float32, Int64
from foregate.errors import ChoiceError, need
from foregate.predictors.features import Columns, Examples

SLOPE = 0.1  # of LeakyReLU
PATIENCE = 2  # epochs without a better score before the learning rate falls tenfold
EARLY_STOP = 5  # the same, before training ends
CHUNK = 16_384  # rows judged at once


@dataclass(frozen=True)
class Recipe:
    """The network and how it is trained; `MLP` says what each means."""

    width: int
    depth: int
    expert_size: int
    layer_size: int
    dropout: float
    learning_rate: float
    batch: int
    epochs: int
    seed: int
    threads: int
    device: str


@dataclass(frozen=True, eq=False)
class Network:
    """Fitted weights, as `MLP` keeps them."""

    inputs: dict[str, Float32]
    weights: dict[str, Float32]
    biases: dict[str, Float32]


def train(
    recipe: Recipe,
    learned: Examples,
    judged: Examples,
    num_experts: int,
    told: Callable[[int, float], None] | None = None,
) -> Network:
    """AdamW on batches of `learned`; the epoch with the best top-1 on `judged` is kept, the first of equals.

    told  hears (epoch, that top-1) after each

    Raises: ChoiceError if there is no such device.
    """
    torch = need("torch", "train")
    if recipe.device != "cpu" and not (recipe.device.startswith("cuda") and torch.cuda.is_available()):
        raise ChoiceError(f"torch cannot train on {recipe.device!r} here; use device=cpu")
    with _seeded(torch, recipe):
        mean, scale = _standard(learned)
        model = _model(torch, recipe, learned.columns, num_experts).to(recipe.device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=PATIENCE)
        feed = _Feed(torch, recipe.device, mean, scale)
        best, kept, since = -1.0, _state(model), 0
        for epoch, batches in enumerate(_epochs(recipe, len(learned)), 1):
            _epoch(model, optimizer, feed, learned, batches)
            score = _top1(model, feed, judged)
            if told is not None:
                told(epoch, score)
            plateau.step(score)
            since += 1
            if score > best:
                best, kept, since = score, _state(model), 0
            if since >= EARLY_STOP:
                break
    return _folded(kept, recipe, mean, scale)


@dataclass(frozen=True)
class _Feed:
    """Rows of examples as tensors: layer [N], expert ids [N, S] with -1 last, standardized numbers [N, M]."""

    torch: Any
    device: str
    mean: Float32
    scale: Float32

    def inputs(self, examples: Examples, rows: Int64 | slice) -> tuple[Any, Any, Any]:
        """What the model takes."""
        table, columns = examples.table(rows), examples.columns
        numbers = np.nan_to_num((table[:, columns.numbers] - self.mean) * self.scale)
        arrays = (table[:, 0].astype(np.int64), table[:, columns.experts].astype(np.int64), numbers)
        layer, experts, rest = (self.torch.from_numpy(a).to(self.device) for a in arrays)
        return layer, experts, rest

    def answers(self, examples: Examples, rows: Int64 | slice) -> Any:
        """[N, A], -1 = absent."""
        return self.torch.from_numpy(examples.answers[rows]).to(self.device)


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


def _epochs(recipe: Recipe, rows: int) -> Iterator[list[Int64]]:
    """Each epoch's batches, all of nearly one size: batch norm learns nonsense from a last one of a few rows."""
    rng = np.random.default_rng(recipe.seed)
    for _ in range(recipe.epochs):
        yield np.array_split(rng.permutation(rows), max(1, round(rows / recipe.batch)))


def _standard(examples: Examples) -> tuple[Float32, Float32]:
    """Mean and inverse deviation of the columns of numbers; 0 for one that never varies, so that it says nothing."""
    numbers = np.concatenate(
        [
            examples.table(slice(start, start + CHUNK))[:, examples.columns.numbers]
            for start in range(0, len(examples), CHUNK)
        ]
    ).astype(np.float64)
    known = np.isfinite(numbers)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, numbers, 0).sum(axis=0) / count
    deviation = np.sqrt((np.where(known, numbers - mean, 0) ** 2).sum(axis=0) / count)
    scale = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)
    return mean.astype(np.float32), scale.astype(np.float32)


def _model(torch: Any, recipe: Recipe, columns: Columns, num_experts: int) -> Any:
    nn = torch.nn

    class Model(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Embedding(columns.layers, recipe.layer_size)
            self.expert = nn.Embedding(num_experts + 1, recipe.expert_size)
            inputs = recipe.layer_size + len(columns.experts) * recipe.expert_size + len(columns.numbers)
            self.linear, self.norm = nn.ModuleList(), nn.ModuleList()
            for i in range(recipe.depth):
                self.linear.append(nn.Linear(recipe.width if i else inputs, recipe.width))
                self.norm.append(nn.BatchNorm1d(recipe.width))
            self.dropout = nn.Dropout(recipe.dropout)
            self.out = nn.Linear(recipe.width if recipe.depth else inputs, num_experts)

        def forward(self, layer: Any, experts: Any, numbers: Any) -> Any:
            absent = self.expert.num_embeddings - 1
            ids = experts.where(experts >= 0, absent)
            state = torch.cat([self.layer(layer), self.expert(ids).flatten(1), numbers], dim=1)
            for linear, norm in zip(self.linear, self.norm, strict=True):
                state = self.dropout(nn.functional.leaky_relu(norm(linear(state)), SLOPE))
            return self.out(state)

    return Model()


def _epoch(model: Any, optimizer: Any, feed: _Feed, examples: Examples, batches: list[Int64]) -> None:
    model.train()
    for rows in batches:
        optimizer.zero_grad()
        logits = model(*feed.inputs(examples, rows))
        _loss(feed.torch, logits, feed.answers(examples, rows)).backward()
        optimizer.step()


def _loss(torch: Any, logits: Any, answers: Any) -> Any:
    """Cross entropy, each row's answers sharing it alike."""
    present = (answers >= 0).to(logits.dtype)
    chosen = torch.log_softmax(logits, dim=1).gather(1, answers.clamp(min=0))
    return -((chosen * present).sum(dim=1) / present.sum(dim=1)).mean()


def _top1(model: Any, feed: _Feed, examples: Examples) -> float:
    """Share of rows whose first guess is an answer."""
    model.eval()
    right = 0
    with feed.torch.no_grad():
        for start in range(0, len(examples), CHUNK):
            rows = slice(start, start + CHUNK)
            guesses = model(*feed.inputs(examples, rows)).argmax(dim=1)
            right += int((guesses[:, None] == feed.answers(examples, rows)).any(dim=1).sum())
    return right / len(examples)


def _state(model: Any) -> dict[str, Float32]:
    """The weights as they are now."""
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in model.state_dict().items()}


def _folded(state: dict[str, Float32], recipe: Recipe, mean: Float32, scale: Float32) -> Network:
    """Each batch norm becomes part of the linear map before it."""
    weights, biases = {}, {}
    for i in range(recipe.depth):
        gain = state[f"norm.{i}.weight"] / np.sqrt(state[f"norm.{i}.running_var"] + 1e-5)
        weights[str(i)] = np.ascontiguousarray((state[f"linear.{i}.weight"] * gain[:, None]).T)
        shift = state[f"linear.{i}.bias"] - state[f"norm.{i}.running_mean"]
        biases[str(i)] = shift * gain + state[f"norm.{i}.bias"]
    weights[str(recipe.depth)] = np.ascontiguousarray(state["out.weight"].T)
    biases[str(recipe.depth)] = state["out.bias"]
    inputs = {"layer": state["layer.weight"], "expert": state["expert.weight"], "mean": mean, "scale": scale}
    return Network(inputs, weights, biases)
