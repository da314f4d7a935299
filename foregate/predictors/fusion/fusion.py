"""The registry's best guess from ids alone: `bank`'s vote, corrected by a network that all layers share in part."""

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
from foregate.predictors.fusion.inputs import TOKENS, Asked, Examples, Inputs
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
    """A token has a state, to which it and the token before add what their ids and routed sets say; each target reads
    the state of the moment into a hidden layer of its own, together with what is the target's alone (the set of the
    layer before it, the one that the token before had there, the mean of the sequence's latest sets there, what `bank`
    says, the distance):

        state     = words(token, token before) + sets(routed so far) + before(all sets of the token before)
        log score = trust * log bank + out @ relu(reads @ state + numbers + own + bias) + base

    which `chances.drawn` makes into shares of the routed set. What adds to the state is learned from all targets, the
    rest from one. While it trains, bank answers for a token without that token's own prompt. Where no epoch does better
    than bank alone on the prompts that judge, it says what bank says. Each (distance, layer) gets a temperature from
    those prompts. It answers before the first layer is routed, too; farther ahead than `horizon`, layer frequency does.

    width        of the state and of the hidden layers
    token_size   of a token's embedding
    buckets      tokens with the same id modulo this share an embedding; those never trained on share one too
    dropout, learning_rate, weight_decay, epochs, seed
    batch        tokens that are learned from at once; fewer where an epoch would have less than 32 such lessons
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
    words_: Float32 = field(init=False, repr=False)  # [TOKENS * S, D]
    sets_: Float32 = field(init=False, repr=False)  # [L * E, D], as Rows of all layers say
    before_: Float32 = field(init=False, repr=False)  # [L * E, D]
    reads_: Float32 = field(init=False, repr=False)  # [L, D, H]
    numbers_: Float32 = field(init=False, repr=False)  # [L, columns of Inputs.numbers, H]
    own_: Float32 = field(init=False, repr=False)  # [L, rows of Inputs.own, H]
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
        if not len(learned.tokens) or not len(judged.tokens):
            raise TraceError(f"{len(trace)} training tokens are too few to train on some and judge by others")
        state = train(self._recipe(), learned, judged, self._rows, told=self.on_epoch, session=self.session)
        self.tokens_, self.words_, self.sets_, self.before_ = state.tokens, state.words, state.sets, state.before
        self.tokens_[:-1][~self.known_] = 0  # never looked at; zeros take no room in a file
        self.reads_, self.numbers_, self.own_, self.bias_ = state.reads, state.numbers, state.own, state.bias
        self.out_, self.base_, self.trust_, self.sharpness_ = state.out, state.base, state.trust, state.sharpness
        return self

    def predict(self, query: Query) -> Float32:
        given = self.features(query)
        if given is None:
            return np.repeat(self.frequency_[query.target][None], query.rows, axis=0)
        target = query.target
        hidden = self.hidden_in(given) + self.bias_[target]
        np.maximum(hidden, 0, out=hidden)
        logits = hidden @ self.out_[target] + self.logits_in(given)
        return drawn(logits * self.sharpness_[query.distance - 1, target], query.spec.top_k)

    def features(self, query: Query) -> dict[str, Any] | None:
        """numbers [N, columns] with bank's vote; sets [N, I], before, own and what their rows are worth (see Rows);
        token [N, TOKENS] the rows of their embeddings; target, distance. None beyond the horizon.
        """
        if query.distance > self.horizon:
            return None
        asked = Asked.of(query, self.horizon)
        sets, before = asked.sets(), asked.before()
        own = sets.at(query.target, query.distance, before, asked.inputs)
        return {
            "numbers": asked.numbers(query.target, self.members_[0].predict(query), self.window),
            "sets": sets.place,
            "sets_worth": sets.worth,
            "before": before.place,
            "before_worth": before.worth,
            "own": own.place,
            "own_worth": own.worth,
            "token": self._rows(asked.tokens()),
            "target": np.array(query.target),
            "distance": np.array(query.distance),
        }

    def hidden_in(self, given: Mapping[str, Any]) -> Float32:
        """[N, H] what `features` give the hidden layer of their target, without its bias."""
        target = int(given["target"])
        state = self.tokens_[given["token"]].reshape(-1, len(self.words_)) @ self.words_
        _gather(given["sets"], given["sets_worth"], self.sets_, state)
        _gather(given["before"], given["before_worth"], self.before_, state)
        found: Float32 = state @ self.reads_[target]
        found += given["numbers"] @ self.numbers_[target]
        _gather(given["own"], given["own_worth"], self.own_[target], found)
        return found

    def logits_in(self, given: Mapping[str, Any]) -> Float32:
        """[N, E] what `features` give the logits directly: bank's vote, and the base."""
        target, E = int(given["target"]), self.base_.shape[1]
        vote = given["numbers"][:, 2 * E :]
        found: Float32 = self.base_[target] + self.trust_[target] * vote
        return found

    def graph(self, spec: MoESpec) -> Graph:
        """What `predict` does after bank has voted, as a graph."""
        graph, inputs = Graph(), Inputs.of(spec, self.horizon)
        constant = graph.constant
        known = graph.input("numbers", np.float32, "N", inputs.columns)
        places = {name: graph.input(name, np.int64, "N", f"rows of {name}") for name in ("sets", "before", "own")}
        worths = {name: graph.input(f"{name}_worth", np.float32, "N", f"rows of {name}") for name in places}
        token = graph.input("token", np.int64, "N", TOKENS)
        target, distance = graph.input("target", np.int64), graph.input("distance", np.int64)

        def told(name: str, table: str) -> str:
            """What rows of a table add up to."""
            absent = graph("Less", places[name], constant(np.int64(0)))
            rows = graph("Gather", table, graph("Where", absent, constant(np.int64(0)), places[name]))
            worth = graph("Where", absent, constant(np.float32(0)), worths[name])
            worth = graph("Unsqueeze", worth, constant(np.array([2])))
            return graph("ReduceSum", graph("Mul", rows, worth), constant(np.array([1])), keepdims=0)

        words = graph("Flatten", graph("Gather", constant(self.tokens_), token))
        state = graph("MatMul", words, constant(self.words_))
        state = graph("Add", state, told("sets", constant(self.sets_)))
        state = graph("Add", state, told("before", constant(self.before_)))
        hidden = graph("MatMul", state, graph.row(self.reads_, target))
        hidden = graph("Add", hidden, graph("MatMul", known, graph.row(self.numbers_, target)))
        hidden = graph("Add", hidden, told("own", graph.row(self.own_, target)))
        hidden = graph("Relu", graph("Add", hidden, graph.row(self.bias_, target)))
        logits = graph("Add", graph("MatMul", hidden, graph.row(self.out_, target)), graph.row(self.base_, target))
        vote = graph("Gather", known, constant(np.arange(inputs.columns)[inputs.log_vote]), axis=1)
        logits = graph("Add", logits, graph("Mul", vote, graph.row(self.trust_, target)))
        ahead = graph("Sub", distance, constant(np.int64(1)))
        sharpness = graph("Gather", graph.row(self.sharpness_, ahead), target)
        graph.answer(draw_out(graph, graph("Mul", logits, sharpness), spec.top_k), spec.num_experts)
        return graph

    def covers(self, query: Query) -> Bool:
        return everywhere(query) if query.distance <= self.horizon else ~everywhere(query)

    def _rows(self, token_id: Int) -> Int64:
        """The row of each token's embedding, in the shape of the ids."""
        rows: Int64 = _embedded(token_id.ravel(), self.known_).reshape(token_id.shape)
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
def _embedded(token_id: Int, known: Bool) -> Int64:
    """[N] each token's bucket, or the row after the last one where it is unknown or was never trained on."""
    found = np.full(len(token_id), len(known), dtype=np.int64)
    for n in range(len(token_id)):
        if token_id[n] >= 0 and known[token_id[n] % len(known)]:
            found[n] = token_id[n] % len(known)
    return found
