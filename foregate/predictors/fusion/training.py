"""The network of `fusion` in torch, and its weights as plain arrays; `loop` trains it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.arrays import Float32, Int64
from foregate.errors import need
from foregate.predictors.calibration import sharpness
from foregate.predictors.fusion.inputs import TOKENS, Examples, Inputs, Lesson
from foregate.predictors.networks import loop, run
from foregate.predictors.networks.schedules import OneCycle
from foregate.predictors.session import Session

FORGET = 0.1  # share of the tokens that are made unknown while training, so that unknown ones mean something
CLIP = 1.0
JUDGED = 2048  # tokens judged at once
LESSONS = 32  # of an epoch, at least, while each has as many tokens: a short trace is not learned in a dozen steps
SAMPLES = 2048  # rows that a temperature is taken from

Rows = Callable[[Int64], Int64]
"""Token ids -> the rows of their embeddings, in the same shape."""


@dataclass(frozen=True)
class Recipe:
    """The network and how it is trained; `Fusion` says what each means."""

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
    words: Float32
    sets: Float32
    before: Float32
    reads: Float32
    numbers: Float32
    own: Float32
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
    """The epoch with the best recall@k on `judged`, over all its questions, or if bank's vote alone has as much, that;
    then a temperature for each (distance, layer) from them.

    told, session  see `loop.train`

    Raises: what `loop.train` does.
    """
    torch = need("torch", "train")
    inputs, centre = learned.inputs, _centre(learned)
    size = min(recipe.batch, max(LESSONS, len(learned.tokens) // LESSONS))

    def batches(epoch: int) -> Iterator[Any]:
        for chosen in learned.lessons(size, recipe.seed + epoch):
            yield _embedded(learned.lesson(chosen), rows)

    fitted = loop.train(
        lambda: _network(torch, recipe, inputs, centre),
        batches,
        lambda model, lesson: _loss(model(lesson), lesson),
        lambda model: _recall(torch, model, judged, rows),
        recipe.loop,
        steps=len(learned.lessons(size, 0)),
        told=told,
        session=session,
    )
    module, state = _network(torch, recipe, inputs, centre).eval(), _as_it_began(fitted.state)
    _put(torch, state, module)
    with torch.no_grad():
        if _recall(torch, module, judged, rows) < fitted.score:
            state = fitted.state
            _put(torch, state, module)
    own = ("reads", "numbers", "own", "bias", "out", "base", "trust")
    stacked = {name: _stacked(state, name, inputs.layers) for name in own}
    # What asks afterwards neither scales nor centres: the weights do it.
    stacked["reads"] *= np.array([_reading(target) for target in range(inputs.layers)], dtype=np.float32)[:, None, None]
    stacked["bias"] -= np.einsum("lc,lch->lh", centre, stacked["numbers"])
    carried = state["sets"] @ (state["carry"] * np.float32(_carrying(inputs)))
    return Fitted(
        tokens=state["tokens"],
        words=state["words"],
        sets=state["sets"],
        before=carried,
        sharpness=_sharpness(torch, module, judged, rows),
        **stacked,
    )


def _put(torch: Any, state: dict[str, Float32], module: Any) -> None:
    module.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})


def _as_it_began(state: dict[str, Float32]) -> dict[str, Float32]:
    """The weights with the output of an untrained network, which is bank's vote: better than what was learned from a
    trace that is too short.
    """
    first = {"out": np.zeros_like, "base": np.zeros_like, "trust": np.ones_like}
    return {name: first.get(name.partition(".")[0], np.copy)(array) for name, array in state.items()}


def _embedded(lesson: Lesson, rows: Rows) -> Lesson:
    """The lesson with rows of embeddings instead of token ids."""
    return lesson._replace(tokens=rows(lesson.tokens))


def _reading(target: int) -> float:
    """What a target's reading of the state is scaled by: the more sets have been added, the less."""
    return float((1 + target) ** -0.5)


def _carrying(inputs: Inputs) -> float:
    """The same of a whole token's sets, for the token after it."""
    return float(inputs.layers**-0.5)


def _stacked(state: dict[str, Float32], name: str, layers: int) -> Float32:
    return np.stack([state[f"{name}.{target}"] for target in range(layers)])


def _centre(learned: Examples) -> Float32:
    """[L, columns] the mean of each target's numbers, of up to SAMPLES tokens. Around zero they train better:
    logarithms of votes are about -5, and would leave half of the hidden units always on, the others always off.
    """
    found = np.zeros((learned.inputs.layers, learned.inputs.columns), dtype=np.float32)
    for question in learned.lesson(learned.lessons(SAMPLES, 0)[0]).questions:
        if question.distance == 1:
            found[question.target] = question.numbers.mean(axis=0)
    return found


def _network(torch: Any, recipe: Recipe, inputs: Inputs, centre: Float32) -> Any:
    nn = torch.nn

    def drawn(rows: int, columns: int, scale: float = 1.0) -> Any:
        return nn.Parameter(torch.empty(rows, columns).uniform_(-scale, scale) * rows**-0.5)

    def added(table: Any, rows: Any, size: int) -> Any:
        """[N, I / size, .] what rows [N, I] of a table add up to, `size` at a time."""
        place, worth = rows.place.reshape(-1, size), (rows.worth * (rows.place >= 0)).reshape(-1, size)
        found = nn.functional.embedding_bag(place.clamp(min=0), table, per_sample_weights=worth, mode="sum")
        return found.reshape(len(rows.place), -1, table.shape[1])

    class Network(nn.Module):  # type: ignore[name-defined,misc]
        """Lesson -> the logits of its questions, [M, E] each. What targets do not share is a parameter for each target:
        those that a lesson does not ask about get no gradient.
        """

        def __init__(self) -> None:
            super().__init__()
            targets, D, H, E = range(inputs.layers), recipe.width, recipe.width, inputs.experts
            self.tokens = nn.Parameter(0.3 * torch.randn(recipe.buckets + 1, recipe.token_size))
            self.words = drawn(TOKENS * recipe.token_size, D, scale=TOKENS**0.5)
            self.sets = nn.Parameter(0.3 * torch.randn(inputs.shared, D))
            self.carry = drawn(D, D, scale=0.3)
            self.reads = nn.ParameterList([drawn(D, H) for _ in targets])
            self.numbers = nn.ParameterList([drawn(inputs.columns, H) for _ in targets])
            self.own = nn.ParameterList([drawn(inputs.own, H) for _ in targets])
            self.bias = nn.ParameterList([nn.Parameter(torch.zeros(H)) for _ in targets])
            # It begins as bank's vote, and stays near it where there is little to learn from.
            self.out = nn.ParameterList([nn.Parameter(torch.zeros(H, E)) for _ in targets])
            self.base = nn.ParameterList([nn.Parameter(torch.zeros(E)) for _ in targets])
            self.trust = nn.ParameterList([nn.Parameter(torch.ones(())) for _ in targets])
            self.dropout = nn.Dropout(recipe.dropout)
            self.register_buffer("centre", torch.from_numpy(centre), persistent=False)

        def forward(self, lesson: Any) -> Any:
            states = self.states(lesson)
            return [self.answer(question, states) for question in lesson.questions]

        def states(self, lesson: Any) -> list[Any]:
            """[N, D] the tokens' state when 0, 1, .. L layers have been routed."""
            token = lesson.tokens
            if self.training:
                token = token.masked_fill(torch.rand(token.shape, device=token.device) < FORGET, recipe.buckets)
            words = nn.functional.embedding(token, self.tokens).flatten(1) @ self.words
            before = added(self.sets, lesson.before, inputs.layers * inputs.top_k)[:, 0] @ self.carry
            states = [words + before * _carrying(inputs)]
            for routed in added(self.sets, lesson.sets, inputs.top_k).unbind(1):
                states.append(states[-1] + routed)
            return states

        def answer(self, question: Any, states: list[Any]) -> Any:
            target, numbers = question.target, question.numbers
            state = states[target - question.distance + 1][question.which] * _reading(target)
            hidden = state @ self.reads[target] + (numbers - self.centre[target]) @ self.numbers[target]
            hidden = hidden + added(self.own[target], question.own, 2 * inputs.top_k + 1)[:, 0] + self.bias[target]
            logits = self.dropout(hidden.relu()) @ self.out[target] + self.base[target]
            return logits + self.trust[target] * numbers[:, inputs.log_vote]

    return Network()


def _loss(logits: list[Any], lesson: Any) -> Any:
    """Cross entropy of the routed set, each of its experts sharing it alike; the mean over all that is asked."""
    total, asked = 0.0, 0
    for said, question in zip(logits, lesson.questions, strict=True):
        answers = question.answers
        total = total - ((said.log_softmax(dim=1) * answers).sum(dim=1) / answers.sum(dim=1)).sum()
        asked += len(answers)
    return total / max(asked, 1)


def _asked(model: Any, judged: Examples, rows: Rows) -> Iterator[tuple[int, int, Any, Any]]:
    """(target, distance, logits, answers) of everything that judges."""
    device = next(model.parameters()).device
    for chosen in judged.lessons(JUDGED, 0):
        lesson = run.moved(_embedded(judged.lesson(chosen), rows), device)
        for logits, question in zip(model(lesson), lesson.questions, strict=True):
            yield question.target, question.distance, logits.cpu(), question.answers.cpu()


def _recall(torch: Any, model: Any, judged: Examples, rows: Rows) -> float:
    """Share of the routed experts among the k first guesses."""
    found, asked = 0.0, 0.0
    for _, _, logits, answers in _asked(model, judged, rows):
        guesses = logits.topk(judged.inputs.top_k, dim=1)[1]
        found += float(answers.gather(1, guesses).sum())
        asked += float(answers.sum())
    return found / max(asked, 1.0)


def _sharpness(torch: Any, model: Any, judged: Examples, rows: Rows) -> Float32:
    """[horizon, L] what each (distance, layer) multiplies its logits by, from up to SAMPLES of the rows that judged."""
    inputs = judged.inputs
    found = np.ones((inputs.horizon, inputs.layers), dtype=np.float32)
    given: dict[tuple[int, int], list[tuple[Float32, Float32]]] = defaultdict(list)
    with torch.no_grad():
        for target, distance, logits, answers in _asked(model, judged, rows):
            given[distance - 1, target].append((logits.numpy(), answers.numpy()))
    for place, parts in given.items():
        logits, answers = (np.concatenate(column)[:SAMPLES] for column in zip(*parts, strict=True))
        found[place] = sharpness(logits, answers, inputs.top_k)
    return found
