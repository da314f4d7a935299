"""Predictors made of predictors: how they are typed, what they learn from their members, and that they travel whole."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace

from foregate.comparison import compare, missing
from foregate.components import build, split_list, split_members
from foregate.errors import ChoiceError, ForegateError, SourceError, TraceError
from foregate.evaluation import calibration_error, evaluate
from foregate.history import Replay
from foregate.predictors import PREDICTORS
from foregate.predictors.base import Predictor
from foregate.predictors.mixing.members import divisions, fitted
from foregate.predictors.storage import load, model_of, save
from foregate.splits import Fold, split
from foregate.traces.schema import Trace

pytest.importorskip("torch")
MIXERS = ("ensemble", "blend")
BOTH = "tokens+rules(order=1)"


def planted(prompts: int = 200) -> Trace:
    """Layers 1 and 4 follow from the set before, 2 and 5 from the token; 0 and 3 from nothing."""
    trace = make_trace(prompts=prompts, tokens=30, layers=6, experts=16, k=2)
    rng = np.random.default_rng(0)
    routed = trace.experts.copy()
    for layer in range(6):
        clue = (rng.integers(0, 16, len(trace)), routed[:, layer - 1, 0], trace.token_id)[layer % 3]
        lost = rng.random(len(trace)) < 0.2
        routed[:, layer, 0] = np.where(lost, rng.integers(0, 16, len(trace)), (clue * 5 + layer) % 16)
        routed[:, layer, 1] = (routed[:, layer, 0] + 1 + rng.integers(0, 3, len(trace))) % 16
    return replace(trace, experts=routed)


@pytest.fixture(scope="module")
def fold() -> Fold:
    return next(split(planted(), "prompt"))


def recall(predictor: Predictor, fold: Fold, text: str = "recall@2") -> float:
    tally = evaluate(predictor, fold.test, budgets=(2,), as_decode=True)
    return float(np.nanmean(tally.mean(text)))


def made(text: str, fold: Fold, **options: Any) -> Predictor:
    return build(PREDICTORS, text, **options).fit(fold.train, fold.validation)


def test_members_are_typed_with_their_options() -> None:
    text = "blend:members=rules(order=2,smoothing=3)+memory,epochs=3, tokens,ensemble:members=a+b"
    assert split_list(text) == [
        "blend:members=rules(order=2,smoothing=3)+memory,epochs=3",
        "tokens",
        "ensemble:members=a+b",
    ]
    nested = "rules(order=2,smoothing=3)+ensemble(members=tokens(smoothing=1e+2)+memory)+a.npz"
    assert split_members(nested) == [
        "rules:order=2,smoothing=3",
        "ensemble:members=tokens(smoothing=1e+2)+memory",
        "a.npz",
    ]
    predictor: Any = build(PREDICTORS, f"blend:members={nested},epochs=3")
    assert (predictor.members, predictor.epochs) == (nested, 3)


@pytest.mark.parametrize("text", ["a(b", "a+", "(x)", "a)b", "a(b)c", ""])
def test_members_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ChoiceError):
        split_members(text)


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("members", ["nonsense", "rules(depth=2)", "nowhere.npz"])
def test_a_wrong_member_is_answered_with_a_sentence(name: str, members: str, fold: Fold) -> None:
    with pytest.raises((ChoiceError, SourceError)):
        made(f"{name}:members={members}", fold)


@pytest.mark.parametrize("name", MIXERS)
def test_two_members_that_are_each_right_in_half_the_layers_beat_both(name: str, fold: Fold) -> None:
    both = recall(made(f"{name}:members={BOTH}", fold), fold)
    alone = max(recall(made(member, fold), fold) for member in ("tokens", "rules:order=1"))
    assert both > alone + 0.05


@pytest.mark.parametrize("name", MIXERS)
def test_a_member_that_knows_nothing_does_no_harm(name: str, fold: Fold) -> None:
    with_chance = recall(made(f"{name}:members=tokens+chance", fold), fold)
    assert with_chance > recall(made("tokens", fold), fold) - 0.01


def test_the_weight_goes_to_the_member_that_is_right(fold: Fold) -> None:
    ensemble: Any = made(f"ensemble:members={BOTH}", fold)
    tokens, rules = ensemble.weights_[0].T
    assert (tokens[[2, 5]] > 0.8).all()
    assert (rules[[1, 4]] > rules[[2, 5]].max() + 0.15).all()
    np.testing.assert_allclose(ensemble.weights_.sum(axis=2), 1, rtol=1e-5)


def test_a_blend_knows_how_sure_it_is_and_gives_no_expert_more_than_its_place(fold: Fold) -> None:
    blend = made(f"blend:members={BOTH}", fold)
    tally = evaluate(blend, fold.test, as_decode=True)
    assert float(calibration_error(tally.bins.sum(axis=(0, 1)))) < 0.03

    query = Replay(fold.test.take(slice(0, 30)), as_decode=True).query(0, 1)
    assert blend.predict(query).max() <= 1 / fold.test.spec.top_k + 1e-6


@pytest.mark.parametrize("name", MIXERS)
def test_each_distance_has_its_own_mix(name: str) -> None:
    fold = next(split(planted(40), "prompt"))
    predictor = made(f"{name}:members=tokens+cooccur", fold, horizon=2)
    for distance in (1, 2):
        assert recall(predictor, fold) > 0.25
        assert np.isfinite(predictor.predict(Replay(fold.test.take(slice(0, 9))).query(3 - distance, 3))).all()


@pytest.mark.parametrize("name", MIXERS)
def test_without_a_validation_trace_prompts_are_held_out(name: str, fold: Fold) -> None:
    few = fold.train.take_prompts(range(40))
    predictor = build(PREDICTORS, f"{name}:members={BOTH}").fit(few)
    assert recall(predictor, fold) > recall(build(PREDICTORS, "tokens").fit(few), fold) + 0.04


@pytest.mark.parametrize("prompts", [1, 2, 7, 60])
def test_members_never_judge_what_they_were_fitted_on(prompts: int) -> None:
    trace = make_trace(prompts=prompts)
    held_names = []
    for learned, held in divisions(trace, seed=0):
        if prompts > 1:
            assert not {p.name for p in learned.prompts} & {p.name for p in held.prompts}
            held_names += [p.name for p in held.prompts]
        else:
            assert held.answers is not None
            assert not held.answers[: len(learned)].any()
    assert len(held_names) == len(set(held_names))
    if 1 < prompts < 50:
        assert set(held_names) == {p.name for p in trace.prompts}


def test_a_trace_of_one_token_cannot_be_divided() -> None:
    with pytest.raises(TraceError, match="too few"):
        list(divisions(make_trace(prompts=1, tokens=1), seed=0))


def test_needs_are_those_of_the_members() -> None:
    trace = make_trace().without(weights=True)
    blind = replace(trace, token_id=np.full_like(trace.token_id, -1))
    assert build(PREDICTORS, "blend:members=memory+cooccur").needs == frozenset()
    assert build(PREDICTORS, "blend:members=memory+ensemble(members=tokens+rules)").needs == {"token_id", "ranked"}
    assert "no token ids" in str(missing(build(PREDICTORS, "ensemble:members=memory+tokens"), blind))


def test_fitted_files_are_members_and_stay_as_they_are(fold: Fold, tmp_path: Path) -> None:
    member = made("tokens", fold)
    save(member, tmp_path / "t.npz", fold.train.spec)
    other = fold.train.take_prompts([0, 1])
    (again,) = fitted(f"{tmp_path}/t.npz", 1, other, None)
    query = Replay(fold.test.take(slice(0, 30))).query(0, 1)
    np.testing.assert_array_equal(again.predict(query), member.predict(query))


def test_a_saved_blend_needs_its_members_files_no_more(fold: Fold, tmp_path: Path) -> None:
    save(made("tokens", fold), tmp_path / "t.npz", fold.train.spec)
    blend = made(f"ensemble:members={tmp_path}/t.npz+ensemble(members=cooccur+memory)", fold)
    save(blend, tmp_path / "b.npz", fold.train.spec)
    (tmp_path / "t.npz").unlink()
    again = load(tmp_path / "b.npz", fold.test.spec)
    assert again.needs == {"token_id"}
    query = Replay(fold.test.take(slice(0, 30)), as_decode=True).query(0, 1)
    np.testing.assert_array_equal(again.predict(query), blend.predict(query))


def test_a_file_of_another_model_is_refused(fold: Fold, tmp_path: Path) -> None:
    save(made("tokens", fold), tmp_path / "t.npz", fold.train.spec)
    assert model_of(tmp_path / "t.npz") == fold.train.spec
    other = make_trace(prompts=20)
    with pytest.raises(ChoiceError, match="cannot answer for"):
        load(tmp_path / "t.npz", other.spec)
    with pytest.raises(ChoiceError, match="was fitted on"):
        compare(other, predictors=[f"ensemble:members={tmp_path}/t.npz+memory"])


def test_a_damaged_member_is_refused(fold: Fold, tmp_path: Path) -> None:
    save(made("ensemble:members=tokens+cooccur", fold), tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as file:
        arrays = {key: file[key] for key in file.files}
    arrays["members_/0.npz"] = arrays["members_/0.npz"][:100]
    np.savez(tmp_path / "e.npz", **arrays)
    with pytest.raises(ForegateError, match=r"e\.npz"):
        load(tmp_path / "e.npz")
