"""The inter-layer transformer and its variants: what they see, what they must not see, and that they learn."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import make_trace

from foregate.components import build
from foregate.errors import ChoiceError, TraceError
from foregate.evaluation import evaluate
from foregate.history import Replay
from foregate.predictors import PREDICTORS
from foregate.predictors.counting import layer_frequency
from foregate.predictors.interlayer.augment import Augmentation, augmented
from foregate.predictors.interlayer.batches import SPAN, Grid, Runs, questions
from foregate.predictors.interlayer.interlayer import Interlayer
from foregate.predictors.interlayer.network import loss, network
from foregate.predictors.interlayer.training import PRESETS, _exam, _lessons, _recall, frequency
from foregate.predictors.networks.run import moved
from foregate.splits import split
from foregate.traces.schema import Trace

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
VARIANTS = ("interlayer", "multiscale", "augmented")
TINY = "dim=16,heads=2,ff=16,depth=2,window=5"
LEARNS = "dim=32,heads=4,ff=64,depth=2,window=4,dropout=0,batch=2,learning_rate=0.01"


def planted(*, prompts: int = 30, tokens: int = 40, layers: int = 5, experts: int = 8, unsure: bool = False) -> Trace:
    """An expert follows from the first layer's and the layer alone, k = 1; `unsure`: by chance after expert 0 and 1."""
    trace = make_trace(prompts=prompts, tokens=tokens, layers=layers, experts=experts, k=1)
    first = np.random.default_rng(1).integers(0, experts, len(trace))
    routed = (first[:, None] * 3 + np.arange(layers) ** 2 * (1 + first[:, None] % 2)) % experts
    if unsure:
        chance = np.random.default_rng(2).integers(0, experts, (len(trace), layers - 1))
        routed[:, 1:] = np.where(first[:, None] < experts // 2, chance, routed[:, 1:])
    routed[:, 0] = first
    return replace(
        trace, experts=routed[:, :, None].astype(np.int8), weights=np.ones((len(trace), layers, 1), np.float32)
    )


def module(predictor: Interlayer, trace: Trace) -> tuple[Any, Grid]:
    sizes = predictor.course.sizes
    grid = Grid.of(trace.spec, max(sizes.scales), predictor.window)
    torch.manual_seed(0)
    return network(torch, sizes, grid, predictor.horizon, layer_frequency(trace)).eval(), grid


def plain(options: str = TINY, **others: Any) -> Interlayer:
    predictor = build(PREDICTORS, f"interlayer:{options}", **others)
    assert isinstance(predictor, Interlayer)
    return predictor


def test_presets_are_the_published_sizes() -> None:
    found = {
        name: (p.sizes.dim, p.sizes.heads, p.sizes.ff, p.sizes.depth, p.sizes.dropout) for name, p in PRESETS.items()
    }
    assert found == {
        "baseline": (256, 8, 1024, 4, 0.1),
        "improved": (320, 10, 1280, 5, 0.12),
        "enhanced": (512, 16, 2048, 6, 0.15),
    }
    course = plain("preset=enhanced,epochs=5,depth=2").course
    assert (course.sizes.dim, course.sizes.depth, course.batch, course.smoothing) == (512, 2, 16, 0.1)
    assert course.recipe.schedule.period == pytest.approx(1)  # type: ignore[union-attr]
    assert (course.recipe.warmup, course.recipe.clip, course.recipe.betas) == (100, 0.5, (0.9, 0.95))


@pytest.mark.parametrize("name", VARIANTS)
def test_it_learns_and_the_target_layer_matters(name: str) -> None:
    fold = next(split(planted(), "prompt"))
    predictor = build(PREDICTORS, f"{name}:{LEARNS},epochs=14", horizon=2).fit(fold.train, fold.validation)
    for distance in (1, 2):
        tally = evaluate(predictor, fold.test, distance=distance)
        assert np.nanmean(tally.mean("top1")[distance:]) > 0.9, tally.mean("top1")


@pytest.mark.parametrize("contexts", ["3", "2+3+4", "7"])
@pytest.mark.parametrize("weighted", [True, False])
def test_numpy_answers_as_torch_does(contexts: str, weighted: bool) -> None:
    trace = make_trace(prompts=1, tokens=50, k=3)
    if not weighted:
        trace = trace.without(weights=True)
    gaps = np.random.default_rng(0).random(trace.experts.shape) < 0.2
    trace = replace(trace, experts=np.where(gaps, -1, trace.experts).astype(np.int8))
    predictor = plain(f"{TINY},contexts={contexts}", horizon=2)
    model, grid = module(predictor, trace)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    predictor.weights_ = {name: w.numpy() for name, w in model.state_dict().items()}
    predictor.frequency_ = layer_frequency(trace)
    runs = Runs.of(trace)
    for layer, target in ((-1, 0), (0, 1), (3, 4), (2, 4)):
        every = np.arange(len(runs))
        batch = moved(runs.batch(grid, every, np.full(len(runs), layer), np.full(len(runs), target)), "cpu")
        with torch.no_grad():
            logits, sure = model(batch)
        asked = (torch.arange(len(runs) * SPAN) < len(trace)).numpy()
        expected = torch.softmax(logits, dim=-1).numpy().reshape(-1, trace.spec.num_experts)[asked]
        query = Replay(trace, as_decode=True).query(layer, target)
        np.testing.assert_allclose(predictor.predict(query), expected, atol=2e-6)
        np.testing.assert_allclose(
            predictor.confidence(query), torch.sigmoid(sure).numpy().reshape(-1)[asked], atol=2e-6
        )


def test_training_shows_no_answer_and_no_later_token() -> None:
    trace = make_trace(prompts=1, tokens=SPAN)
    model, grid = module(plain(), trace)
    runs = Runs.of(trace)
    batch = moved(runs.batch(grid, np.array([0]), np.array([2]), np.array([3])), "cpu")
    at, W = 10, grid.window
    with torch.no_grad():
        before = model(batch)[0][0]
        answer = {**batch, "targets": batch["targets"].clone(), "answers": batch["answers"] * 0}
        answer["targets"][0, W + at :] = grid.absent
        changed = model(answer)[0][0]
        assert torch.equal(before[: at + 1], changed[: at + 1])
        assert not torch.equal(before[at + 1], changed[at + 1])
        later = {**batch, "cells": batch["cells"].clone()}
        later["cells"][0, W + at + 1 :] = grid.absent
        assert torch.equal(before[: at + 1], model(later)[0][0][: at + 1])
        early = {**batch, "cells": batch["cells"].clone()}
        early["cells"][0, W] = grid.absent
        far = model(early)[0][0]
        assert not torch.equal(before[W], far[W])
        assert torch.equal(before[W + 1 :], far[W + 1 :])  # a window ends


@pytest.mark.parametrize("name", VARIANTS)
def test_short_models_and_blind_rows_give_numbers(name: str) -> None:
    """Fewer layers than context, fewer tokens than the window, nothing before the first layer."""
    trace = make_trace(prompts=6, tokens=4, layers=2)
    predictor = build(PREDICTORS, f"{name}:{TINY},epochs=2").fit(trace)
    for rows in trace.sequences():
        for as_decode in (False, True):
            for layer, target in ((-1, 0), (0, 1)):
                scores = predictor.predict(Replay(trace.take(rows), as_decode).query(layer, target))
                assert np.isfinite(scores).all()
                np.testing.assert_allclose(scores.sum(axis=1), 1, rtol=1e-5)


def test_absent_layers_are_the_mask_token_and_only_these() -> None:
    grid = Grid(layers=5, experts=8, top_k=2, context=3, window=0)
    experts = np.arange(10).reshape(1, 5, 2) % 8
    assert grid.cells(experts, -1).tolist() == [[[grid.mask] * 2] * 3]
    assert grid.cells(experts, 1).tolist() == [[[grid.mask] * 2, [0, 1], [8 + 2, 8 + 3]]]
    assert grid.cells(experts, 4).tolist() == [[[16 + 4, 16 + 5], [24 + 6, 24 + 7], [32 + 0, 32 + 1]]]
    assert grid.cells(experts * 0 - 1, 2).tolist() == [[[grid.absent] * 2] * 3]


def test_the_confidence_head_knows_when_it_is_right() -> None:
    fold = next(split(planted(unsure=True), "prompt"))
    predictor = plain(f"{LEARNS},epochs=20").fit(fold.train, fold.validation)
    sure, right = [], []
    for rows in fold.test.sequences():
        replay = Replay(fold.test.take(rows), as_decode=True)
        for target in range(1, 5):
            query = replay.query(target - 1, target)
            sure.append(predictor.confidence(query))
            right.append(predictor.predict(query).argmax(axis=1) == replay.trace.experts[:, target, 0])
    confidence, hits = np.concatenate(sure), np.concatenate(right)
    upper = confidence > np.median(confidence)
    assert hits[upper].mean() > hits[~upper].mean() + 0.4
    assert abs(confidence.mean() - hits.mean()) < 0.15


def test_the_confidence_head_does_not_move_the_prediction() -> None:
    trace = make_trace(prompts=2)
    model, grid = module(plain(), trace)
    runs = Runs.of(trace)
    batch = moved(runs.batch(grid, np.arange(2), np.array([1, 2]), np.array([2, 3])), "cpu")
    model(batch)[1].sum().backward()
    moving = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.abs().sum() > 0)}
    assert moving == {"sure.weight", "sure.bias"}


def lesson(trace: Trace) -> tuple[dict[str, Any], Grid]:
    grid = Grid.of(trace.spec, 3, 5)
    runs = Runs.of(trace)
    rng = np.random.default_rng(0)
    return runs.batch(grid, np.arange(len(runs)), *questions(grid, 2, len(runs), rng)), grid


def test_augmentation_changes_copies_within_their_layers() -> None:
    batch, grid = lesson(make_trace(prompts=60, tokens=40, experts=8))
    before = {name: array.copy() for name, array in batch.items()}
    changed = augmented(batch, grid, Augmentation(0.2, 0.3, 0.2), np.random.default_rng(1))
    for name, array in batch.items():
        np.testing.assert_array_equal(array, before[name])
    for name in ("answers", "targets", "layer", "target", "there", "seen"):
        np.testing.assert_array_equal(changed[name], before[name])
    there = before["cells"] < grid.absent
    masked = (changed["cells"] == grid.mask).all(axis=3) & there.all(axis=3)
    assert masked.sum() / there.all(axis=3).sum() == pytest.approx(0.2, abs=0.03)
    left = there & (changed["cells"] < grid.absent)
    np.testing.assert_array_equal(changed["cells"][left] // 8, before["cells"][left] // 8)
    assert (changed["cells"][left] != before["cells"][left]).mean() == pytest.approx(0.3 * 7 / 8, abs=0.03)
    partners = np.take_along_axis(batch["answers"], changed["partner"][:, :, None], axis=1)
    known = (batch["answers"] >= 0).any(axis=(1, 2))
    assert (partners[known] >= 0).any(axis=2).all()
    assert ((changed["blend"] >= 0.5) & (changed["blend"] <= 1)).all()


def test_a_blend_of_a_row_with_itself_changes_nothing() -> None:
    trace = make_trace(prompts=2)
    model, _ = module(plain(horizon=2), trace)
    batch, _ = lesson(trace)
    same = np.tile(np.arange(SPAN), (len(batch["layer"]), 1))
    mixed = {**batch, "blend": np.full(len(same), 0.7, np.float32), "partner": same}
    torch.testing.assert_close(
        loss(torch, model, moved(mixed, "cpu"), 0.1), loss(torch, model, moved(batch, "cpu"), 0.1)
    )


def test_augmentation_never_touches_what_judges() -> None:
    trace = make_trace(prompts=20, tokens=40)
    fold = next(split(trace, "prompt"))
    assert fold.validation is not None
    heard: list[float] = []
    predictor = plain(f"{TINY},augment=true,epochs=3,batch=4")
    predictor.on_epoch = lambda epoch, score: heard.append(score)
    predictor.fit(fold.train, fold.validation)
    model, grid = module(predictor, trace)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in predictor.weights_.items()})
    exam = list(_exam(grid, 1, fold.validation, predictor.seed))
    for batch in exam:
        assert "blend" not in batch
        whole = batch["layer"] >= 2
        assert (batch["cells"][whole][batch["there"][whole]] < grid.absent).all()
    with torch.no_grad():
        assert _recall(torch, model, exam) == pytest.approx(max(heard), abs=1e-6)
    lessons = list(_lessons(predictor.course, grid, [fold.train], 1))
    assert all("blend" in batch for batch in lessons)


def test_an_epoch_shows_every_token_once() -> None:
    trace = make_trace(prompts=7, tokens=45)
    for augment in ("false", "true"):
        course = plain(f"{TINY},augment={augment}").course
        grid = Grid.of(trace.spec, 3, 5)
        asked = sum(int((b["answers"] >= 0).any(axis=2).sum()) for b in _lessons(course, grid, [trace], 1))
        assert asked == len(trace)


def test_frequency_of_parts_is_that_of_the_whole() -> None:
    trace = make_trace(prompts=9)
    halves = [trace.take_prompts(range(4)), trace.take_prompts(range(4, 9))]
    np.testing.assert_allclose(frequency(halves), layer_frequency(trace), rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interlayer:preset=huge", "there is no preset 'huge'"),
        ("interlayer:heads=7", "cannot be divided among 7 heads"),
        ("interlayer:contexts=2+x", "contexts='2\\+x'"),
        ("interlayer:contexts=0", "contexts='0'"),
        ("multiscale:heads=7", "7 heads"),
        ("augmented:device=abacus", "device=cpu"),
    ],
)
def test_what_does_not_fit_is_said(text: str, message: str) -> None:
    with pytest.raises(ChoiceError, match=message):
        build(PREDICTORS, text).fit(make_trace())


def test_nothing_to_judge_by_is_said() -> None:
    trace = make_trace()
    none = replace(trace, answers=np.zeros(trace.experts.shape[:2], dtype=np.bool_))
    with pytest.raises(TraceError, match="too few"):
        plain().fit(none)
