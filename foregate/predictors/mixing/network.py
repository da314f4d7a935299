"""One score from several predictors': a small network asked about each expert alike. What it is and how it answers, in
numba, and how torch fits it. Where the predictors come from is `blend`'s business.

For expert e of a row, with g the members' log probabilities and probabilities of e (`views`) and f what is known of the
row (`features`):

    logit(e) = (slopes[layer] + f @ bend) . g + offset[layer, e] + out . relu(g @ own + f @ row + place[layer])

It is fitted so that its sigmoid is the probability that e is routed. As exactly k experts are, all logits of a row are
then shifted alike until these probabilities sum to k; a score is one k-th of its probability.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
from numba import njit

from foregate.arrays import Float32, Int64
from foregate.errors import need
from foregate.predictors.chances import shares
from foregate.predictors.mixing.members import Said, routed
from foregate.predictors.networks import loop, run
from foregate.predictors.networks.schedules import OneCycle

HIDDEN = 32
BATCH = 1024
CHUNK = 8192  # rows judged at once
LIFT = 3.0  # probabilities times this vary about as logarithms do

Mixer = dict[str, Float32]
"""mean, scale [F]; slopes [L, G]; bend [F, G]; offset [L, E]; own [G, H]; row [F, H]; place [L, H]; out [H], where M
members have G = 2M views.
"""


@dataclass(frozen=True)
class Recipe:
    """How a mixer is fitted; `Blend` says what each means."""

    learning_rate: float
    epochs: int
    seed: int
    threads: int


def views(beliefs: Float32) -> Float32:
    """[2M, N, E] the members' log probabilities [M, N, E], then their probabilities times LIFT."""
    return np.concatenate([beliefs, LIFT * np.exp(beliefs)])


def features(seen: Int64, viewed: Float32) -> Float32:
    """[N, F] log(1 + seen), whether there is no past, and of views [2M, N, E] each member's entropy and highest
    probability.
    """
    found = np.empty((len(seen), 2 + len(viewed)), dtype=np.float32)
    _features(viewed, seen, found)
    return found


def mix(mixer: Mixer, beliefs: Float32, seen: Int64, layer: int, top_k: int) -> Float32:
    """[N, E] one distribution from the members' log probabilities [M, N, E]."""
    viewed = views(beliefs)
    known = features(seen, viewed)
    logits = np.empty(beliefs.shape[1:], dtype=np.float32)
    linear = (mixer["slopes"][layer], mixer["bend"], mixer["offset"][layer])
    network = (mixer["own"], mixer["row"], mixer["place"][layer], mixer["out"])
    _mix(viewed, (known - mixer["mean"]) * mixer["scale"], linear, network, logits)
    return shares(logits, top_k)


def train(said: Said, layers: int, recipe: Recipe, told: Callable[[int, float], None] | None = None) -> Mixer:
    """Fit a mixer by the cross entropy of every expert's "is it routed": first on half of the prompts while the other
    half judges, then on all of them, for as many epochs as were best.

    told  hears (epoch, minus the other half's cross entropy) after each

    Raises: what `loop.train` does.
    """
    torch = need("torch", "train")
    members, _, experts = said.beliefs.shape
    viewed = views(said.beliefs)
    known = features(said.seen, viewed)
    mean, scale = known.mean(axis=0), 1 / np.maximum(known.std(axis=0), 1e-2)
    table = (np.ascontiguousarray(viewed.transpose(1, 2, 0)), (known - mean) * scale, said.layer, routed(said, experts))
    every, half = np.arange(len(said)), said.half(recipe.seed)

    def fit(learned: Int64, judge: Callable[[Any], float], epochs: int, told: Any) -> loop.Fitted:
        steps = max(1, len(learned) // int(np.clip(len(learned) // 32, 16, BATCH)))
        return loop.train(
            lambda: _network(torch, (2 * members, experts, layers), known.shape[1], said.answers.shape[1]),
            lambda epoch: _batches(table, learned, (recipe.seed, epoch), steps),
            lambda model, batch: _loss(torch, model, batch),
            judge,
            run.Recipe(
                learning_rate=recipe.learning_rate,
                epochs=epochs,
                schedule=OneCycle(),
                seed=recipe.seed,
                threads=recipe.threads,
            ),
            steps=steps,
            told=told,
        )

    others = every[~half]
    best = fit(every[half], lambda model: _score(torch, model, table, others), recipe.epochs, told).epoch
    passed = count()
    state = fit(every, lambda model: float(next(passed)), best, None).state  # the last epoch is kept
    return {
        "mean": mean.astype(np.float32),
        "scale": scale.astype(np.float32),
        "slopes": state["slopes"] + state["slope"],
        **{name: state[name] for name in ("bend", "offset", "own", "row", "place", "out")},
    }


Table = tuple[Float32, Float32, Int64, Float32]
"""views [N, E, G], standardized features [N, F], layer [N], whether each expert was routed [N, E]"""


def _batches(table: Table, rows: Int64, seed: tuple[int, int], steps: int) -> Iterator[tuple[Any, ...]]:
    order = np.random.default_rng(seed).permutation(rows)
    return (tuple(column[part] for column in table) for part in np.array_split(order, steps))


def _loss(torch: Any, model: Any, batch: tuple[Any, ...]) -> Any:
    return torch.nn.functional.binary_cross_entropy_with_logits(model(*batch[:3]), batch[3])


def _score(torch: Any, model: Any, table: Table, rows: Int64) -> float:
    """Minus the mean loss."""
    total = 0.0
    for part in np.array_split(rows, 1 + len(rows) // CHUNK):
        batch = run.moved(tuple(column[part] for column in table), "cpu")
        total -= float(_loss(torch, model, batch)) * len(part)
    return total / len(rows)


def _network(torch: Any, sizes: tuple[int, int, int], known: int, top_k: int) -> Any:
    """It starts as the mean of the members' log probabilities, times k; layers share what they do not learn apart."""
    nn = torch.nn
    inputs, experts, layers = sizes

    class Network(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.slope = nn.Parameter(torch.tensor([2 / inputs, 0.0]).repeat_interleave(inputs // 2))
            self.slopes = nn.Parameter(torch.zeros(layers, inputs))
            self.bend = nn.Parameter(torch.zeros(known, inputs))
            self.offset = nn.Parameter(torch.full((layers, experts), float(np.log(top_k))))
            self.own = nn.Parameter(torch.randn(inputs, HIDDEN) / inputs**0.5 / 3)
            self.row = nn.Parameter(torch.randn(known, HIDDEN) / known**0.5)
            self.place = nn.Parameter(torch.randn(1, HIDDEN).repeat(layers, 1))
            self.out = nn.Parameter(torch.randn(HIDDEN) / 100)

        def forward(self, viewed: Any, known: Any, layer: Any) -> Any:
            slopes = self.slope + self.slopes[layer] + known @ self.bend
            hidden = viewed @ self.own + (known @ self.row + self.place[layer])[:, None]
            linear = torch.einsum("nem,nm->ne", viewed, slopes) + self.offset[layer]
            return linear + torch.relu(hidden) @ self.out

    return Network()


@njit(cache=True)  # type: ignore[untyped-decorator]
def _features(viewed: Float32, seen: Int64, out: Float32) -> None:
    inputs, rows, experts = viewed.shape
    members = inputs // 2
    for n in range(rows):
        out[n, 0] = np.log(1.0 + seen[n])
        out[n, 1] = seen[n] == 0
        for m in range(members):
            entropy, top = 0.0, np.float32(0.0)
            for e in range(experts):
                share = viewed[members + m, n, e] / LIFT
                entropy -= viewed[m, n, e] * share
                top = max(top, share)
            out[n, 2 + m] = entropy
            out[n, 2 + members + m] = top


@njit(cache=True, fastmath=True)  # type: ignore[untyped-decorator]
def _mix(
    viewed: Float32,
    known: Float32,
    linear: tuple[Float32, Float32, Float32],
    network: tuple[Float32, Float32, Float32, Float32],
    logits: Float32,
) -> None:
    slope, bend, offset = linear
    own, row, place, out = network
    inputs, rows, experts = viewed.shape
    hidden = np.empty(len(place), dtype=np.float32)
    start = np.empty(len(place), dtype=np.float32)
    slopes = np.empty(inputs, dtype=np.float32)
    for n in range(rows):
        start[:] = place
        slopes[:] = slope
        for i in range(known.shape[1]):
            for j in range(len(place)):
                start[j] += known[n, i] * row[i, j]
            for m in range(inputs):
                slopes[m] += known[n, i] * bend[i, m]
        for e in range(experts):
            hidden[:] = start
            logit = offset[e]
            for m in range(inputs):
                view = viewed[m, n, e]
                logit += slopes[m] * view
                for j in range(len(place)):
                    hidden[j] += view * own[m, j]
            for j in range(len(place)):
                logit += out[j] * max(hidden[j], np.float32(0.0))
            logits[n, e] = logit
