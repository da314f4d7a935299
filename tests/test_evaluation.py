"""Metrics against numbers worked out by hand, and the leaderboard against its own promises."""

import math
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_trace

from foregate.comparison import compare
from foregate.errors import ChoiceError
from foregate.evaluation import calibration_error, confidence_bins, evaluate, log_loss, merge, ranks, resamples
from foregate.predictors import BASELINES, LEARNED, PREDICTORS
from foregate.predictors.counting import Popularity
from foregate.traces.schema import concat


def test_ranks_break_ties_by_the_lower_id() -> None:
    scores = np.array([[0.1, 0.5, 0.1, 0.3]], dtype=np.float32)
    assert ranks(scores, np.array([[0, 1, 2, 3]])).tolist() == [[2, 0, 3, 1]]
    assert ranks(scores, np.array([[2, -1]])).tolist() == [[3, -1]]


def test_log_loss_is_one_for_chance_and_reaches_its_floor() -> None:
    answers = np.array([[0, 1], [2, -1]])
    np.testing.assert_allclose(log_loss(np.full((2, 4), 0.25, dtype=np.float32), answers), 1)
    sure = np.array([[0.5, 0.5, 0, 0], [0, 0, 1, 0]], dtype=np.float32)
    np.testing.assert_allclose(log_loss(sure, answers), [math.log(2) / math.log(4), 0], atol=1e-9)


def test_calibration_error_by_hand() -> None:
    scores = np.array([[0.8, 0.2]] * 10, dtype=np.float32)
    answers = np.array([[0]] * 6 + [[1]] * 4)
    # The first guess claims 80 % and holds in 60 %.
    np.testing.assert_allclose(calibration_error(confidence_bins(scores, answers)), 0.2, rtol=1e-6)


def test_metrics_of_a_fixed_order_by_hand() -> None:
    trace = make_trace(prompts=1, tokens=2, layers=2, experts=4, k=2)
    trace = replace(
        trace,
        experts=np.array([[[0, 1], [0, 1]], [[0, 1], [3, 0]]], dtype=np.int8),
        weights=np.array([[[0.9, 0.1], [0.9, 0.1]], [[0.9, 0.1], [0.3, 0.7]]], dtype=np.float32),
    )
    order = Popularity()
    order.frequency_ = np.array([[0.25] * 4, [0.4, 0.3, 0.2, 0.1]], dtype=np.float32)
    tally = evaluate(order, trace, budgets=(1, 2))
    means = {name: float(tally.mean(name)[1]) for name in tally.sums}
    expected = {"top1": 1.0, "top2": 1.0, "recall@1": 0.5, "recall@2": 0.75, "exact_set": 0.5, "coverage": 1.0}
    assert {name: means[name] for name in expected} == pytest.approx(expected)


def test_absent_cells_do_not_count() -> None:
    trace = make_trace(prompts=2, layers=3)
    experts = trace.experts.copy()
    experts[::2, 1] = -1
    tally = evaluate(Popularity().fit(trace), replace(trace, experts=experts), budgets=(2,))
    assert tally.count("recall@2").tolist() == [0, len(trace) // 2, len(trace)]


def test_tallies_of_one_prompt_merge_into_one() -> None:
    trace = make_trace(prompts=3)
    tally = evaluate(Popularity().fit(trace), trace, budgets=(2,))
    both = merge([tally, tally])
    assert both.prompts == tally.prompts
    np.testing.assert_allclose(both.mean("recall@2"), tally.mean("recall@2"))
    np.testing.assert_array_equal(both.count("recall@2"), 2 * tally.count("recall@2"))


def test_intervals_resample_prompts_not_tokens() -> None:
    """Tokens of a prompt all alike: the interval must be as wide as that of the few prompts there are."""
    draws = resamples(4)
    assert (draws.sum(axis=1) == 4).all()
    trace = make_trace(prompts=4, tokens=50, layers=2, experts=2, k=1)
    half = trace.sequence % 2
    trace = replace(trace, experts=np.repeat(half[:, None, None], 2, axis=1).astype(np.int8))
    rows = compare(trace, folds=2, predictors=["popularity"]).measures
    row = next(
        m for m in rows if m.predictor == "chance" and m.metric == "recall" and m.layer is None and m.budget == 1
    )
    assert row.value == pytest.approx(0.5)
    assert row.low is not None
    assert row.high is not None
    assert row.low <= 0.25
    assert row.high >= 0.75


def test_every_row_says_what_it_is() -> None:
    trace = make_trace(prompts=20)
    found = compare(trace, distances=(1, 2), as_decode=True)
    assert {m.predictor for m in found.measures} == set(PREDICTORS) - {"next-gate", *LEARNED}
    assert found.skipped == {"next-gate": "the trace has no hidden states (record with --hidden)"}
    metrics = {m.metric for m in found.measures}
    assert metrics == {
        *("top1", "top2", "recall", "exact_set", "log_loss", "calibration_error", "reliability"),
        *("coverage", "predict_us", "fit_s", "bytes"),
    }
    keys = [(m.predictor, m.metric, m.layer, m.distance, m.budget, m.confidence) for m in found.measures]
    assert len(keys) == len(set(keys))
    for m in found.measures:
        assert (m.split, m.leaks, m.replay, m.how, m.trace) == ("prompt", False, "decode", "measured", "random")
        assert math.isfinite(m.value)
        assert m.low is None or m.low - 1e-9 <= m.value <= (m.high or 0) + 1e-9


def test_the_baselines_are_always_there() -> None:
    found = compare(make_trace(prompts=20), predictors=["rules:order=1"])
    assert {m.predictor for m in found.measures} == {*BASELINES, "rules:order=1"}


def test_a_leaking_split_marks_every_row_and_flatters_the_learner() -> None:
    trace = make_trace(prompts=20)
    assert all(m.leaks for m in compare(trace, how="sample", predictors=["tokens"]).measures)


def test_a_self_check_below_one_is_in_every_row() -> None:
    trace = make_trace(prompts=10)
    trace = replace(trace, provenance=replace(trace.provenance, self_check=0.97))
    assert {m.self_check for m in compare(trace, predictors=["tokens"]).measures} == {0.97}


def test_a_test_trace_of_its_own_loses_what_was_trained_on() -> None:
    trace = make_trace(prompts=10)
    train, test = trace.take_prompts(range(8)), trace.take_prompts(range(4, 10))
    found = compare(train, test=test, predictors=["tokens"])
    assert (found.prompts, {m.split for m in found.measures}) == (2, {"test"})
    with pytest.raises(ChoiceError, match="every prompt of --test"):
        compare(trace, test=test)


def test_duplicates_never_reach_a_split() -> None:
    trace = make_trace(prompts=10)
    assert compare(concat([trace, trace]), predictors=["tokens"]).duplicates == 10


@pytest.mark.parametrize(
    "options",
    [
        {"predictors": ["next-gate"]},
        {"predictors": ["nonsense"]},
        {"distances": (5,)},
        {"distances": (0,)},
        {"budgets": (9,)},
        {"how": "dataset", "folds": 2},
    ],
)
def test_a_wrong_choice_is_answered_with_a_sentence(options: dict) -> None:
    with pytest.raises(ChoiceError):
        compare(make_trace(prompts=10), **options)
