"""Predictors that look back: the past, training tokens that end alike, running counts, an older engine's modes."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace

from foregate.components import build
from foregate.errors import ChoiceError
from foregate.history import Past, Query, Replay
from foregate.predictors import PREDICTORS
from foregate.predictors.counting import Cooccur, Repeat
from foregate.predictors.memory.nearby import key_of, keys, nearby, shared
from foregate.predictors.memory.terms import START, TERMS, loss_and_gradient, surroundings
from foregate.predictors.speculation import SPECULATION_MODES, speculator
from foregate.predictors.storage import save
from foregate.spec import MoESpec
from foregate.traces.schema import Trace


def sequence(routed: list[list[int]], token_id: list[int] | None = None, *, experts: int = 8) -> Trace:
    """One prompt, one expert a layer, decoded token by token."""
    T, L = np.shape(routed)
    trace = make_trace(prompts=1, tokens=T, layers=L, experts=experts, k=1)
    return replace(
        trace,
        experts=np.array(routed, dtype=np.int8)[:, :, None],
        weights=np.ones((T, L, 1), dtype=np.float32),
        token_id=np.arange(T, dtype=np.int32) if token_id is None else np.array(token_id, dtype=np.int32),
    )


def test_induction_finds_what_followed_the_same_token_before() -> None:
    """Nothing of the last token is routed yet; the token before it went the way of token 1."""
    trace = sequence([[5, 5, 5], [0, 1, 2], [3, 3, 3], [6, 6, 6], [7, 7, 7], [0, 1, 2], [4, 4, 4]])
    predictor = build(PREDICTORS, "memory:context=20,recency=0").fit(trace)
    query = Replay(trace, as_decode=True).query(-1, 0)
    assert predictor.predict(query)[6].argmax() == 3


def test_votes_of_a_set_are_equal_and_those_by_gates_are_not() -> None:
    trace = make_trace(prompts=1, tokens=2, layers=2, experts=4, k=2)
    weights = np.full((2, 2, 2), [0.9, 0.1], dtype=np.float32)
    trace = replace(trace, experts=np.array([[[0, 1], [2, 3]]] * 2, dtype=np.int8), weights=weights)
    query = Replay(trace, as_decode=True).query(0, 1)
    by_set = build(PREDICTORS, "memory:votes=set,prior=0.01").fit(trace).predict(query)[1]
    by_gate = build(PREDICTORS, "memory:votes=gates,prior=0.01").fit(trace).predict(query)[1]
    assert by_set[2] == pytest.approx(by_set[3])
    assert by_gate[2] > 5 * by_gate[3]


def test_only_the_window_votes() -> None:
    trace = sequence([[0, 1], [2, 3], [2, 4], [2, 4], [0, 7]])
    query = Replay(trace, as_decode=True).query(0, 1)
    found = {w: build(PREDICTORS, f"memory:window={w},beta=20,prior=0.01").fit(trace).predict(query)[4] for w in (3, 4)}
    assert found[4].argmax() == 1
    assert found[3].argmax() == 4


@pytest.mark.parametrize("name", ["memory:window=256", "bank", "counts"])
@pytest.mark.parametrize(("layers", "experts", "k"), [(32, 8, 2), (26, 64, 6)])
def test_cost_does_not_grow_with_the_sequence(name: str, layers: int, experts: int, k: int) -> None:
    """The median of 4,000 earlier tokens against that of 1,000, measured in turns so that a busy machine slows both."""
    spec = MoESpec("m", "decoder", tuple(range(layers)), experts, k)
    few = make_trace(prompts=4, tokens=30, layers=layers, experts=experts, k=k)
    predictor = build(PREDICTORS, name).fit(few)
    asked = [late_query(spec, past) for past in (1000, 4000)]
    for query in asked:
        predictor.predict(query)
    times: list[list[int]] = [[], []]
    for _ in range(60):
        for query, spent in zip(asked, times, strict=True):
            started = time.perf_counter_ns()
            predictor.predict(query)
            spent.append(time.perf_counter_ns() - started)
    assert np.median(times[1]) < 1.5 * np.median(times[0])


def late_query(spec: MoESpec, past: int) -> Query:
    rng = np.random.default_rng(0)
    layers = spec.num_layers
    routed = rng.integers(0, spec.num_experts, (past + 1, layers, spec.top_k)).astype(np.int8)
    token_id = rng.integers(0, 20, past + 1).astype(np.int32)
    return Query(
        spec=spec,
        layer=layers - 2,
        target=layers - 1,
        token_id=token_id[-1:],
        routed=routed[-1:, :-1],
        weights=None,
        past=Past(token_id, routed, None),
        seen=np.array([past]),
    )


def test_the_bank_finds_a_training_token() -> None:
    """The same path in training is all that says where this sequence's first token goes."""
    train = make_trace(prompts=4, tokens=6, layers=3, experts=8, k=1)
    train = replace(train, weights=np.ones_like(train.weights), token_id=np.arange(24, dtype=np.int32))
    routed = np.repeat(np.arange(24)[:, None, None] % 5, 3, axis=1).astype(np.int8)
    routed[7, :, 0] = [6, 6, 7]
    predictor = build(PREDICTORS, "bank").fit(replace(train, experts=routed))
    asked = sequence([[6, 6, 0]], [99])
    assert predictor.predict(Replay(asked, as_decode=True).query(1, 2))[0].argmax() == 7


def test_a_large_bank_is_asked_by_token() -> None:
    """600 training tokens are more than are asked whole: a known token finds its like, an unknown one nobody."""
    train = make_trace(prompts=6, tokens=100, layers=3, experts=8, k=1)
    token_id = np.arange(600, dtype=np.int32) % 50
    routed = np.repeat((token_id % 8)[:, None, None], 3, axis=1).astype(np.int8)
    train = replace(train, token_id=token_id, experts=routed, weights=np.ones_like(train.weights))
    predictor = build(PREDICTORS, "bank").fit(train)
    query = Replay(sequence([[0, 0, 0], [0, 0, 0]], [21, 700]), as_decode=False).query(-1, 2)
    first = replace(query, seen=np.zeros(2, dtype=np.int64))
    assert predictor.predict(first)[0].argmax() == 21 % 8
    assert predictor.covers(first).tolist() == [True, False]


def test_the_bank_learns_the_same_twice() -> None:
    trace = make_trace()
    one, two = (build(PREDICTORS, "bank:samples=50").fit(trace) for _ in range(2))
    np.testing.assert_array_equal(vars(one)["terms_"], vars(two)["terms_"])


def test_layers_around_a_target_by_hand() -> None:
    rows = surroundings(2, 10)
    np.testing.assert_allclose(rows[0], 0.1)
    layers = [np.flatnonzero(row).tolist() for row in rows[1:]]
    assert layers == [[2], [3, 4], [0, 1], [5, 6, 7, 8], []]


def test_the_gradient_is_the_slope_of_the_loss() -> None:
    rng = np.random.default_rng(0)
    R, C, E, k = 5, 7, 6, 2
    starts = np.arange(R + 1) * C
    parts = rng.random((R * C, k)).astype(np.float32)
    candidates = (
        starts,
        rng.normal(size=(R * C, TERMS)).astype(np.float32),
        np.argsort(rng.random((R * C, E)), axis=1)[:, :k].astype(np.int8),
        parts / parts.sum(axis=1, keepdims=True),
    )
    answers = np.argsort(rng.random((R, E)), axis=1)[:, :k].astype(np.int8)
    frequency = rng.dirichlet(np.ones(E), R).astype(np.float32)
    rows = (frequency, rng.normal(size=(R, 2, E)), answers, np.linspace(-0.5, 0.5, R))
    theta = np.stack([START / 4, rng.normal(size=len(START)) / 10])
    gradient, ignored = np.zeros_like(theta), np.zeros_like(theta)
    loss_and_gradient(candidates, rows, theta, gradient)
    for place in np.ndindex(theta.shape):
        step = np.zeros_like(theta)
        step[place] = 1e-3
        slope = loss_and_gradient(candidates, rows, theta + step, ignored)
        slope -= loss_and_gradient(candidates, rows, theta - step, ignored)
        assert slope / 2e-3 == pytest.approx(gradient[place], abs=2e-3)


def test_nearby_returns_the_longest_endings_first() -> None:
    token_id = np.array([1, 2, 3, 9, 2, 3, 5, 3, 8, 3], dtype=np.int32)
    place = np.array([0, 1, 2, 0, 1, 2, 0, 1, 0, 1])
    unordered = keys(token_id, place)
    order = np.argsort(unordered, kind="stable")
    wanted = key_of(np.array([1, 2], dtype=np.int32), 3, 2)
    for most, expected in ((1, {2}), (2, {2, 5}), (9, {2, 5, 7, 9})):
        first, last = nearby(unordered[order], wanted, most)
        assert set(order[first:last].tolist()) == expected
    assert shared(wanted, unordered[2]) == 3
    assert shared(wanted, unordered[5]) == 2
    unknown = key_of(np.array([1, 2], dtype=np.int32), -1, 2)
    assert shared(unknown, unknown) == 0


def test_counts_fade_by_hand() -> None:
    trace = sequence([[0], [1], [1], [2]], experts=4)
    predictor = build(PREDICTORS, "counts:half_life=1,smoothing=1").fit(trace)
    scores = predictor.predict(Replay(trace, as_decode=True).query(-1, 0))
    prior = np.array([2, 3, 2, 1]) / 8
    np.testing.assert_allclose(scores[0], prior)
    np.testing.assert_allclose(scores[3], (prior + np.array([0.25, 1.5, 0, 0])) / 2.75, rtol=1e-6)


def test_ngrams_prefer_the_longer_run_and_back_off() -> None:
    trace = sequence([[0], [1], [2], [1], [3], [1], [2]], [5, 6, 7, 6, 5, 6, 7], experts=4)
    predictor = build(PREDICTORS, "ngrams:smoothing=0.01").fit(trace)
    asked = sequence([[0], [0], [0], [0]], [5, 6, 7, 99], experts=4)
    query = Replay(asked, as_decode=True).query(-1, 0)
    assert predictor.predict(query)[1:3].argmax(axis=1).tolist() == [1, 2]
    assert predictor.covers(query).tolist() == [True, True, True, False]


@pytest.mark.parametrize("name", ["tokens", "ngrams"])
def test_token_identity_answers_every_layer_before_the_pass_starts(name: str) -> None:
    trace = make_trace(k=1)
    predictor = build(PREDICTORS, name).fit(trace)
    replay = Replay(trace.take(slice(0, 12)), as_decode=True)
    for target in range(trace.spec.num_layers):
        query = replay.query(-1, target)
        assert predictor.covers(query).all()
        assert not np.allclose(predictor.predict(query), vars(predictor)["frequency_"][target])


def test_the_last_layers_count_four_three_two_one() -> None:
    trace = sequence([[0, 1, 2, 3, 4]], experts=8)
    predictor = build(PREDICTORS, "multi-layer").fit(trace)
    scores = predictor.predict(Replay(trace).query(3, 4))[0]
    np.testing.assert_allclose(scores[:4], [0.1, 0.2, 0.3, 0.4], atol=1e-3)
    scores = predictor.predict(Replay(trace).query(1, 4))[0]
    np.testing.assert_allclose(scores[:2], [3 / 7, 4 / 7], atol=1e-3)


def test_adaptive_follows_the_mode_that_was_right() -> None:
    """Expert e is always followed by e + 1: the transition counts know, the last layers' ids mislead."""
    routed = (np.arange(40)[:, None] + np.arange(4)) % 8
    trace = sequence(routed.tolist())
    scores = build(PREDICTORS, "adaptive").fit(trace).predict(Replay(trace).query(2, 3))
    assert (scores.argmax(axis=1) == routed[:, 3]).all()
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("mode", sorted(SPECULATION_MODES))
def test_every_speculation_mode_is_there(mode: str, tmp_path: Path) -> None:
    trace = make_trace()
    file = tmp_path / "p.npz"
    save(Cooccur().fit(trace), file)
    predictor = speculator(mode, file if mode == "learnable" else None)
    kinds: dict[str, Any] = {"none": None, "layer_minus_1": Repeat, "pattern": Cooccur, "learnable": Cooccur}
    if mode in kinds:
        assert (predictor and type(predictor)) == kinds[mode]
    if predictor is not None and mode != "learnable":
        predictor.fit(trace)
    if predictor is not None:
        assert predictor.predict(Replay(trace.take(slice(0, 12))).query(0, 1)).shape == (12, 8)


@pytest.mark.parametrize(
    ("mode", "file", "message"),
    [("nonsense", None, "choose one of"), ("pattern", Path("p.npz"), "takes no"), ("learnable", None, "needs a")],
)
def test_a_wrong_speculation_mode_is_answered_with_a_sentence(mode: str, file: Path | None, message: str) -> None:
    with pytest.raises(ChoiceError, match=message):
        speculator(mode, file)


@pytest.mark.parametrize("text", ["memory:votes=all", "memory:window=0", "bank:window=0", "counts:half_life=0"])
def test_an_option_that_means_nothing_is_refused(text: str) -> None:
    with pytest.raises(ChoiceError):
        build(PREDICTORS, text)
