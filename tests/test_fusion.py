"""What `fusion` promises beyond the registry: it corrects what bank gets wrong, and no answer votes for itself."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_trace

from foregate.errors import ChoiceError
from foregate.evaluation import evaluate
from foregate.history import History, Query, Replay
from foregate.predictors.fusion.fusion import Fusion
from foregate.predictors.fusion.inputs import Asked, Examples, Inputs, Rows
from foregate.predictors.fusion.online import Online
from foregate.predictors.memory.bank import Bank
from foregate.traces.schema import Trace


def planted(seed: int = 0, prompts: int = 24, tokens: int = 60) -> Trace:
    """The last layer's expert is what the first layer's and the previous token's there add up to: an earlier token says
    so only if it agrees in both, and layer 1 in between is noise.
    """
    trace = make_trace(prompts=prompts, tokens=tokens, layers=3, experts=6, k=1, seed=seed)
    rng = np.random.default_rng(seed)
    routed = rng.integers(0, 6, trace.experts.shape).astype(np.int8)
    for row in range(len(trace)):
        before = routed[row - 1, 2, 0] if trace.position[row] else 0
        routed[row, 2, 0] = (routed[row, 0, 0] + before) % 6
    return replace(trace, experts=routed, weights=None, token_id=rng.integers(0, 40, len(trace)).astype(np.int32))


def test_it_learns_what_bank_cannot_see() -> None:
    trace = planted()
    learned, held, asked = (trace.take_prompts(range(*part)) for part in ((18,), (18, 21), (21, 24)))
    fusion = Fusion(width=128, token_size=8, buckets=64, batch=64, epochs=30, dropout=0.0, horizon=2)
    fusion.fit(learned, held)
    right = evaluate(fusion, asked, distance=1, budgets=(1,), as_decode=True).mean("recall@1")[2]
    bank = evaluate(fusion.members_[0], asked, distance=1, budgets=(1,), as_decode=True).mean("recall@1")[2]
    assert right > bank + 0.2


def test_bank_asks_the_token_before_about_the_target_layer() -> None:
    """Likeness of the tokens before in all layers together is not enough here: .73 are right."""
    learned, asked = planted().take_prompts(range(18)), planted(seed=1, prompts=2, tokens=300)
    bank = Bank().fit(learned)
    assert evaluate(bank, asked, distance=1, budgets=(1,), as_decode=True).mean("recall@1")[2] > 0.85


def test_it_says_what_bank_says_where_nothing_better_was_learned() -> None:
    """Noise to learn from."""
    trace = make_trace(prompts=8, tokens=12, experts=16)
    fusion = Fusion(width=16, token_size=4, buckets=50, epochs=2).fit(trace)
    assert not fusion.out_.any()
    assert not fusion.base_.any()
    assert (fusion.trust_ == 1).all()
    query = Replay(trace.take(slice(0, 12)), as_decode=True).query(0, 1)
    bank = fusion.members_[0].predict(query)
    found = fusion.predict(query)
    best = [np.argsort(-scores, axis=1, kind="stable")[:, 0] for scores in (bank, found)]
    np.testing.assert_array_equal(*best)


def test_a_prompts_own_rows_have_no_vote_while_it_is_learned_from() -> None:
    """All prompts differ but for one, which is there once: what bank says of it must not be its own answers."""
    trace = make_trace(prompts=5, tokens=30, experts=16, k=1)
    bank = Bank(window=1).fit(trace)
    rows = next(trace.sequences())
    query = Replay(trace.take(rows), as_decode=True).query(1, 2)
    other = trace.experts.copy()
    other[rows, 2] = (other[rows, 2] + 7) % 16
    changed = Bank(window=1).fit(replace(trace, experts=other))
    changed.terms_, changed.frequency_ = bank.terms_, bank.frequency_
    past = replace(query.past, experts=other[rows])
    alone = query.seen * 0  # nothing but the bank votes
    before = bank.recall(replace(query, seen=alone), range(rows.start, rows.stop))
    after = changed.recall(replace(query, seen=alone, past=past), range(rows.start, rows.stop))
    np.testing.assert_array_equal(before, after)
    assert not np.array_equal(bank.recall(replace(query, seen=alone), range(0)), before)


def test_a_lesson_says_what_the_query_will_say() -> None:
    """The same row, once from the trace as it is learned and once from a query as it is asked."""
    trace = make_trace(prompts=4, tokens=15)
    inputs, bank = Inputs.of(trace.spec, 3), Bank(horizon=3).fit(trace)
    examples = Examples.of(trace, inputs, bank, seed=0)
    asked_from = set()
    for rows in examples.lessons(7, 0):
        lesson = examples.lesson(rows)
        for target, distance, which, numbers, own, answers in lesson.questions:
            asked_from.add((target, distance))
            for place, n in enumerate(which.tolist()):
                row, known = int(rows[n]), (target - distance + 1) * trace.spec.top_k
                start = int(examples.start[row])
                length = int((trace.sequence == trace.sequence[row]).sum())
                replay = Replay(trace.take(slice(start, start + length)), as_decode=True)
                query = replay.query(target - distance, target, slice(row - start, row - start + 1))
                asked = Asked.of(query, 3)
                sets, before = asked.sets(), asked.before()
                one = np.array([n])
                same(sets, Rows(lesson.sets.place[one, :known], lesson.sets.worth[one, :known]))
                same(before, lesson.before.of_tokens(one))
                same(sets.at(target, distance, before, inputs), own.of_tokens(np.array([place])))
                np.testing.assert_array_equal(asked.tokens()[0], lesson.tokens[n])
                mine = asked.numbers(target, bank.predict(query), bank.window)[0]
                np.testing.assert_allclose(mine, numbers[place], rtol=2e-3, atol=2e-3)
                assert set(np.flatnonzero(answers[place])) == set(trace.experts[row, target].tolist())
    assert {(t, 1) for t in range(trace.spec.num_layers)} <= asked_from
    assert {d for _, d in asked_from} == {1, 2, 3}


def same(found: Rows, expected: Rows) -> None:
    np.testing.assert_array_equal(found.place, expected.place)
    np.testing.assert_allclose(np.where(found.place >= 0, found.worth - expected.worth, 0), 0, atol=1e-5)


def test_tokens_that_were_never_trained_on_are_one() -> None:
    trace = make_trace()
    fusion = Fusion(width=32, token_size=8, buckets=64, epochs=1).fit(trace)
    query = Replay(trace.take(slice(0, 12)), as_decode=True).query(-1, 0, slice(0, 1))
    asked = [replace(query, token_id=np.array([token], dtype=np.int32)) for token in (25, 60, -1)]
    scores = [fusion.predict(one) for one in asked]
    np.testing.assert_array_equal(scores[0], scores[1])
    np.testing.assert_array_equal(scores[0], scores[2])


def test_a_horizon_beyond_the_last_layer_is_refused() -> None:
    with pytest.raises(ChoiceError, match="horizon 6 does not fit 5 layers"):
        Fusion(horizon=6).fit(make_trace())


def swapped(trace: Trace) -> Trace:
    """The first layer's experts renumbered, so that what was learned of them is wrong in the same way all the time."""
    experts = trace.experts.copy()
    experts[:, 0] = np.array([1, 0, 3, 2, 5, 4])[experts[:, 0]]
    return replace(trace, experts=experts)


def test_online_learns_what_is_true_of_one_sequence_only() -> None:
    trace, asked = planted(), swapped(planted(seed=1, prompts=2, tokens=600))
    members = "fusion(width=128,token_size=8,buckets=64,batch=64,epochs=30,dropout=0.0)"
    online = Online(members, rate=0.1, inner=0.1).fit(trace.take_prompts(range(18)), trace.take_prompts(range(18, 24)))
    right = evaluate(online, asked, distance=1, budgets=(1,), as_decode=True).mean("recall@1")[2]
    fusion = evaluate(online.members_[0], asked, distance=1, budgets=(1,), as_decode=True).mean("recall@1")[2]
    assert right > fusion + 0.1


def test_what_online_learned_is_the_same_whoever_was_asked_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token by token, with more sequences taking turns than are kept, across windows: as all at once."""
    trace = make_trace(prompts=5, tokens=20)
    monkeypatch.setattr("foregate.predictors.fusion.online.KEPT", 3)
    online = Online("fusion(width=16,token_size=4,buckets=50,epochs=1)", rate=0.3, inner=0.3, window=6).fit(trace)
    replays = [Replay(trace.take(rows), as_decode=True) for rows in trace.sequences()]
    whole = [online.predict(replay.query(1, 2)) for replay in replays]
    fitted = [online.members_[0].predict(replay.query(1, 2)) for replay in replays]
    assert np.abs(whole[0] - fitted[0]).max() > 0.01
    for turns in (1, 5):  # one sequence after the other, then all in turn
        for part in range(0, 5, turns):
            for token in range(20):
                for which in range(part, part + turns):
                    query = replays[which].query(1, 2, slice(token, token + 1))
                    np.testing.assert_allclose(online.predict(query)[0], whole[which][token], atol=1e-5)
    assert max(map(len, online.kept.values())) == 3


def test_online_refuses_what_is_no_fusion() -> None:
    with pytest.raises(ChoiceError, match="'bank' holds another predictor"):
        Online("bank").fit(make_trace(prompts=4, tokens=15))
    with pytest.raises(ChoiceError, match="window=0"):
        Online(window=0)


def test_online_forgets_a_token_that_was_taken_back() -> None:
    """Assisted generation: a token is guessed, asked about, and replaced by another in the same place."""
    trace = make_trace(prompts=4, tokens=12)
    spec = trace.spec
    members = "fusion(width=16,token_size=4,buckets=50,epochs=1)"
    asked, fresh = (Online(members, rate=0.3, inner=0.3).fit(trace) for _ in range(2))
    history = History(spec, weights=False)

    def run(token: int) -> Query:
        """One token through all layers; what is asked before the last one."""
        history.begin(trace.token_id[[token]])
        for layer in range(spec.num_layers - 1):
            history.observe(layer, trace.experts[[token], layer])
        query = history.query(spec.num_layers - 1)
        history.observe(spec.num_layers - 1, trace.experts[[token], -1])
        return query

    for token in (0, 1, 2, 3):
        asked.predict(run(token))
    history.rewind(3)
    for token in (4, 5):
        last = run(token)
        np.testing.assert_allclose(asked.predict(last), fresh.predict(last), atol=1e-6)
