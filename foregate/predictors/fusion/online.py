"""`fusion` that goes on learning while a sequence runs, from what its routers have chosen so far."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self, final

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Int, Int64
from foregate.errors import ChoiceError
from foregate.history import Query, Replay
from foregate.predictors.base import Need, Predictor
from foregate.predictors.calibration import sharpness
from foregate.predictors.chances import drawn
from foregate.predictors.counting import one_hot
from foregate.predictors.fusion.fusion import Fusion, add_rows
from foregate.predictors.fusion.inputs import Inputs
from foregate.predictors.mixing.members import completed, needs, unfitted
from foregate.predictors.space import Choice, Range
from foregate.spec import MoESpec
from foregate.traces.schema import Trace

KEPT = 4  # sequences whose learned weights are kept, for each target and distance
SAMPLES = 4096  # validation rows that a temperature is taken from, at least
Tables = tuple[Float32, Float32, Float32]
"""What goes on learning of one target: rows that are added to what was fitted [R, H], bias [H], output map [H, E]."""


@dataclass(frozen=True, eq=False)
class Lessons:
    """Tokens as a target's network sees them.

    fixed   [N, H] the part of the hidden layer that stays as it was fitted
    logits  [N, E] the same of the output: bank's vote, and the base
    rows, worth  [N, I] what is added to it: a row for each of the token's own sets, for the one that the token before
            had at the target, and for the distance
    """

    fixed: Float32
    logits: Float32
    rows: Int64
    worth: Float32

    @classmethod
    def of(cls, fusion: Fusion, query: Query) -> "Lessons":
        """A query's rows, for a network of its target."""
        given = fusion.features(query)
        assert given is not None, "asked beyond the horizon"
        E, k = query.spec.num_experts, query.spec.top_k
        own = given["own"][:, k:]  # without the layer before the target, which is among the token's sets
        own = np.where(own >= 0, own + (query.target - 1) * E, -1)
        return cls(
            fusion.hidden_in(given),
            fusion.logits_in(given),
            np.concatenate([given["sets"], own], axis=1),
            np.concatenate([given["sets_worth"], given["own_worth"][:, k:]], axis=1),
        )

    def since(self, first: int) -> "Lessons":
        """Without the tokens before."""
        return Lessons(self.fixed[first:], self.logits[first:], self.rows[first:], self.worth[first:])


@dataclass(eq=False)
class Learned:
    """What one sequence has taught about one question.

    place     the first token that was learned from, and how many there have been, both counted from the first of all
    token_id  [place[1]] the sequence's tokens so far, and answers [place[1], k], what the target's router chose: they
              say whether it is the same sequence
    asked     the last token that was asked about, its place, id and routed sets [., k], copied: most often it is the
              next lesson
    """

    place: Int64
    token_id: Int
    answers: Int
    tables: Tables
    asked: tuple[int, int, Int, Lessons] | None = None

    def began(self, query: Query) -> bool:
        """Whether the query is of this sequence, later on."""
        size, past = int(self.place[1]), query.past
        return (
            size <= int(query.seen.min())
            and np.array_equal(self.token_id, past.token_id[:size])
            and np.array_equal(self.answers, past.experts[:size, query.target])
        )

    def lesson(self, query: Query, token: int) -> Lessons | None:
        """The past's token as it was asked about, if it was the last."""
        if self.asked is None:
            return None
        place, token_id, routed, lesson = self.asked
        past, known = query.past, query.layer + 1
        same = (
            place == token
            and token_id == int(past.token_id[token])
            and np.array_equal(routed, past.experts[token, :known])
        )
        return lesson if same else None


@final
@dataclass
class Online(Predictor):
    """`fusion` that goes on learning: after each token of a sequence, its networks take one step down the gradient of
    the surprise at what the target's router chose. What learns is the output map, and of the hidden layer the bias and
    what the experts that were routed to add to it; the next sequence begins with the fitted weights again.

    Which tokens were learned from follows from how many there are and not from who asked before: those since the
    beginning of the window before the present one. So a score depends on the past alone, and learning anew costs two
    windows at most. A sequence that is asked token by token keeps its weights, for each distance as much memory as the
    tables of a target; beyond KEPT sequences at once, each is learned anew every time.

    members  one or more fusions, with options in parentheses or as files, joined by "+"; their logits are averaged
    rate     of descent, for the output map
    inner    the same for the hidden layer
    window   in tokens
    horizon  of members that are fitted here
    seed     of the validation prompts that a temperature is taken from

    Source: "Dynamic Evaluation of Neural Sequence Models" (Krause et al. 2018).
    """

    members: str = "fusion"
    rate: float = 0.01
    inner: float = 0.03
    window: int = 256
    horizon: int = 1
    seed: int = 0
    members_: tuple[Fusion, ...] = field(init=False, repr=False)
    sharpness_: Float32 = field(init=False, repr=False)  # [horizon, L] what multiplies the logits
    kept: dict[tuple[int, int, int], list[Learned]] = field(init=False, repr=False, compare=False)
    probabilities: ClassVar[bool] = True
    space: ClassVar[Mapping[str, Choice]] = {
        "rate": Range(1e-3, 0.1, log=True),
        "inner": Range(1e-3, 0.3, log=True),
    }

    def __post_init__(self) -> None:
        self.kept = {}
        if self.window < 1:
            raise ChoiceError(f"online:window={self.window} leaves nothing to learn from; choose 1 or more")

    @property
    def needs(self) -> frozenset[Need]:
        """What its members need."""
        return needs(self.members, vars(self).get("members_", ()))

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        return self.over(lambda fusion: fusion.fit(trace, validation), trace.spec, validation)

    def over(self, fit: Callable[[Fusion], Fusion], spec: MoESpec, validation: Trace | None = None) -> Self:
        """Fitted, by another way to fit its members, or to find fitted ones; those that are files stay as they are.
        What is left after it is a temperature for each question, from validation prompts, or where there are none, the
        members' own.
        """
        members = unfitted(self.members, self.horizon, spec)
        fusions = [member for member in members if isinstance(member, Fusion)]
        if len(fusions) < len(members):
            raise ChoiceError(f"online goes on where fusion ended; {self.members!r} holds another predictor")
        self.members_ = completed(self.members, fusions, fit)
        self.kept = {}
        self.sharpness_ = np.mean([fusion.sharpness_[: self._reach] for fusion in self.members_], axis=0)
        if validation is not None:
            rows = list(validation.sequences())
            order = np.random.default_rng(self.seed).permutation(len(rows)).tolist()
            sequences = [validation.take(rows[which]) for which in order]
            for distance in range(1, self._reach + 1):
                for target in range(distance - 1, spec.num_layers):
                    self._judge(sequences, distance, target)
        return self

    def predict(self, query: Query) -> Float32:
        if query.distance > self._reach:
            return self.members_[0].predict(query)
        return drawn(self._logits(query) * self.sharpness_[query.distance - 1, query.target], query.spec.top_k)

    def covers(self, query: Query) -> Bool:
        return self.members_[0].covers(query)

    @property
    def _reach(self) -> int:
        """The largest distance that all members learned."""
        return min(fusion.horizon for fusion in self.members_)

    def _judge(self, sequences: Sequence[Trace], distance: int, target: int) -> None:
        """Take the temperature of one question from the first of these with SAMPLES rows."""
        found: list[tuple[Float32, Float32]] = []
        for sequence in sequences:
            answers, spec = sequence.answers_at(target), sequence.spec
            asked = np.flatnonzero((answers >= 0).any(axis=1))
            if len(asked):
                query = Replay(sequence, as_decode=True).query(target - distance, target, asked)
                found.append((self._logits(query), one_hot(answers[asked], spec.num_experts)))
            if sum(len(rows) for rows, _ in found) >= SAMPLES:
                break
        if found:
            logits, routed = (np.concatenate(column) for column in zip(*found, strict=True))
            self.sharpness_[distance - 1, target] = sharpness(logits, routed, sequences[0].spec.top_k)

    def _logits(self, query: Query) -> Float32:
        """[N, E] the members' mean."""
        found = np.zeros((query.rows, query.spec.num_experts), dtype=np.float32)
        for which, fusion in enumerate(self.members_):
            found += self._follow(which, fusion, query) / len(self.members_)
        return found

    def _follow(self, which: int, fusion: Fusion, query: Query) -> Float32:
        """[N, E] one member's logits, each row's with what the tokens before it have taught."""
        found = np.empty((query.rows, query.spec.num_experts), dtype=np.float32)
        if not query.rows:
            return found
        target, past, order = query.target, query.past, np.argsort(query.seen, kind="stable")
        trained = (fusion.bias_[target], fusion.out_[target])
        begins = np.maximum(query.seen // self.window - 1, 0) * self.window
        kept = self.kept.setdefault((which, query.distance, target), [])
        learned = next((one for one in kept if one.began(query)), None)
        if learned is None:
            begin = np.full(2, begins.min(), dtype=np.int64)
            inputs = Inputs.of(query.spec, fusion.horizon)
            added = np.zeros(((target - 1) * inputs.experts + inputs.own, fusion.width), dtype=np.float32)
            tables = (added, trained[0].copy(), trained[1].copy())
            learned = Learned(begin, past.token_id[:0], past.experts[:0, target], tables)
        else:
            kept.remove(learned)
        first, end = int(np.where(begins == learned.place[0], learned.place[1], begins).min()), int(query.seen.max())
        asked = Lessons.of(fusion, query)
        if _is_past(query, first):
            lessons = asked.since(first - int(query.seen[0]))
        else:
            last = learned.lesson(query, first) if end == first + 1 else None
            lessons = last or _past(fusion, query, slice(first, max(first, end)))
        _walk(
            (query.seen, asked.fixed, asked.logits, asked.rows, asked.worth),
            (first, past.experts[first:end, target], lessons.fixed, lessons.logits, lessons.rows, lessons.worth),
            (order, begins, np.float32(self.rate), np.float32(self.inner)),
            (trained, learned.tables, learned.place),
            found,
        )
        if query.rows == 1:  # the next token will come; many at once are a replay, or a prompt
            size = int(learned.place[1])
            learned.token_id, learned.answers = past.token_id[:size].copy(), past.experts[:size, target].copy()
            learned.asked = (int(query.seen[0]), int(query.token_id[0]), query.routed[0].copy(), asked)
            kept.append(learned)
            del kept[:-KEPT]
        return found


def _past(fusion: Fusion, query: Query, rows: slice) -> Lessons:
    """The past's tokens as they would have been asked about."""
    past, known = query.past, query.layer + 1
    asked = replace(
        query,
        token_id=past.token_id[rows],
        routed=past.experts[rows, :known],
        weights=None if past.weights is None else past.weights[rows, :known],
        seen=np.arange(rows.start, rows.stop, dtype=np.int64),
        hidden=None,
        residual=None,
    )
    return Lessons.of(fusion, asked)


def _is_past(query: Query, first: int) -> bool:
    """Whether the query's own rows are the past's tokens, one after the other, from the first one or before: a replay
    asks so.
    """
    start, end = int(query.seen[0]), int(query.seen[-1]) + 1
    past = query.past
    return (
        start <= first
        and query.rows > 1
        and end <= len(past.token_id)
        and np.array_equal(query.seen, np.arange(start, start + query.rows))
        and np.array_equal(query.token_id, past.token_id[start:end])
        and np.array_equal(query.routed, past.experts[start:end, : query.layer + 1])
    )


Asking = tuple[Int64, Float32, Float32, Int64, Float32]
Taught = tuple[int, Int, Float32, Float32, Int64, Float32]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _walk(
    asking: Asking,
    taught: Taught,
    how: tuple[Int64, Int64, float, float],
    weights: tuple[tuple[Float32, Float32], Tables, Int64],
    found: Float32,
) -> None:
    """Write the logits [N, E] of rows that saw `seen` tokens, learning from each token on the way.

    asking   seen [N], and the rows (see Lessons)
    taught   which token is the first, answers [M, k], and the tokens (see Lessons)
    how      the rows by `seen`, the token from which each learns, and the rates of output map and hidden layer
    weights  bias and output map as fitted; what is learned, with its place (see Learned): these are written to
    """
    seen, fixed, logits, rows, worth = asking
    first, answers, old_fixed, old_logits, old_rows, old_worth = taught
    order, begins, rate, inner = how
    trained, tables, place = weights
    state = np.empty(fixed.shape[1], dtype=np.float32)
    surprise = np.empty(found.shape[1], dtype=np.float32)
    for n in order:
        if begins[n] != place[0]:
            tables[0][:] = 0
            tables[1][:], tables[2][:] = trained
            place[:] = begins[n]
        while place[1] < seen[n]:
            t = place[1] - first
            _forward((old_fixed[t], old_rows[t], old_worth[t]), tables, state, old_logits[t], surprise)
            _learn((old_rows[t], old_worth[t], answers[t]), tables, (rate, inner), state, surprise)
            place[1] += 1
        _forward((fixed[n], rows[n], worth[n]), tables, state, logits[n], found[n])


@njit(cache=True)  # type: ignore[untyped-decorator]
def _forward(
    token: tuple[Float32, Int64, Float32], tables: Tables, state: Float32, logits: Float32, into: Float32
) -> None:
    """Write the hidden layer before it is cut off at zero, and the logits."""
    fixed, rows, worth = token
    sets, bias, out = tables
    for h in range(len(state)):
        state[h] = fixed[h] + bias[h]
    add_rows(rows, worth, sets, state)
    into[:] = logits
    for h in range(len(state)):
        if state[h] > 0:
            row, times = out[h], state[h]
            for e in range(len(into)):
                into[e] += times * row[e]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _slope(logits: Float32, answer: Int) -> bool:
    """Make logits [E] the slope of the cross entropy of a routed set [k]; False where it is not known."""
    size = 0
    for slot in range(len(answer)):
        size += answer[slot] >= 0
    if size == 0:
        return False
    best, total = logits.max(), np.float32(0)
    for e in range(len(logits)):
        logits[e] = np.exp(logits[e] - best)
        total += logits[e]
    for e in range(len(logits)):
        logits[e] /= total
    for slot in range(len(answer)):
        if answer[slot] >= 0:
            logits[answer[slot]] -= np.float32(1) / np.float32(size)
    return True


@njit(cache=True, fastmath={"reassoc", "contract"})  # type: ignore[untyped-decorator]
def _learn(
    token: tuple[Int64, Float32, Int],
    tables: Tables,
    rates: tuple[float, float],
    state: Float32,
    logits: Float32,
) -> None:
    """One step down the gradient of the cross entropy of the routed set; logits [E] become its slope."""
    rows, worth, answer = token
    sets, bias, out = tables
    rate, inner = rates
    if not _slope(logits, answer):
        return
    for h in range(len(state)):
        if state[h] <= 0:
            state[h] = 0
            continue
        row, pull, times = out[h], np.float32(0), rate * state[h]
        for e in range(len(logits)):
            pull += row[e] * logits[e]
        for e in range(len(logits)):
            row[e] -= times * logits[e]
        state[h] = inner * pull
        bias[h] -= state[h]
    for i in range(len(rows)):
        if rows[i] >= 0:
            row, times = sets[rows[i]], worth[i]
            for h in range(len(state)):
                row[h] -= times * state[h]
