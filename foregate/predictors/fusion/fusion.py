"""The registry's best guess from ids alone: `bank`'s vote, corrected by a small network per target layer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, final

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Int, Int64
from foregate.errors import ChoiceError, TraceError
from foregate.history import Query
from foregate.predictors.base import Need, Predictor
from foregate.predictors.chances import drawn
from foregate.predictors.counting import everywhere, layer_frequency
from foregate.predictors.fusion.inputs import Asked, Examples, Inputs
from foregate.predictors.fusion.training import Recipe, train
from foregate.predictors.graph import Graph, draw_out
from foregate.predictors.memory.bank import Bank
from foregate.predictors.space import Choice, Range
from foregate.spec import MoESpec
from foregate.splits import held_out
from foregate.traces.schema import Trace


@final
@dataclass
class Fusion(Predictor):
    """One hidden layer per target, over what a runtime knows before the target runs: this token's routed sets so far,
    the previous token's set at the target, the mean of the sequence's latest sets there, the token itself (embedded),
    the distance, and what `bank` says. Its answer is a correction of bank's:

        log score = trust * log bank + out @ relu(inputs) + base

    which `chances.drawn` makes into shares of the routed set. While it trains, bank answers for a token without that
    token's own prompt. Afterwards each (distance, layer) gets its temperature from the prompts that judged. It answers
    before the first layer is routed, too; farther ahead than `horizon`, layer frequency does.

    width        of the hidden layers
    token_size   of a token's embedding
    buckets      tokens with the same id modulo this share an embedding; those never trained on share one too
    dropout, learning_rate, weight_decay, batch, epochs, seed
    horizon      the largest distance it learns; half of its lessons are one layer ahead
    window, neighbours  of `bank`
    threads      CPU threads that fit; with one, a seed gives the same weights however many there are
    device       where torch fits, "cpu" or "cuda"; it always answers in compiled code and numpy
    """

    width: int = 512
    token_size: int = 64
    buckets: int = 32_768
    dropout: float = 0.2
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    batch: int = 512
    epochs: int = 6
    horizon: int = 1
    window: int = 256
    neighbours: int = 128
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    frequency_: Float32 = field(init=False, repr=False)
    members_: tuple[Bank, ...] = field(init=False, repr=False)
    known_: Bool = field(init=False, repr=False)  # [buckets] whether a token of it was trained on
    tokens_: Float32 = field(init=False, repr=False)  # [buckets + 1, S], the last for unknown ones
    sets_: dict[str, Float32] = field(init=False, repr=False)  # per target [rows of Inputs.sets, H]
    numbers_: Float32 = field(init=False, repr=False)  # [L, columns of Inputs.numbers + S, H]
    bias_: Float32 = field(init=False, repr=False)  # [L, H]
    out_: Float32 = field(init=False, repr=False)  # [L, H, E]
    base_: Float32 = field(init=False, repr=False)  # [L, E]
    trust_: Float32 = field(init=False, repr=False)  # [L]
    sharpness_: Float32 = field(init=False, repr=False)  # [horizon, L]
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset()
    space: ClassVar[Mapping[str, Choice]] = {
        "learning_rate": Range(2e-4, 1e-2, log=True),
        "weight_decay": Range(1e-3, 1.0, log=True),
        "dropout": Range(0.0, 0.6),
        "width": Range(64, 1024, log=True),
        "token_size": Range(8, 128, log=True),
    }

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        if not 1 <= self.horizon <= trace.spec.num_layers:
            raise ChoiceError(
                f"horizon {self.horizon} does not fit {trace.spec.num_layers} layers; choose one between 1 and that"
            )
        self.frequency_ = layer_frequency(trace)
        bank = Bank(window=self.window, neighbours=self.neighbours, horizon=self.horizon, seed=self.seed)
        self.members_ = (bank.fit(trace),)
        self.known_ = np.zeros(self.buckets, dtype=np.bool_)
        self.known_[trace.token_id[trace.token_id >= 0] % self.buckets] = True
        inputs = Inputs.of(trace.spec, self.horizon)
        if validation is not None:
            learned = Examples.of(trace, inputs, bank, seed=self.seed, inside=True)
            judged = Examples.of(validation, inputs, bank, seed=self.seed)
        else:
            held = held_out(trace, self.seed)
            examples = Examples.of(trace, inputs, bank, seed=self.seed, inside=True)
            learned, judged = examples.only(~held), examples.only(held)
        if not learned.lessons(len(trace), 0) or not judged.lessons(len(trace), 0):
            raise TraceError(f"{len(trace)} training tokens are too few to train on some and judge by others")
        state = train(self._recipe(), learned, judged, self._rows, told=self.on_epoch, session=self.session)
        self.tokens_, self.sets_ = state.tokens, state.sets
        self.tokens_[:-1][~self.known_] = 0  # never looked at; zeros take no room in a file
        self.numbers_, self.bias_, self.out_ = state.numbers, state.bias, state.out
        self.base_, self.trust_, self.sharpness_ = state.base, state.trust, state.sharpness
        return self

    def predict(self, query: Query) -> Float32:
        given = self.features(query)
        if given is None:
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        target, plain = query.target, given["numbers"]
        state = self.numbers_in(given, target)
        state += self.bias_[target]
        _gather(given["rows"], given["worth"], self.sets_[str(target)], state)
        np.maximum(state, 0, out=state)
        logits = state @ self.out_[target] + self.base_[target]
        logits += self.trust_[target] * plain[:, Inputs.of(query.spec, self.horizon).log_vote]
        return drawn(logits * self.sharpness_[query.distance - 1, target], query.spec.top_k)

    def features(self, query: Query) -> dict[str, Any] | None:
        """numbers [N, columns] with bank's vote, rows and worth [N, I] (see Asked), token [N] the row of its embedding,
        target, distance; None beyond the horizon.
        """
        if query.distance > self.horizon:
            return None
        inputs, asked = Inputs.of(query.spec, self.horizon), Asked.of(query)
        rows, worth = asked.sets(inputs)
        return {
            "numbers": asked.numbers(inputs, self.members_[0].predict(query), self.window),
            "rows": rows,
            "worth": worth,
            "token": self._rows(query.token_id),
            "target": np.array(query.target),
            "distance": np.array(query.distance),
        }

    def numbers_in(self, given: Mapping[str, Any], target: int) -> Float32:
        """[N, H] what numbers and token embedding of `features` give the hidden layer of a target."""
        found: Float32 = (
            np.concatenate([given["numbers"], self.tokens_[given["token"]]], axis=1) @ self.numbers_[target]
        )
        return found

    def graph(self, spec: MoESpec) -> Graph:
        """What `predict` does after bank has voted, as a graph. The targets' tables stand one after the other."""
        graph, inputs = Graph(), Inputs.of(spec, self.horizon)
        constant = graph.constant
        known = graph.input("numbers", np.float32, "N", inputs.columns)
        rows, worth = graph.input("rows", np.int64, "N", "I"), graph.input("worth", np.float32, "N", "I")
        token = graph.input("token", np.int64, "N")
        target, distance = graph.input("target", np.int64), graph.input("distance", np.int64)
        tables = [self.sets_[str(layer)] for layer in range(spec.num_layers)]
        starts = np.cumsum([0, *map(len, tables[:-1])])
        absent = graph("Less", rows, constant(np.int64(0)))
        place = graph("Add", graph("Where", absent, constant(np.int64(0)), rows), graph.row(starts, target))
        sets = graph("Gather", constant(np.concatenate(tables)), place)
        weight = graph("Unsqueeze", graph("Where", absent, constant(np.float32(0)), worth), constant(np.array([2])))
        told = graph("ReduceSum", graph("Mul", sets, weight), constant(np.array([1])), keepdims=0)
        plain = graph("Concat", known, graph("Gather", constant(self.tokens_), token), axis=1)
        state = graph("Add", graph("MatMul", plain, graph.row(self.numbers_, target)), graph.row(self.bias_, target))
        state = graph("Relu", graph("Add", state, told))
        logits = graph("Add", graph("MatMul", state, graph.row(self.out_, target)), graph.row(self.base_, target))
        vote = graph("Gather", known, constant(np.arange(inputs.columns)[inputs.log_vote]), axis=1)
        logits = graph("Add", logits, graph("Mul", vote, graph.row(self.trust_, target)))
        ahead = graph("Sub", distance, constant(np.int64(1)))
        sharpness = graph("Gather", graph.row(self.sharpness_, ahead), target)
        graph.answer(draw_out(graph, graph("Mul", logits, sharpness), spec.top_k), spec.num_experts)
        return graph

    def covers(self, query: Query) -> Bool:
        return everywhere(query) if query.distance <= self.horizon else ~everywhere(query)

    def _rows(self, token_id: Int) -> Int64:
        """[N] the row of each token's embedding."""
        rows: Int64 = _places(token_id, self.known_)
        return rows

    def _recipe(self) -> Recipe:
        return Recipe(
            width=self.width,
            token_size=self.token_size,
            buckets=self.buckets,
            dropout=self.dropout,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            batch=self.batch,
            epochs=self.epochs,
            seed=self.seed,
            threads=self.threads,
            device=self.device,
        )


@njit(cache=True)  # type: ignore[untyped-decorator]
def _gather(rows: Int64, worth: Float32, table: Float32, state: Float32) -> None:
    """Add worth [N, I] times rows [N, I] of a table [., H] to state [N, H]; -1 = nothing."""
    for n in range(rows.shape[0]):
        add_rows(rows[n], worth[n], table, state[n])


@njit(cache=True)  # type: ignore[untyped-decorator]
def add_rows(rows: Int64, worth: Float32, table: Float32, total: Float32) -> None:
    """The same of one token: rows and worth [I], total [H]."""
    for i in range(len(rows)):
        if rows[i] >= 0:
            row, times = table[rows[i]], worth[i]
            for h in range(len(total)):  # plain arrays, so that the compiler adds several at once
                total[h] += times * row[h]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _places(token_id: Int, known: Bool) -> Int64:
    """[N] each token's bucket, or the row after the last one where it is unknown or was never trained on."""
    found = np.full(len(token_id), len(known), dtype=np.int64)
    for n in range(len(token_id)):
        if token_id[n] >= 0 and known[token_id[n] % len(known)]:
            found[n] = token_id[n] % len(known)
    return found
