"""Predictors inside a predictor: from text to fitted members, and what these say of rows they were not fitted on.

How their answers become one is for `ensemble`, `blend` and `calibrated` to say.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from foregate.arrays import Bool, Float32, Int64
from foregate.components import build, split_members
from foregate.errors import TraceError
from foregate.history import Query, Replay
from foregate.predictors.base import Need, Predictor
from foregate.spec import MoESpec
from foregate.traces.schema import Trace

P = TypeVar("P", bound=Predictor)

ROUNDS = 5
"""Where there is no validation trace, one in so many training prompts is held out at a time."""
FEW = 50
"""Of fewer prompts than this, each is held out once."""
FLOOR = 1e-6
"""The least probability whose logarithm is taken."""


@dataclass(frozen=True, eq=False)
class Said:
    """What members said of rows whose answers are known, all at one distance.

    beliefs   [M, N, E] log probabilities
    layer     [N]       the target
    seen      [N]       earlier tokens that could be read
    answers   [N, k]    routed ids, -1 = absent
    sequence  [N]       index of the prompt
    """

    beliefs: Float32
    layer: Int64
    seen: Int64
    answers: Int64
    sequence: Int64

    def __len__(self) -> int:
        return len(self.layer)

    def half(self, seed: int) -> Bool:
        """[N] rows of half of the prompts; of a single prompt, of its first half."""
        prompts = np.unique(self.sequence)
        if len(prompts) > 1:
            return np.isin(self.sequence, np.random.default_rng(seed).permutation(prompts)[::2])
        first: Bool = self.seen <= np.median(self.seen)
        return first if not first.all() else np.arange(len(self)) % 2 == 0


def unfitted(text: str, horizon: int, spec: MoESpec | None = None) -> tuple[Predictor, ...]:
    """The members that a text names; those that are files (.npz) come fitted.

    spec  of the model that a file must have been fitted on, where that is known

    Raises: ChoiceError for what cannot be built or fits another model, SourceError for a file that cannot be read.
    """
    from foregate.predictors import PREDICTORS  # it holds those who call this
    from foregate.predictors.storage import load

    return tuple(
        load(Path(member), spec) if is_file(member) else build(PREDICTORS, member, horizon=horizon)
        for member in split_members(text)
    )


def fitted(text: str, horizon: int, trace: Trace, validation: Trace | None) -> tuple[Predictor, ...]:
    """The members that a text names, fitted; those that are files stay as they are."""
    members = unfitted(text, horizon, trace.spec)
    return completed(text, members, lambda predictor: predictor.fit(trace, validation))


def completed(text: str, members: Sequence[P], fit: Callable[[P], P]) -> tuple[P, ...]:
    """The members that `unfitted` made of a text, fitted but for the files."""
    return tuple(
        predictor if is_file(member) else fit(predictor)
        for member, predictor in zip(split_members(text), members, strict=True)
    )


def is_file(member: str) -> bool:
    """Whether a member is the path of a fitted predictor."""
    return member.endswith(".npz")


def needs(text: str, members: Sequence[Predictor]) -> frozenset[Need]:
    """What a trace must hold for all members: the fitted ones, or where there are none yet those that a text names."""
    return frozenset[Need]().union(*(predictor.needs for predictor in members or unfitted(text, 1)))


@dataclass(frozen=True)
class Hearing:
    """How members are asked about rows that they were not fitted on.

    members  as text
    horizon  the largest distance
    rows     asked at most, at each distance; a random share of more
    seed     of what is drawn
    """

    members: str
    horizon: int
    rows: int
    seed: int

    def hold(self, trace: Trace, validation: Trace | None) -> tuple[tuple[Predictor, ...], list[Said]]:
        """The fitted members, and what they said at distances 1..horizon.

        They are asked about the validation trace. Where there is none, a fifth of the training prompts is held out; of
        fewer than FEW, every fifth in turn; of a single prompt, its last fifth. The members are then fitted once more,
        on everything. Cells that a split masked are not read.

        Raises: TraceError for a trace of one token.
        """
        if validation is not None:
            members = fitted(self.members, self.horizon, trace, validation)
            return members, self._asked(members, validation)
        if trace.answers is not None:
            experts = np.where(trace.answers[:, :, None], trace.experts, trace.experts.dtype.type(-1))
            trace = replace(trace, experts=experts)
        rounds = []
        for learned, held in divisions(trace, self.seed):
            rounds.append(self._asked(fitted(self.members, self.horizon, learned, held), held))
        said = [_joined(parts) for parts in zip(*rounds, strict=True)]
        return fitted(self.members, self.horizon, trace, None), said

    def _asked(self, members: Sequence[Predictor], trace: Trace) -> list[Said]:
        distances = range(1, self.horizon + 1)
        return [ask(members, trace, distance, limit=self.rows, seed=self.seed) for distance in distances]


def divisions(trace: Trace, seed: int) -> Iterator[tuple[Trace, Trace]]:
    """What members are fitted on, and what they are judged by (see Hearing.hold). Raises: TraceError."""
    prompts = len(trace.prompts)
    if prompts > 1:
        order = np.random.default_rng(seed).permutation(prompts).tolist()
        rounds = min(ROUNDS, prompts)
        for part in range(rounds if prompts < FEW else 1):
            held = order[part::rounds]
            yield trace.take_prompts(sorted(set(order) - set(held))), trace.take_prompts(held)
        return
    if len(trace) < 2:
        raise TraceError(f"{len(trace)} training tokens are too few to fit on some and judge by others")
    cut = len(trace) - max(1, len(trace) // ROUNDS)
    allowed = np.ones(trace.experts.shape[:2], dtype=np.bool_) if trace.answers is None else trace.answers
    late = (np.arange(len(trace)) >= cut)[:, None]
    yield trace.take(slice(0, cut)), replace(trace, answers=allowed & late)


def ask(members: Sequence[Predictor], trace: Trace, distance: int, *, limit: int, seed: int) -> Said:
    """What members say of a trace's rows, each with its whole past as in decoding, from before the first layer on;
    where prompts were carried by one pass, every fourth is also asked as it ran, without a past.

    limit  rows at most; a random share of more

    Raises: TraceError if no row has an answer.
    """
    rng = np.random.default_rng(seed)
    share = limit / max(1, len(trace) * (trace.spec.num_layers - distance + 1))
    parts = []
    for number, rows in enumerate(trace.sequences()):
        sequence = trace.take(rows)
        replays = [Replay(sequence, as_decode=True)]
        if number % 4 == 1 and not np.array_equal(replays[0].seen(), Replay(sequence).seen()):
            replays.append(Replay(sequence))
        for replay in replays:
            for target in range(distance - 1, trace.spec.num_layers):
                answers = sequence.answers_at(target)
                chosen = np.flatnonzero((answers >= 0).any(axis=1) & (rng.random(len(answers)) < share))
                if len(chosen):
                    query = replay.query(target - distance, target, chosen)
                    parts.append(
                        Said(
                            beliefs(members, query),
                            np.full(len(chosen), target),
                            query.seen,
                            answers[chosen].astype(np.int64),
                            np.full(len(chosen), number),
                        )
                    )
    if not parts:
        raise TraceError("no held-out row has an answer; there is nothing to judge members by")
    return _one(parts)


def _one(parts: Sequence[Said]) -> Said:
    rest = (np.concatenate([getattr(p, name) for p in parts]) for name in ("layer", "seen", "answers", "sequence"))
    return Said(np.concatenate([p.beliefs for p in parts], axis=1), *rest)


def _joined(rounds: Sequence[Said]) -> Said:
    """Rows of several traces as one; prompts are renumbered."""
    shifts = np.cumsum([0, *(int(said.sequence.max()) + 1 for said in rounds)])
    return _one([replace(s, sequence=s.sequence + shift) for s, shift in zip(rounds, shifts, strict=False)])


def routed(said: Said, experts: int) -> Float32:
    """[N, E] 1 where the row is routed."""
    table = np.zeros((len(said), experts + 1), dtype=np.float32)
    np.put_along_axis(table, said.answers, 1.0, axis=1)  # absent ones (-1) fall into the last column
    return table[:, :experts]


def beliefs(members: Sequence[Predictor], query: Query) -> Float32:
    """[M, N, E] each member's log probabilities; scores that are none are taken as logits."""
    found = np.empty((len(members), query.rows, query.spec.num_experts), dtype=np.float32)
    for m, member in enumerate(members):
        found[m] = member.predict(query)
        if member.probabilities:
            np.log(np.maximum(found[m], FLOOR, out=found[m]), out=found[m])
        else:
            found[m] -= found[m].max(axis=1, keepdims=True)
            found[m] -= np.log(np.exp(found[m]).sum(axis=1, keepdims=True))
    return found


def covers(members: Sequence[Predictor], query: Query) -> Bool:
    """[N] whether any member's own mechanism answers."""
    return np.asarray(np.any([member.covers(query) for member in members], axis=0))
