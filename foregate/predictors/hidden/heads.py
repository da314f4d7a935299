"""Small networks that read hidden states, one for each pair of a last routed layer and a target, trained together.

What a network looks at and computes is the predictor's business; here are the pairs, the batches, the losses and what
is judged. `loop` trains.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from foregate.arrays import Float, Float32, Float64, Int, Int64
from foregate.errors import ChoiceError, TraceError, need
from foregate.history import Query
from foregate.predictors.chances import shares
from foregate.predictors.counting import one_hot
from foregate.predictors.networks import loop, run
from foregate.predictors.networks.schedules import Cosine
from foregate.splits import held_out

if TYPE_CHECKING:
    from foregate.predictors.session import Session
    from foregate.spec import MoESpec
    from foregate.traces.schema import Trace

T = TypeVar("T")
CHUNK = 1_024  # tokens judged at once
PATIENCE = 4  # epochs without a better score before training ends
TEMPERATURES = np.geomspace(0.1, 10, 25).astype(np.float32)
Inputs = Callable[["Trace", Int64], tuple[Any, ...]]
"""(trace, token rows [B]) -> arrays that begin with [B]: what the networks take."""
Loss = Callable[[Any, Any], Any]
"""(logits [C, B, E], answers [C, B, E], 1 for each expert that may be learned) -> a scalar."""


@dataclass(frozen=True)
class Pairs:
    """Which (last routed layer, target) have a network of their own, and in which order: layer [C], target [C]."""

    layer: Int64
    target: Int64

    @classmethod
    def of(cls, spec: MoESpec, horizon: int, first: int) -> Pairs:
        """All up to `horizon` apart, whose last routed layer is `first` (-1 = none yet) or later.

        Raises: ChoiceError for a horizon beyond the last layer.
        """
        L = spec.num_layers
        if not 1 <= horizon < max(L, 2):
            raise ChoiceError(f"horizon {horizon} does not fit {L} layers; choose between 1 and {max(L - 1, 1)}")
        found = [(layer, t) for layer in range(first, L - 1) for t in range(layer + 1, min(layer + horizon, L - 1) + 1)]
        layer, target = np.array(found, dtype=np.int64).reshape(-1, 2).T
        return cls(layer, target)

    def __len__(self) -> int:
        return len(self.layer)


def place_of(query: Query, horizon: int, first: int) -> int | None:
    """Where a query's pair stands in `Pairs`; None if it has no network. Worked out, since looking it up is slow."""
    if query.layer < first or query.distance > horizon:
        return None
    L, before = query.spec.num_layers, query.layer - first
    full = max(0, min(before, L - horizon - first))  # earlier layers with `horizon` targets each
    left = before - full
    fewer = L - 1 - (first + full)  # targets of the first layer that has less
    return full * horizon + left * fewer - left * (left - 1) // 2 + query.distance - 1


class Settings(Protocol):
    """How a predictor trains: its own fields."""

    learning_rate: float
    weight_decay: float
    batch: int
    epochs: int
    seed: int
    threads: int
    device: str
    on_epoch: Callable[[int, float], None] | None
    session: Session | None


@dataclass(frozen=True, eq=False)
class Examples:
    """Tokens to learn from or to judge by, with their routed sets as the answers of each pair.

    rows     the trace's tokens that are meant
    answers  [L, T, k] routed ids that may be learned, -1 = none
    """

    trace: Trace
    rows: Int64
    pairs: Pairs
    inputs: Inputs
    answers: Int

    @classmethod
    def of(cls, trace: Trace, rows: Int64, pairs: Pairs, inputs: Inputs) -> Examples:
        """Those of some tokens."""
        answers = np.stack([trace.answers_at(layer) for layer in range(trace.spec.num_layers)])
        return cls(trace, rows, pairs, inputs, answers)

    def batch(self, rows: Int64) -> tuple[tuple[Any, ...], Float32]:
        """What the networks take, and the answers [C, B, E]."""
        sets = np.stack([one_hot(answers[rows], self.trace.spec.num_experts) for answers in self.answers])
        return self.inputs(self.trace, rows), sets[self.pairs.target]

    def chunks(self) -> Iterator[tuple[tuple[Any, ...], Float32]]:
        """All of them, in order."""
        for start in range(0, len(self.rows), CHUNK):
            yield self.batch(self.rows[start : start + CHUNK])


def parted(
    trace: Trace, validation: Trace | None, pairs: Pairs, inputs: Inputs, seed: int
) -> tuple[Examples, Examples]:
    """What to learn from, and what to judge by; where no validation is given, held out as `MLP` does.

    Raises: TraceError where that leaves nothing.
    """
    if validation is not None:
        tokens = (trace, np.arange(len(trace))), (validation, np.arange(len(validation)))
    else:
        held = held_out(trace, seed)
        tokens = (trace, np.flatnonzero(~held)), (trace, np.flatnonzero(held))
    learned, judged = (Examples.of(part, rows, pairs, inputs) for part, rows in tokens)
    if len(learned.rows) == 0 or len(judged.rows) == 0:
        raise TraceError(f"{len(trace)} training tokens are too few to train on some and judge by others")
    return learned, judged


def fit(network: Callable[[], Any], loss: Loss, learned: Examples, judged: Examples, settings: Settings) -> Any:
    """The networks as a torch module (inputs -> logits [C, B, E]), at the epoch of the best recall@k on `judged`.

    Raises: what `loop.train` does.
    """
    torch = need("torch", "train")
    count = max(1, round(len(learned.rows) / settings.batch))

    def batches(epoch: int) -> Iterator[Any]:
        order = np.random.default_rng([settings.seed, epoch]).permutation(learned.rows)
        return (learned.batch(rows) for rows in np.array_split(order, count))

    recipe = run.Recipe(
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        weight_decay=settings.weight_decay,
        schedule=Cosine(),
        patience=PATIENCE,
        seed=settings.seed,
        threads=settings.threads,
        device=settings.device,
    )
    fitted = loop.train(
        network,
        batches,
        lambda model, batch: loss(model(*batch[0]), batch[1]),
        lambda model: _recall(torch, model, judged),
        recipe,
        steps=count,
        told=settings.on_epoch,
        session=settings.session,
    )
    module = network()
    module.load_state_dict({name: torch.from_numpy(array) for name, array in fitted.state.items()})
    return module.eval()


def cross_entropy(logits: Any, answers: Any) -> Any:
    """Of the routed set, each of its experts sharing it alike."""
    size = answers.sum(dim=2)
    surprise = -(logits.log_softmax(dim=2) * answers).sum(dim=2)
    return (surprise / size.clamp(min=1)).sum() / (size > 0).sum().clamp(min=1)


def ranking(logits: Any, answers: Any, margin: float = 1.0) -> Any:
    """Pairwise hinge: every routed expert is to stand `margin` above every other."""
    k = max(1, int(answers.sum(dim=2).max()))
    routed, places = answers.topk(k, dim=2)
    above = logits.gather(2, places)
    short = (margin - above[:, :, :, None] + logits[:, :, None, :]).clamp(min=0)
    each = (short * (1 - answers)[:, :, None, :] * routed[:, :, :, None]).sum(dim=(2, 3))
    return each.sum() / routed.sum().clamp(min=1)


def temperatures(module: Any, judged: Examples) -> Float32:
    """[C] what each pair's logits are best divided by, by the log-loss of `shares` on `judged`."""
    torch = need("torch", "train")
    losses: Float64 = np.zeros((len(TEMPERATURES), len(judged.pairs)))
    k = judged.trace.spec.top_k
    with torch.no_grad():
        for inputs, answers in judged.chunks():
            logits = module(*run.moved(inputs, next(module.parameters()).device)).cpu().numpy()
            for pair, place in itertools.product(range(len(judged.pairs)), range(len(TEMPERATURES))):
                known = answers[pair].any(axis=1)
                chances = k * shares(logits[pair][known] / TEMPERATURES[place], k)
                right = np.where(answers[pair][known] > 0, chances, 1 - chances)
                losses[place, pair] -= np.log(np.maximum(right, 1e-6)).sum()
    best: Float32 = TEMPERATURES[losses.argmin(axis=0)].astype(np.float32)
    return best


def choice(name: str, value: str, known: Mapping[str, T]) -> T:
    """What an option's value stands for. Raises: ChoiceError for one that is not known."""
    if value not in known:
        raise ChoiceError(f"{name} is {value!r}; choose one of {', '.join(known)}")
    return known[value]


def unit(state: Float) -> Float32:
    """[..., D] the direction of a state, as what an RMS norm makes of it: its mean square is 1."""
    wide = state.astype(np.float32)
    scaled: Float32 = wide / np.sqrt(np.square(wide).mean(axis=-1, keepdims=True) + 1e-12)
    return scaled


def standard(states: Float) -> tuple[Float32, Float32]:
    """Mean and inverse deviation [L, D] of states [T, L, D]; 0 for a number that never varies. A layer at a time, since
    widening all would take much memory.
    """
    mean, scale = np.zeros(states.shape[1:], dtype=np.float32), np.zeros(states.shape[1:], dtype=np.float32)
    for layer in range(states.shape[1]):
        wide = states[:, layer].astype(np.float32)
        mean[layer], deviation = wide.mean(axis=0), wide.std(axis=0)
        scale[layer] = np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0)
    return mean, scale


def dropped(torch: Any, inner: Any, share: float, training: bool) -> Any:
    """Dropout of [C, B, W], of the same numbers for all pairs: drawing for each would take a third of the training."""
    if not training or share == 0:
        return inner
    kept = torch.rand(inner.shape[1:], device=inner.device) >= share
    return inner * (kept / (1 - share))


def uniform(torch: Any, *shape: int) -> Any:
    """A parameter [..., inputs, outputs] of maps, drawn as torch draws a Linear."""
    bound = shape[-2] ** -0.5
    return torch.nn.Parameter(torch.empty(*shape).uniform_(-bound, bound))


def _recall(torch: Any, module: Any, judged: Examples) -> float:
    """Share of the routed experts among as many first guesses as the model routes to, all pairs alike."""
    k = judged.trace.spec.top_k
    found, asked = np.zeros(len(judged.pairs)), np.zeros(len(judged.pairs))
    for inputs, answers in judged.chunks():
        guesses = module(*run.moved(inputs, next(module.parameters()).device)).topk(k, dim=2)[1].cpu()
        found += torch.from_numpy(answers).gather(2, guesses).sum(dim=(1, 2)).numpy()
        asked += answers.sum(axis=(1, 2))
    return float((found / np.maximum(asked, 1)).mean())
