"""Promises that hold for every predictor of the registry. A new one is covered by adding it there."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import make_trace

from foregate.components import build, split_list
from foregate.errors import ChoiceError, SourceError
from foregate.history import History, Past, Query, Replay
from foregate.predictors import BASELINES, PREDICTORS
from foregate.predictors.base import Predictor
from foregate.predictors.counting import layer_frequency
from foregate.predictors.levels import packed
from foregate.predictors.storage import load, save
from foregate.predictors.tables import CountTable
from foregate.traces.schema import Trace

D = 6
SHORT = {"xgboost": "xgboost:rounds=4,depth=3,threads=1", "mlp": "mlp:epochs=2,width=16"}
SHORT |= {
    "fusion": "fusion:epochs=1,width=16,token_size=4,buckets=50",
    "pre-attention": "pre-attention:epochs=2,rank=8",
    "interlayer": "interlayer:epochs=1,dim=16,heads=2,ff=16,depth=2,window=3",
    "multiscale": "multiscale:epochs=1,dim=16,heads=2,ff=16,depth=1,window=3",
    "augmented": "augmented:epochs=1,dim=16,heads=2,ff=16,depth=1,window=3",
    "probe": "probe:epochs=2,rank=3",
    "gating": "gating:epochs=2,width=8,preset=hierarchical",
}


SHORT |= {
    "ensemble": "ensemble:members=rules(order=2,smoothing=2)+memory+previous",
    "blend": "blend:members=rules(order=2,smoothing=2)+memory+previous,epochs=2",
    "calibrated": "calibrated:member=memory(beta=4),method=isotonic",
    "online": "online:members=fusion(epochs=1,width=16,token_size=4,buckets=50),window=4",
}


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make_trace(hidden=D)


@pytest.fixture(scope="module", params=sorted(PREDICTORS))
def predictor(request: pytest.FixtureRequest, trace: Trace) -> Predictor:
    return fitted(request.param, trace)


def fitted(name: str, trace: Trace) -> Predictor:
    predictor = build(PREDICTORS, SHORT.get(name, name), horizon=2)
    if name == "next-gate":  # its fit reads a model; here it gets random gates, since promises are about any
        rng = np.random.default_rng(1)
        L, E = trace.spec.num_layers, trace.spec.num_experts
        learned: Any = predictor
        learned.gain_ = rng.uniform(0.5, 2, (L, D)).astype(np.float32)
        learned.router_ = rng.normal(size=(L, E, D)).astype(np.float32)
        learned.bias_ = np.zeros((L, E), dtype=np.float32)
        learned.frequency_ = layer_frequency(trace)
        return predictor
    return predictor.fit(trace)


def queries(trace: Trace, *, as_decode: bool) -> list[Query]:
    found = []
    for rows in trace.sequences():
        replay = Replay(trace.take(rows), as_decode)
        for distance in (1, 2):
            found += [replay.query(target - distance, target) for target in range(distance, trace.spec.num_layers)]
    return found


def scrambled(query: Query, n: int, rng: np.random.Generator) -> Query:
    """The same query, with everything after row n's `seen` replaced by other routing, tokens and weights."""
    hide = slice(int(query.seen[n]), None)
    token_id, experts = query.past.token_id.copy(), query.past.experts.copy()
    token_id[hide] = rng.integers(0, 20, len(token_id[hide]))
    experts[hide] = rng.integers(0, query.spec.num_experts, experts[hide].shape)
    weights = None if query.past.weights is None else query.past.weights.copy()
    if weights is not None:
        weights[hide] = rng.random(weights[hide].shape)
    residual = None if query.past.residual is None else query.past.residual.copy()
    if residual is not None:
        residual[hide] = rng.normal(size=residual[hide].shape)
    return replace(query, past=Past(token_id, experts, weights, residual))


@pytest.mark.parametrize("as_decode", [False, True])
def test_the_future_cannot_change_a_score(predictor: Predictor, trace: Trace, as_decode: bool) -> None:
    rng = np.random.default_rng(2)
    for query in queries(trace, as_decode=as_decode)[::5]:
        before = predictor.predict(query)
        for n in range(0, query.rows, 3):
            after = predictor.predict(scrambled(query, n, rng))
            np.testing.assert_array_equal(before[n], after[n])


def test_a_row_does_not_depend_on_the_rows_beside_it(predictor: Predictor, trace: Trace) -> None:
    replay = Replay(trace.take(slice(0, 12)), as_decode=True)
    together = predictor.predict(replay.query(2, 3))
    alone = np.concatenate([predictor.predict(replay.query(2, 3, slice(n, n + 1))) for n in range(12)])
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)


def test_live_and_replayed_queries_score_alike(predictor: Predictor, trace: Trace) -> None:
    sequence = trace.take(slice(12, 24))
    replay = Replay(sequence)
    assert sequence.weights is not None
    assert sequence.hidden is not None
    assert sequence.residual is not None
    live = History(trace.spec, hidden=True, capacity=2)
    for rows in sequence.steps():
        live.begin(sequence.token_id[rows])
        live.enter(0, sequence.residual[rows, 0])
        for layer in range(trace.spec.num_layers):
            live.observe(
                layer, sequence.experts[rows, layer], sequence.weights[rows, layer], sequence.hidden[rows, layer]
            )
            if layer + 1 == trace.spec.num_layers:
                break
            live.enter(layer + 1, sequence.residual[rows, layer + 1])
            expected = predictor.predict(replay.query(layer, layer + 1, rows))
            np.testing.assert_allclose(predictor.predict(live.query(layer + 1)), expected, rtol=1e-5, atol=1e-6)


def test_scores_are_finite_and_sum_to_one_where_they_are_probabilities(predictor: Predictor, trace: Trace) -> None:
    for query in queries(trace, as_decode=True):
        scores = predictor.predict(query)
        assert scores.shape == (query.rows, trace.spec.num_experts)
        assert scores.dtype == np.float32
        assert np.isfinite(scores).all()
        assert predictor.covers(query).shape == (query.rows,)
        if predictor.probabilities:
            assert (scores >= 0).all()
            np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-4)


def test_a_query_is_left_as_it_was(predictor: Predictor, trace: Trace) -> None:
    query = Replay(trace.take(slice(0, 12)), as_decode=True).query(1, 2)
    before = [a.copy() for a in (query.routed, query.past.experts, query.token_id, query.seen)]
    predictor.predict(query)
    for old, new in zip(before, (query.routed, query.past.experts, query.token_id, query.seen), strict=True):
        np.testing.assert_array_equal(old, new)


def test_absent_experts_and_the_first_layer_are_answered(predictor: Predictor, trace: Trace) -> None:
    gaps = replace(
        trace, experts=np.where(np.random.default_rng(3).random(trace.experts.shape) < 0.3, -1, trace.experts)
    )
    replay = Replay(gaps.take(slice(0, 12)), as_decode=True)
    for layer, target in ((-1, 0), (0, 1), (2, 4), (0, 4)):  # 4 ahead is beyond what was learned
        assert np.isfinite(predictor.predict(replay.query(layer, target))).all()


def test_a_saved_predictor_scores_the_same(predictor: Predictor, trace: Trace, tmp_path: Any) -> None:
    save(predictor, tmp_path / "p.npz")
    again = load(tmp_path / "p.npz")
    assert type(again) is type(predictor)
    for query in queries(trace, as_decode=True)[::7]:
        np.testing.assert_array_equal(predictor.predict(query), again.predict(query))


@pytest.mark.parametrize("name", sorted(set(PREDICTORS) - {"next-gate"}))
def test_only_allowed_answers_are_learned(name: str) -> None:
    """Cells that a split masked may be changed at will: what is learned as an answer stays the same."""
    trace = make_trace(hidden=D)
    last = trace.spec.num_layers - 1
    answers = np.ones((len(trace), trace.spec.num_layers), dtype=np.bool_)
    answers[::2, last] = False  # the last layer is nobody's context, so it is known as an answer alone
    other = trace.experts.copy()
    other[::2, last] = (other[::2, last] + 1) % trace.spec.num_experts
    query = Replay(trace.take(slice(0, 12))).query(last - 1, last)
    scores = [fitted(name, replace(trace, experts=e, answers=answers)).predict(query) for e in (trace.experts, other)]
    np.testing.assert_array_equal(*scores)


def test_every_baseline_is_registered() -> None:
    assert set(BASELINES) <= set(PREDICTORS)


def test_popularity_counts_by_hand() -> None:
    trace = make_trace(prompts=1, tokens=4, layers=1, experts=3, k=1)
    trace = replace(trace, experts=np.array([[[0]], [[0]], [[2]], [[-1]]], dtype=np.int8))
    np.testing.assert_allclose(layer_frequency(trace), [[3 / 6, 1 / 6, 2 / 6]])


def test_cooccur_counts_by_hand() -> None:
    trace = make_trace(prompts=1, tokens=3, layers=2, experts=2, k=1)
    trace = replace(trace, experts=np.array([[[0], [1]], [[0], [1]], [[1], [0]]], dtype=np.int8))
    predictor = build(PREDICTORS, "cooccur:smoothing=0").fit(trace)
    np.testing.assert_allclose(predictor.predict(Replay(trace).query(0, 1)), [[0, 1], [0, 1], [1, 0]])


def test_rules_take_the_longest_context_that_was_seen() -> None:
    trace = make_trace(prompts=1, tokens=4, layers=3, experts=4, k=1)
    routed = np.array([[[0], [1], [2]], [[0], [1], [2]], [[3], [1], [0]], [[3], [1], [0]]], dtype=np.int8)
    trace = replace(trace, experts=routed)
    predictor = build(PREDICTORS, "rules:order=2,smoothing=0").fit(trace)
    assert predictor.predict(Replay(trace).query(1, 2)).argmax(axis=1).tolist() == [2, 2, 0, 0]
    unseen = replace(trace, experts=np.array([[[2], [1], [0]]] * 4, dtype=np.int8))
    assert predictor.covers(Replay(unseen).query(1, 2)).all()  # the order-1 context (1) was seen


def test_memory_follows_the_earlier_token_that_routed_alike() -> None:
    trace = make_trace(prompts=1, tokens=3, layers=4, experts=8, k=1)
    routed = np.array([[[0], [1], [2], [3]], [[4], [5], [6], [7]], [[0], [1], [2], [3]]], dtype=np.int8)
    trace = replace(trace, experts=routed, weights=np.ones((3, 4, 1), dtype=np.float32))
    predictor = build(PREDICTORS, "memory").fit(trace)
    scores = predictor.predict(Replay(trace, as_decode=True).query(2, 3))
    assert scores[2].argmax() == 3
    assert predictor.covers(Replay(trace, as_decode=True).query(2, 3)).tolist() == [False, True, True]


def test_next_gate_is_exact_when_the_residual_stream_does_not_move() -> None:
    """With one residual stream for all layers, the next norm and router give that layer's own logits."""
    rng = np.random.default_rng(0)
    trace = make_trace(prompts=1, tokens=5, hidden=D)
    predictor: Any = fitted("next-gate", trace)
    residual = rng.normal(size=(5, 1, D)) * 7
    hidden = residual / np.sqrt((residual**2).mean(axis=2, keepdims=True)) * predictor.gain_[None]
    query = Replay(replace(trace, hidden=hidden.astype(np.float32))).query(1, 2)
    logits = hidden[:, 2] @ predictor.router_[2].T
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(predictor.predict(query), expected, rtol=1e-3)


def test_a_count_table_counts_and_blends() -> None:
    contexts = packed(np.array([[0, 1], [0, 1], [2, 0], [-1, 0]]), place=0, base=4)
    assert contexts.tolist() == [1, 1, 8, -1]
    table = CountTable.count([(contexts, np.array([[0], [2], [1], [1]]))], num_experts=3)
    prior = np.full((3, 3), 1 / 3, dtype=np.float32)
    blended = table.blend(np.array([1, 8, 5]), prior, 1.0)
    np.testing.assert_allclose(
        blended, [[4 / 9, 1 / 9, 4 / 9], [1 / 6, 4 / 6, 1 / 6], [1 / 3, 1 / 3, 1 / 3]], rtol=1e-6
    )
    assert table.seen(np.array([1, 8, 5])).tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nonsense", "choose one of"),
        ("rules:depth=3", "rules does not take"),
        ("rules:order=three", "must be a whole number"),
        ("chance:x=1", "no options"),
    ],
)
def test_a_wrong_component_is_answered_with_a_sentence(text: str, message: str) -> None:
    with pytest.raises(ChoiceError, match=message):
        build(PREDICTORS, text)


def test_components_keep_their_options_together() -> None:
    assert split_list("rules:order=3,smoothing=1, tokens,memory") == ["rules:order=3,smoothing=1", "tokens", "memory"]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", b"\x93NUMPY"])
def test_a_broken_predictor_file_is_refused(content: bytes, tmp_path: Any) -> None:
    (tmp_path / "p.npz").write_bytes(content)
    with pytest.raises(SourceError, match=r"p\.npz"):
        load(tmp_path / "p.npz")


def test_a_predictor_file_of_another_version_is_refused(predictor: Predictor, trace: Trace, tmp_path: Any) -> None:
    """An array is missing that this version learns: it must not be found out when the predictor is asked."""
    path = tmp_path / "p.npz"
    save(predictor, path, trace.spec)
    arrays = dict(np.load(path))
    learned = {name.partition("/")[0] for name in arrays if not name.startswith("foregate")}
    for name in learned:
        np.savez(path, **{key: array for key, array in arrays.items() if key.partition("/")[0] != name})
        with pytest.raises(SourceError, match=f"lacks {name}"):
            load(path)


def test_a_predictor_file_with_a_pickle_is_refused(tmp_path: Any) -> None:
    np.savez(tmp_path / "p.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(SourceError, match="not a predictor"):
        load(tmp_path / "p.npz")
