"""Confidence means how likely an expert is routed: what calibration does to scores, and how reliability is shown."""

import numpy as np
import pytest
from conftest import make_trace

from foregate.comparison import compare
from foregate.components import build
from foregate.errors import ChoiceError
from foregate.evaluation import calibration_error, evaluate
from foregate.history import Replay
from foregate.predictors import PREDICTORS
from foregate.predictors.calibration import curves, follow, pool_adjacent, temperatures
from foregate.predictors.chances import softmax
from foregate.report import board_figures
from foregate.report.board import boards
from foregate.splits import split
from foregate.traces.schema import Trace

SURE = "memory(beta=30,prior=0.01)"


def drawn(logits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """[N, 1] one expert a row, by its softmax."""
    return (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)[:, None]


def test_the_temperature_that_was_planted_is_found() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6000, 8)).astype(np.float32) * 2
    layers = np.arange(6000) % 3
    answers = drawn(logits, rng)
    claimed = logits * np.array([1.0, 3.0, 0.5], dtype=np.float32)[layers][:, None]
    np.testing.assert_allclose(temperatures(claimed, answers, layers, 4)[:3], [1, 1 / 3, 2], rtol=0.12)


def test_a_layer_without_rows_takes_what_all_layers_together_say() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(4000, 8)).astype(np.float32)
    found = temperatures(logits * 4, drawn(logits, rng), np.zeros(4000, dtype=np.int64), 3)
    np.testing.assert_allclose(found, 0.25, rtol=0.1)


def test_pool_adjacent_by_hand() -> None:
    values = np.array([1.0, 3.0, 2.0, 2.0, 5.0, 4.0])
    np.testing.assert_allclose(pool_adjacent(values, np.ones(6)), [1, 7 / 3, 7 / 3, 7 / 3, 4.5, 4.5])
    np.testing.assert_allclose(pool_adjacent(np.array([2.0, 1.0]), np.array([3.0, 1.0])), [1.75, 1.75])


def test_pool_adjacent_is_monotone_and_keeps_the_mean() -> None:
    rng = np.random.default_rng(2)
    for _ in range(50):
        n = int(rng.integers(1, 40))
        values, weights = rng.normal(size=n), rng.uniform(0.1, 5, n)
        found = pool_adjacent(values, weights)
        assert (np.diff(found) >= -1e-12).all()
        np.testing.assert_allclose((found * weights).sum(), (values * weights).sum())


def test_a_curve_rises_and_undoes_what_was_claimed() -> None:
    rng = np.random.default_rng(3)
    truth = rng.random((20_000, 4)).astype(np.float32) ** 2
    hits = rng.random(truth.shape) < truth
    claimed = np.sqrt(truth)
    curve = curves(claimed, hits, np.zeros(len(truth), dtype=np.int64), 2)
    assert (np.diff(curve, axis=2) >= 0).all()
    for layer in (0, 1):  # the second saw no row, and takes the curve of all
        assert np.abs(follow(curve[layer], claimed) - truth).mean() < 0.02


def test_a_curve_turns_no_two_experts_around() -> None:
    rng = np.random.default_rng(4)
    claimed = rng.random((500, 6)).astype(np.float32)
    curve = curves(claimed, rng.random((500, 6)) < 0.3, np.zeros(500, dtype=np.int64), 1)
    order = np.argsort(claimed.reshape(-1))
    assert (np.diff(follow(curve[0], claimed).reshape(-1)[order]) >= -1e-6).all()


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make_trace(prompts=250, tokens=40, layers=4, experts=12)


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_an_overconfident_predictor_learns_how_often_it_is_right(method: str, trace: Trace) -> None:
    fold = next(split(trace, "prompt"))
    gaps, recalls = [], []
    for text in (SURE.replace("(", ":").rstrip(")"), f"calibrated:member={SURE},method={method}"):
        predictor = build(PREDICTORS, text).fit(fold.train, fold.validation)
        tally = evaluate(predictor, fold.test, budgets=(2,), as_decode=True)
        gaps.append(float(calibration_error(tally.bins.sum(axis=(0, 1)))))
        recalls.append(float(np.nanmean(tally.mean("recall@2"))))
    assert gaps[0] > 0.1
    assert gaps[1] < 0.03
    assert recalls[1] == pytest.approx(recalls[0], abs=2e-3)


def test_scores_that_are_no_probabilities_become_some(trace: Trace) -> None:
    predictor = build(PREDICTORS, "calibrated:member=previous").fit(trace)
    scores = predictor.predict(Replay(trace.take(slice(0, 40)), as_decode=True).query(0, 1))
    np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("text", ["calibrated:method=magic", "calibrated:member=tokens+memory"])
def test_a_wrong_choice_is_answered_with_a_sentence(text: str, trace: Trace) -> None:
    with pytest.raises(ChoiceError):
        build(PREDICTORS, text).fit(trace)


def test_softmax_bears_large_numbers() -> None:
    np.testing.assert_allclose(softmax(np.array([[1e4, 1e4, -1e4]], dtype=np.float32)), [[0.5, 0.5, 0]])


def test_reliability_rows_add_up_to_the_calibration_error() -> None:
    one = make_trace(prompts=20, layers=2)  # one layer after the first: the mean over layers is the pool
    measures = compare(one, predictors=["memory"], as_decode=True).measures
    rows = [m for m in measures if m.predictor == "memory" and m.metric == "reliability"]
    gap = next(m for m in measures if (m.predictor, m.metric, m.layer) == ("memory", "calibration_error", None))
    total = sum(m.n for m in rows)
    assert all(m.confidence is not None for m in rows)
    assert sum(m.n * abs((m.confidence or 0) - m.value) for m in rows) / total == pytest.approx(gap.value)
    assert all(m.low is not None and m.high is not None and m.low <= m.value + 1e-9 for m in rows)
    assert {m.metric for m in measures if m.confidence is not None} == {"reliability"}


def test_reliability_is_drawn_against_the_diagonal(trace: Trace) -> None:
    measures = compare(trace, predictors=["memory"], as_decode=True).measures
    board = boards(measures, ["chance", "popularity"])[0]
    figure = board_figures.reliability(board, "r")
    names = {line["name"] for line in figure.data}
    assert {"as sure as right", "memory", "tokens"} <= names
    assert "previous" not in names  # its scores are no probabilities
    memory = next(line for line in figure.data if line["name"] == "memory")
    assert memory["x"] == sorted(memory["x"])
    assert "memory" in figure.text


def test_the_first_layer_is_asked_before_the_pass_and_stays_out_of_the_mean(trace: Trace) -> None:
    measures = compare(trace, predictors=["tokens"], distances=(1, 2), as_decode=True).measures
    cells = {
        (m.distance, m.layer): m.value for m in measures if (m.predictor, m.metric, m.budget) == ("tokens", "recall", 2)
    }
    assert {layer for distance, layer in cells if distance == 1} == {None, 0, 1, 2, 3}
    assert {layer for distance, layer in cells if distance == 2} == {None, 1, 2, 3}
    assert cells[1, None] == pytest.approx(np.mean([cells[1, layer] for layer in (1, 2, 3)]))
    assert cells[2, None] == pytest.approx(np.mean([cells[2, layer] for layer in (2, 3)]))
