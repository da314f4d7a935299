"""The MLP in torch, and its weights as plain arrays; `loop` trains it. Which rows it learns from is the predictor's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.arrays import Float32, Int64
from foregate.errors import need
from foregate.predictors.networks import loop, run
from foregate.predictors.networks.schedules import Plateau
from foregate.predictors.session import Session
from foregate.predictors.study.features import Columns, Examples

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

    @property
    def loop(self) -> run.Recipe:
        """What the loop needs of it."""
        return run.Recipe(
            learning_rate=self.learning_rate,
            epochs=self.epochs,
            schedule=Plateau(PATIENCE),
            patience=EARLY_STOP,
            seed=self.seed,
            threads=self.threads,
            device=self.device,
        )


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
    *,
    told: Callable[[int, float], None] | None = None,
    session: Session | None = None,
) -> Network:
    """AdamW on batches of `learned`; the epoch with the best top-1 on `judged` is kept, the first of equals.

    told, session  see `loop.train`

    Raises: what `loop.train` does.
    """
    torch = need("torch", "train")
    mean, scale = _standard(learned)
    feed, order = _Feed(mean, scale), _Order(recipe, len(learned))
    fitted = loop.train(
        lambda: _model(torch, recipe, learned.columns, num_experts),
        lambda epoch: (feed.batch(learned, rows) for rows in order.batches(epoch)),
        lambda model, batch: _loss(torch, model(*batch[:3]), batch[3]),
        lambda model: _top1(model, feed, judged),
        recipe.loop,
        steps=order.count,
        told=told,
        session=session,
    )
    return _folded(fitted.state, recipe, mean, scale)


@dataclass(frozen=True)
class _Feed:
    """Rows of examples as the model takes them."""

    mean: Float32
    scale: Float32

    def batch(self, examples: Examples, rows: Int64 | slice) -> tuple[Int64, Int64, Float32, Int64]:
        """layer [N], expert ids [N, S], standardized numbers [N, M], answers [N, A]; -1 = absent."""
        table, columns = examples.table(rows), examples.columns
        numbers = np.nan_to_num((table[:, columns.numbers] - self.mean) * self.scale)
        layer, experts = table[:, 0].astype(np.int64), table[:, columns.experts].astype(np.int64)
        return layer, experts, numbers, examples.answers[rows]


class _Order:
    """Each epoch's batches, all of nearly one size: batch norm learns nonsense from a last one of a few rows."""

    def __init__(self, recipe: Recipe, rows: int) -> None:
        self.seed, self.rows = recipe.seed, rows
        self.count = max(1, round(rows / recipe.batch))
        self._begin()

    def batches(self, epoch: int) -> Iterator[Int64]:
        """Rows of an epoch's batches; one generator draws all epochs' orders in turn."""
        if epoch < self._next:
            self._begin()
        while self._next <= epoch:
            order = self._rng.permutation(self.rows)
            self._next += 1
        yield from np.array_split(order, self.count)

    def _begin(self) -> None:
        self._rng, self._next = np.random.default_rng(self.seed), 1


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


def _loss(torch: Any, logits: Any, answers: Any) -> Any:
    """Cross entropy, each row's answers sharing it alike."""
    present = (answers >= 0).to(logits.dtype)
    chosen = torch.log_softmax(logits, dim=1).gather(1, answers.clamp(min=0))
    return -((chosen * present).sum(dim=1) / present.sum(dim=1)).mean()


def _top1(model: Any, feed: _Feed, examples: Examples) -> float:
    """Share of rows whose first guess is an answer."""
    device = next(model.parameters()).device
    right = 0
    for start in range(0, len(examples), CHUNK):
        batch = run.moved(feed.batch(examples, slice(start, start + CHUNK)), device)
        guesses = model(*batch[:3]).argmax(dim=1)
        right += int((guesses[:, None] == batch[3]).any(dim=1).sum())
    return right / len(examples)


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
