"""The networks of `fusion` in torch, and their weights as plain arrays; `loop` trains them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.arrays import Float32, Int64
from foregate.errors import need
from foregate.predictors.calibration import sharpness
from foregate.predictors.fusion.inputs import Examples, Inputs
from foregate.predictors.networks import loop, run
from foregate.predictors.networks.schedules import OneCycle
from foregate.predictors.session import Session

FORGET = 0.1  # share of the tokens that are made unknown while training, so that unknown ones mean something
CLIP = 1.0
JUDGED = 4096  # rows judged at once
SAMPLES = 2048  # rows that a temperature is taken from

Rows = Callable[[Int64], Int64]
"""Token ids [N] -> the rows of their embeddings."""


@dataclass(frozen=True)
class Recipe:
    """The networks and how they are trained; `Fusion` says what each means."""

    width: int
    token_size: int
    buckets: int
    dropout: float
    learning_rate: float
    weight_decay: float
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
            weight_decay=self.weight_decay,
            betas=(0.9, 0.98),
            schedule=OneCycle(rise=0.1),
            clip=CLIP,
            seed=self.seed,
            threads=self.threads,
            device=self.device,
        )


@dataclass(frozen=True, eq=False)
class Fitted:
    """The weights as `Fusion` keeps them."""

    tokens: Float32
    sets: dict[str, Float32]
    numbers: Float32
    bias: Float32
    out: Float32
    base: Float32
    trust: Float32
    sharpness: Float32


def train(
    recipe: Recipe,
    learned: Examples,
    judged: Examples,
    rows: Rows,
    *,
    told: Callable[[int, float], None] | None = None,
    session: Session | None = None,
) -> Fitted:
    """The epoch with the best recall@k on `judged`, over all its questions; then a temperature for each (distance,
    layer) from them.

    told, session  see `loop.train`

    Raises: what `loop.train` does.
    """
    torch = need("torch", "train")
    inputs, centre = learned.inputs, _centre(learned)

    def batches(epoch: int) -> Iterator[Any]:
        for target, distance, chosen in learned.lessons(recipe.batch, recipe.seed + epoch):
            sets, numbers, token_id, answers = learned.lesson(target, distance, chosen)
            yield target, sets, numbers, rows(token_id), answers

    fitted = loop.train(
        lambda: _network(torch, recipe, inputs, centre),
        batches,
        lambda model, batch: _loss(model(*batch[:4]), batch[4]),
        lambda model: _recall(torch, model, judged, rows),
        recipe.loop,
        steps=len(learned.lessons(recipe.batch, 0)),
        told=told,
        session=session,
    )
    module = _network(torch, recipe, inputs, centre)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in fitted.state.items()})
    module.eval()
    stacked = {
        name: _stacked(fitted.state, name, inputs.layers) for name in ("numbers", "bias", "out", "base", "trust")
    }
    # What asks afterwards does not centre: the bias does it.
    stacked["bias"] -= np.einsum("lc,lch->lh", centre, stacked["numbers"][:, : inputs.columns])
    return Fitted(
        tokens=fitted.state["tokens"],
        sets={str(target): fitted.state[f"sets.{target}"] for target in range(inputs.layers)},
        sharpness=_sharpness(torch, module, judged, rows),
        **stacked,
    )


def _stacked(state: dict[str, Float32], name: str, layers: int) -> Float32:
    return np.stack([state[f"{name}.{target}"] for target in range(layers)])


def _centre(learned: Examples) -> Float32:
    """[L, columns] the mean of each target's numbers, of up to SAMPLES rows. Around zero they train better: logarithms
    of votes are about -5, and would leave half of the hidden units always on, the others always off.
    """
    found = np.zeros((learned.inputs.layers, learned.inputs.columns), dtype=np.float32)
    seen: set[int] = set()
    for target, distance, rows in learned.lessons(SAMPLES, 0):
        if target not in seen:
            seen.add(target)
            found[target] = learned.lesson(target, distance, rows)[1].mean(axis=0)
    return found


def _network(torch: Any, recipe: Recipe, inputs: Inputs, centre: Float32) -> Any:
    nn = torch.nn

    def drawn(rows: int, columns: int, scale: float = 1.0) -> Any:
        return nn.Parameter(torch.empty(rows, columns).uniform_(-scale, scale) * rows**-0.5)

    class Network(nn.Module):  # type: ignore[name-defined,misc]
        """One network per target: parameters of targets that a batch does not ask about get no gradient."""

        def __init__(self) -> None:
            super().__init__()
            targets, H, E = range(inputs.layers), recipe.width, inputs.experts
            self.tokens = nn.Parameter(0.3 * torch.randn(recipe.buckets + 1, recipe.token_size))
            self.sets = nn.ParameterList([drawn(inputs.rows(t), H) for t in targets])
            self.numbers = nn.ParameterList([drawn(inputs.columns + recipe.token_size, H) for _ in targets])
            self.bias = nn.ParameterList([nn.Parameter(torch.zeros(H)) for _ in targets])
            self.out = nn.ParameterList([drawn(H, E) for _ in targets])
            self.base = nn.ParameterList([nn.Parameter(torch.zeros(E)) for _ in targets])
            self.trust = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in targets])
            self.dropout = nn.Dropout(recipe.dropout)
            self.register_buffer("centre", torch.from_numpy(centre), persistent=False)

        def forward(self, target: int, sets: Any, numbers: Any, token: Any) -> Any:
            if self.training:
                forgotten = torch.rand(len(token), device=token.device) < FORGET
                token = token.masked_fill(forgotten, recipe.buckets)
            plain = torch.cat([numbers - self.centre[target], nn.functional.embedding(token, self.tokens)], dim=1)
            state = sets @ self.sets[target] + plain @ self.numbers[target] + self.bias[target]
            logits = self.dropout(state.relu()) @ self.out[target] + self.base[target]
            return logits + self.trust[target] * numbers[:, inputs.log_vote]

    return Network()


def _loss(logits: Any, answers: Any) -> Any:
    """Cross entropy of the routed set, each of its experts sharing it alike."""
    surprise = -(logits.log_softmax(dim=1) * answers).sum(dim=1)
    return (surprise / answers.sum(dim=1)).mean()


def _asked(model: Any, judged: Examples, rows: Rows) -> Iterator[tuple[int, int, Any, Any]]:
    """(target, distance, logits, answers) of everything that judges."""
    device = next(model.parameters()).device
    for target, distance, chosen in judged.lessons(JUDGED, 0):
        sets, numbers, token_id, answers = judged.lesson(target, distance, chosen)
        sets, numbers, token = run.moved((sets, numbers, rows(token_id)), device)
        yield target, distance, model(target, sets, numbers, token).cpu(), answers


def _recall(torch: Any, model: Any, judged: Examples, rows: Rows) -> float:
    """Share of the routed experts among the k first guesses."""
    found, asked = 0.0, 0.0
    for _, _, logits, answers in _asked(model, judged, rows):
        guesses = logits.topk(judged.inputs.top_k, dim=1)[1]
        found += float(torch.from_numpy(answers).gather(1, guesses).sum())
        asked += float(answers.sum())
    return found / max(asked, 1.0)


def _sharpness(torch: Any, model: Any, judged: Examples, rows: Rows) -> Float32:
    """[horizon, L] what each (distance, layer) multiplies its logits by, from up to SAMPLES of the rows that judged."""
    inputs = judged.inputs
    found = np.ones((inputs.horizon, inputs.layers), dtype=np.float32)
    given: dict[tuple[int, int], list[tuple[Float32, Float32]]] = defaultdict(list)
    with torch.no_grad():
        for target, distance, logits, answers in _asked(model, judged, rows):
            given[distance - 1, target].append((logits.numpy(), answers))
    for place, parts in given.items():
        logits, answers = (np.concatenate(column)[:SAMPLES] for column in zip(*parts, strict=True))
        found[place] = sharpness(logits, answers, inputs.top_k)
    return found
