"""What XGBoost and the MLP learn, from which columns, and that what is saved answers as what was trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace
from typer.testing import CliRunner, Result

from foregate.cli import app
from foregate.comparison import choose, compare
from foregate.components import build
from foregate.errors import ChoiceError, ForegateError, SourceError, TraceError
from foregate.evaluation import evaluate
from foregate.history import Replay
from foregate.predictors import LEARNED, PREDICTORS
from foregate.predictors.base import Predictor
from foregate.predictors.counting import layer_frequency
from foregate.predictors.storage import load, save
from foregate.predictors.study.features import Columns, Examples, table
from foregate.predictors.study.mlp import held_out
from foregate.spec import MoESpec
from foregate.splits import split
from foregate.traces.importers import IMPORTERS
from foregate.traces.schema import Trace
from foregate.traces.storage import write_trace

pytest.importorskip("torch")
pytest.importorskip("xgboost")
QUICK = {"xgboost": "xgboost:rounds=10,threads=1", "mlp": "mlp:epochs=12,width=32,batch=64,learning_rate=0.01"}


@pytest.fixture(params=sorted(QUICK))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def quick(name: str) -> Predictor:
    return build(PREDICTORS, QUICK[name])


def two_tokens() -> Trace:
    """Weights in no order, an absent expert, two layers of three routed."""
    trace = make_trace(prompts=1, tokens=2, layers=3, experts=9, k=3)
    experts = np.array([[[4, 5, 6], [1, 2, 3], [7, 8, 0]], [[0, 1, 2], [-1, 8, 7], [5, 4, 3]]], dtype=np.int8)
    weights = np.array([[[1, 3, 2], [5, 5, 6], [1, 1, 1]], [[3, 2, 1], [9, 1, 2], [1, 2, 3]]], dtype=np.float32)
    return replace(trace, experts=experts, weights=weights, step=np.arange(2, dtype=np.int32))


def test_the_study_had_37_columns() -> None:
    columns = Columns.of(MoESpec("Mixtral", "decoder", tuple(range(32)), 8, 2), 1)
    assert columns.width == 37
    assert (len(columns.experts), len(columns.numbers)) == (33, 3)
    assert sorted([0, *columns.experts, *columns.numbers]) == list(range(37))


def test_columns_by_hand() -> None:
    query = Replay(two_tokens()).query(1, 2)
    np.testing.assert_array_equal(
        table(query, 1), [[1, 1, 2, 6, 5, 5, 0, 5, 3, -1], [1, 8, -1, 2, 1, np.nan, 1, 0, 7, -1]]
    )
    assert table(query, 2)[:, -1].tolist() == [1, 1]
    unweighted = table(replace(query, weights=None), 1)
    np.testing.assert_array_equal(unweighted[0], [1, 2, 3, np.nan, np.nan, np.nan, 0, 4, 1, -1])


@pytest.mark.parametrize("weighted", [True, False])
def test_training_rows_are_what_a_query_shows(weighted: bool) -> None:
    trace = make_trace(layers=4, k=3, experts=9)
    gaps = np.where(np.random.default_rng(0).random(trace.experts.shape) < 0.2, -1, trace.experts).astype(np.int8)
    trace = replace(trace, experts=gaps, weights=trace.weights if weighted else None)
    examples = Examples.of(trace, 2)
    assert trace.primary is not None
    asked = 0
    for rows in trace.sequences():
        replay = Replay(trace.take(rows))
        for layer, target in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 3)):
            primary = trace.primary[rows, target]
            shown = table(replay.query(layer, target), 2)[primary >= 0]
            inside = (examples.token >= rows.start) & (examples.token < rows.stop)
            these = inside & (examples.layer == layer) & (examples.distance == target - layer)
            np.testing.assert_array_equal(examples.take(these).table(), shown)
            assert examples.take(these).answers[:, 0].tolist() == primary[primary >= 0].tolist()
            asked += len(shown)
    assert asked == len(examples)


def test_it_learns_what_is_there(name: str) -> None:
    fold = next(split(make_trace(prompts=40, tokens=40), "prompt"))
    scores = {}
    for kind in (name, "popularity"):
        predictor = quick(kind) if kind in QUICK else build(PREDICTORS, kind)
        tally = evaluate(predictor.fit(fold.train, fold.validation), fold.test)
        scores[kind] = float(np.nanmean(tally.mean("top1")))
    assert scores[name] > scores["popularity"] + 0.1


def test_what_is_kept_is_the_best_epoch_and_answers_as_torch_did() -> None:
    fold = next(split(make_trace(prompts=20), "prompt"))
    assert fold.validation is not None
    heard: list[float] = []
    predictor = quick("mlp")
    predictor.on_epoch = lambda epoch, score: heard.append(score)
    predictor.fit(fold.train, fold.validation)
    tally = evaluate(predictor, fold.validation)
    assert tally.sums["top1"].sum() / tally.cells["top1"].sum() == pytest.approx(max(heard), abs=1e-9)


def test_rounds_are_told_where_there_is_a_validation_trace() -> None:
    fold = next(split(make_trace(prompts=20), "prompt"))
    assert fold.validation is not None
    heard: list[tuple[int, float]] = []
    predictor = quick("xgboost")
    predictor.on_epoch = lambda epoch, score: heard.append((epoch, score))
    predictor.fit(fold.train)
    assert heard == []
    predictor.fit(fold.train, fold.validation)
    assert [epoch for epoch, _ in heard] == list(range(1, 11))
    tally = evaluate(predictor, fold.validation)
    assert tally.sums["top1"].sum() / tally.cells["top1"].sum() == pytest.approx(heard[-1][1], abs=1e-6)


def test_what_on_epoch_raises_stops_the_fit(name: str) -> None:
    class Enough(Exception):  # noqa: N818
        pass

    def stop(epoch: int, score: float) -> None:
        if epoch == 2:
            raise Enough

    trace = make_trace()
    predictor = quick(name)
    predictor.on_epoch = stop
    with pytest.raises(Enough):
        predictor.fit(trace, trace)


def test_a_seed_fits_the_same_again(name: str) -> None:
    trace = make_trace(prompts=10)
    query = Replay(trace.take(slice(0, 12))).query(2, 3)
    first, again = (quick(name).fit(trace).predict(query) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_another_seed_fits_another_network_and_torch_is_left_as_it_was() -> None:
    import torch

    trace = make_trace(prompts=10)
    query = Replay(trace.take(slice(0, 12))).query(2, 3)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    threads = torch.get_num_threads()
    scores = [build(PREDICTORS, f"{QUICK['mlp']},seed={seed}").fit(trace).predict(query) for seed in (0, 1)]
    assert np.abs(scores[0] - scores[1]).max() > 1e-3
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_tenth_is_held_out() -> None:
    many = make_trace(prompts=20)
    held = held_out(many, 0)
    assert held.sum() == 24
    assert len(np.unique(many.sequence[held])) == 2
    assert (held != held_out(many, 1)).any()
    few = make_trace(prompts=2, tokens=20)
    assert np.flatnonzero(held_out(few, 0)).tolist() == [18, 19, 38, 39]


def test_where_nothing_was_learned_layer_frequency_answers(name: str) -> None:
    trace = make_trace()
    predictor = quick(name).fit(trace)
    for layer, target in ((-1, 0), (0, 2)):
        query = Replay(trace.take(slice(0, 12))).query(layer, target)
        assert not predictor.covers(query).any()
        np.testing.assert_array_equal(predictor.predict(query)[3], layer_frequency(trace)[target])


def test_traces_without_weights_are_learned(name: str) -> None:
    trace = make_trace().without(weights=True)
    query = Replay(trace.take(slice(0, 12))).query(2, 3)
    assert np.isfinite(quick(name).fit(trace).predict(query)).all()


def unranked(trace: Trace) -> Trace:
    trace = trace.without(weights=True)
    return replace(trace, provenance=replace(trace.provenance, ranked=False))


def test_where_nothing_is_ranked_the_routed_set_is_learned(name: str) -> None:
    """Two experts of each set, in any order: both must lead, about alike."""
    trace = unranked(make_trace(prompts=40, tokens=40))
    shuffled = np.random.default_rng(0).permuted(trace.experts, axis=2)
    fold = next(split(replace(trace, experts=shuffled), "prompt"))
    tallies = [
        evaluate(p.fit(fold.train, fold.validation), fold.test, budgets=(2,))
        for p in (quick(name), build(PREDICTORS, "popularity"))
    ]
    ours, theirs = (float(np.nanmean(t.mean("recall@2"))) for t in tallies)
    assert ours > theirs + 0.1
    assert np.nanmean(tallies[0].mean("log_loss")) < np.nanmean(tallies[1].mean("log_loss"))


def test_answers_are_drawn_from_the_routed_set() -> None:
    trace = unranked(make_trace(k=3, experts=9))
    gaps = np.where(np.random.default_rng(0).random(trace.experts.shape) < 0.3, -1, trace.experts).astype(np.int8)
    examples = Examples.of(replace(trace, experts=gaps), 1)
    drawn = examples.drawn(0)
    assert (drawn >= 0).all()
    assert (drawn[:, None] == examples.answers).any(axis=1).all()
    places = (drawn[:, None] == examples.answers).argmax(axis=1)
    assert np.bincount(places, minlength=3).min() > len(examples) / 5


def test_too_little_to_learn_from_is_said(name: str) -> None:
    trace = make_trace()
    none = replace(trace, answers=np.zeros(trace.experts.shape[:2], dtype=np.bool_))
    with pytest.raises(TraceError, match="nothing to learn"):
        quick(name).fit(none)
    if name == "mlp":
        with pytest.raises(TraceError, match="too few"):
            quick(name).fit(trace.take(slice(0, 1)))


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ChoiceError, match="device=cpu"):
        build(PREDICTORS, "mlp:device=abacus").fit(make_trace())


def test_damaged_trees_are_refused(tmp_path: Path) -> None:
    trace = make_trace()
    predictor: Any = quick("xgboost").fit(trace)
    predictor.booster_ = predictor.booster_[:100]
    save(predictor, tmp_path / "p.npz")
    with pytest.raises(SourceError, match="train them again"):
        load(tmp_path / "p.npz").predict(Replay(trace.take(slice(0, 12))).query(2, 3))


def test_they_are_compared_only_when_named(tmp_path: Path) -> None:
    trace = make_trace(prompts=10)
    assert not set(choose(trace, None)[0]) & set(LEARNED)
    assert QUICK["mlp"] in choose(trace, [QUICK["mlp"]])[0]
    write_trace(trace, tmp_path / "t.parquet")
    shown = " ".join(run("compare", tmp_path / "t.parquet").output.split())
    assert f"{', '.join(LEARNED)} are compared when named" in shown
    shown = " ".join(run("compare", tmp_path / "t.parquet", "--predictors", QUICK["xgboost"]).output.split())
    assert f"{', '.join(n for n in LEARNED if n != 'xgboost')} are compared when named" in shown


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_train_saves_what_compare_would_have_fitted(name: str, tmp_path: Path) -> None:
    trace = make_trace(prompts=20)
    write_trace(trace, tmp_path / "t.parquet")
    result = run("train", QUICK[name], tmp_path / "t.parquet", "-o", tmp_path / "p.npz")
    assert result.exit_code == 0, (result.output, result.exception)
    assert "192 tokens of 16 prompts" in result.output
    assert "validation (24 tokens of 2 prompts" in result.output
    fold = next(split(trace, "prompt"))
    query = Replay(fold.test.take(slice(0, 12))).query(2, 3)
    expected = quick(name).fit(fold.train, fold.validation).predict(query)
    np.testing.assert_array_equal(load(tmp_path / "p.npz").predict(query), expected)
    again = run("train", name, tmp_path / "t.parquet", "-o", tmp_path / "p.npz")
    assert "--overwrite" in str(again.exception)


def test_train_takes_every_prompt_or_looks_farther(tmp_path: Path) -> None:
    write_trace(make_trace(prompts=4), tmp_path / "t.parquet")
    result = run("train", "rules", tmp_path / "t.parquet", "-o", tmp_path / "p.npz", "--split", "none", "--distance", 2)
    assert "every prompt was trained on" in result.output
    rules: Any = load(tmp_path / "p.npz")
    assert rules.horizon == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("oracle",), "there is no 'oracle'"),
        (("mlp", "--split", "weekday"), "not one of prompt"),
        (("mlp", "--distance", "5"), "distance 5 does not fit 5 layers"),
        (("next-gate",), "no hidden states"),
        (("mlp", "--split", "prompt"), "--split none"),
    ],
)
def test_what_cannot_be_trained_is_said(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    write_trace(make_trace(prompts=2), tmp_path / "t.parquet")
    result = run("train", *arguments[:1], tmp_path / "t.parquet", "-o", tmp_path / "p.npz", *arguments[1:])
    assert isinstance(result.exception, ForegateError), (result.output, result.exception)
    assert message in str(result.exception)
    assert not (tmp_path / "p.npz").exists()


REFERENCES = {"xgboost:threads=1": (22.5, 37.5), "mlp": (22.0, 37.3)}


@pytest.mark.parametrize("component", REFERENCES)
def test_reference_values_by_problem(component: str, shared: Path) -> None:
    """As in test_study: both directions of the four published problems, complete tokens."""
    folder = shared / "mixtral-8x7b-instruct"
    whole = IMPORTERS["records"]([folder / f"{source}_2_routing.jsonl.xz" for source in ("humaneval", "gsm8k")])
    trace = whole.take((whole.experts >= 0).all(axis=(1, 2)))
    found = compare(trace, folds=2, predictors=[component]).measures
    means = {m.metric: m for m in found if m.predictor == component and m.layer is None}
    assert means["top1"].n == 17_887
    assert means["top1"].value * 100 == pytest.approx(REFERENCES[component][0], abs=2.0)
    assert means["top2"].value * 100 == pytest.approx(REFERENCES[component][1], abs=2.0)


@pytest.mark.gpu
def test_a_gpu_fits_as_well() -> None:
    fold = next(split(make_trace(prompts=40, tokens=40), "prompt"))
    scores = []
    for device in ("cpu", "cuda"):
        predictor = build(PREDICTORS, f"{QUICK['mlp']},device={device}").fit(fold.train, fold.validation)
        scores.append(float(np.nanmean(evaluate(predictor, fold.test).mean("top1"))))
    assert scores[1] == pytest.approx(scores[0], abs=0.05)
