"""The leaderboard recipe: one command, a page and its numbers, and nothing done twice."""

import importlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import make_trace

from foregate.components import build
from foregate.errors import ChoiceError
from foregate.evaluation import Measure
from foregate.predictors import PREDICTORS
from foregate.predictors.storage import load, save
from foregate.splits import split
from foregate.traces.schema import Trace

ROOT = Path(__file__).resolve().parent.parent
FEW = ("chance", "tokens", "cooccur")


@pytest.fixture(scope="module")
def recipes() -> Iterator[dict[str, ModuleType]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "recipes"))
        names = ("leaderboard", "leaderboard_subjects", "leaderboard_kept")
        yield {name: importlib.import_module(name) for name in names}


@pytest.fixture
def run(recipes: dict[str, ModuleType], tmp_path: Path) -> Callable[..., int]:
    """The command, on made traces of which all but FEW predictors are left out."""
    rest = {name: "too slow for a test" for name in PREDICTORS if name not in FEW} | {"next-gate": "no model"}
    Subject = recipes["leaderboard_subjects"].Subject

    def subject(name: str, trace: Trace, **options: Any) -> Any:
        return Subject(name, f"Model {name}", ".", lambda data: trace, "Made up.", left_out=rest, **options)

    subjects = [
        subject("many", make_trace(prompts=20), as_decode=True),
        subject("one", make_trace(prompts=1, tokens=30), how="half"),
    ]

    def command(*arguments: object) -> int:
        folders = ("--data", tmp_path, "--work", tmp_path / "work", "--out", tmp_path / "board.md")
        return int(recipes["leaderboard"].main([str(a) for a in (*folders, *arguments)], subjects))

    return command


def results(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (folder / "work" / "results").rglob("*.json")}


def test_a_page_with_every_predictor_and_rows_that_measures_can_read(run: Callable[..., int], tmp_path: Path) -> None:
    assert run() == 0
    page = (tmp_path / "board.md").read_text()
    for text in (
        "Model many",
        "Model one",
        "`cooccur` |",
        "`tokens` (baseline)",
        "is first with",
        "of the same prompts",
    ):
        assert text in page
    rows = [Measure(**row) for row in json.loads((tmp_path / "board.json").read_text())]
    assert {r.trace for r in rows} == {"Model many", "Model one"}
    assert {r.predictor for r in rows} == set(FEW)
    assert {r.distance for r in rows if r.metric == "recall"} == {1, 2, 3, 4}
    assert {r.budget for r in rows if r.metric == "recall"} == {1, 2, 4}
    assert {"fit_s", "predict_us", "bytes", "calibration_error"} <= {r.metric for r in rows}
    assert all(r.low is not None for r in rows if r.trace == "Model many" and r.metric == "recall")
    assert all(r.low is None for r in rows if r.trace == "Model one")
    for name in set(PREDICTORS) - set(FEW):
        assert f"- `{name}`: " in page


def test_a_stopped_run_goes_on_and_nothing_is_done_twice(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PREDICTORS["tokens"], "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            run()
    first = results(tmp_path)
    assert len(first) == 2  # chance and cooccur came before
    run("--only", "one")
    assert "`tokens`: not compared yet" in (tmp_path / "board.md").read_text()
    run()
    second = results(tmp_path)
    assert len(second) == 2 * len(FEW)
    assert first.items() <= second.items()
    run()
    assert results(tmp_path) == second


def test_other_settings_or_another_trace_are_another_result(recipes: dict[str, ModuleType]) -> None:
    digest = recipes["leaderboard_kept"].digest
    trace = make_trace()
    assert digest(trace) == digest(make_trace())
    halves = next(split(trace, "half"))
    assert len({digest(t) for t in (trace, make_trace(seed=1), halves.train, halves.test)}) == 4


def test_a_fitted_predictor_is_kept_with_its_seconds(
    recipes: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fold = next(split(make_trace(prompts=20), "prompt"))
    keeper = recipes["leaderboard_kept"].Keeper(tmp_path)
    keeper(PREDICTORS["tokens"](), fold)
    assert not list(tmp_path.iterdir())  # quickly fitted again
    monkeypatch.setattr(recipes["leaderboard_kept"], "KEPT", 0.0)
    _, seconds = keeper(PREDICTORS["tokens"](), fold)
    assert keeper(PREDICTORS["tokens"](), fold)[1] == seconds
    assert keeper.place(PREDICTORS["tokens"](smoothing=2.0), fold) != keeper.place(PREDICTORS["tokens"](), fold)


def test_online_is_fitted_over_the_fusion_that_was_kept(
    recipes: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    fold = next(split(make_trace(prompts=20), "prompt"))
    keeper = recipes["leaderboard_kept"].Keeper(tmp_path)
    monkeypatch.setattr(recipes["leaderboard_kept"], "KEPT", 0.0)
    fusion = "fusion(epochs=1,width=16,token_size=4,buckets=50)"
    first, seconds = keeper(build(PREDICTORS, fusion.replace("(", ":").replace(")", ""), horizon=2), fold)
    monkeypatch.setattr(type(first), "fit", None)  # it is not fitted again
    online, whole = keeper(build(PREDICTORS, f"online:members={fusion}", horizon=2), fold)
    assert whole > seconds
    np.testing.assert_array_equal(online.members_[0].out_, first.out_)
    assert load(keeper.place(online, fold), fold.train.spec).members_[0].horizon == 2


def test_online_is_begun_when_its_fusion_is_done(
    run: Callable[..., int], recipes: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here the first of the line goes on from the last."""
    done: list[str] = []

    def examined(task: Any) -> tuple[Any, float, str]:
        done.append(task.component)
        return task, 1.0, "not now"

    monkeypatch.setattr(recipes["leaderboard"], "examine", examined)
    run("--only", "one")
    first, *between, last = done
    done.clear()
    monkeypatch.setattr(recipes["leaderboard"], "AFTER", {first: last})
    run("--only", "one")
    assert done == [*between, last, first]


def test_side_by_side_it_also_waits(
    run: Callable[..., int], recipes: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipes["leaderboard"], "AFTER", dict.fromkeys(FEW[:2], FEW[2]))
    before = dict(os.environ)
    assert run("--only", "one", "--jobs", 2) == 0
    assert dict(os.environ) == before, "libraries here would take another number of threads from now on"
    written = sorted(results(tmp_path).items(), key=lambda item: item[1])
    assert written[0][0].name.startswith(FEW[2])


def test_a_predictor_fitted_elsewhere_can_be_placed(run: Callable[..., int], tmp_path: Path) -> None:
    file = tmp_path / "tokens.npz"
    fold = next(split(make_trace(prompts=20), "prompt"))
    save(PREDICTORS["tokens"]().fit(fold.train), file, fold.train.spec)
    run("--adopt", "many", "tokens", file, 1234.5)
    run("--only", "many")
    rows = [Measure(**row) for row in json.loads((tmp_path / "board.json").read_text())]
    assert [r.value for r in rows if (r.predictor, r.metric) == ("tokens", "fit_s")] == [1234.5]
    with pytest.raises(ChoiceError, match="is not cooccur"):
        run("--adopt", "many", "cooccur", file, 1)


def test_what_fails_is_named_and_the_rest_goes_on(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no luck today")

    monkeypatch.setattr(PREDICTORS["cooccur"], "fit", broken)
    assert run("--only", "many") == 1
    page = (tmp_path / "board.md").read_text()
    assert "`cooccur`: it failed: ValueError: no luck today" in page
    assert "`tokens` (baseline)" in page


def test_every_registered_predictor_is_on_every_trace_or_named_as_left_out(recipes: dict[str, ModuleType]) -> None:
    for subject in recipes["leaderboard_subjects"].SUBJECTS:
        names = {component.partition(":")[0] for component in subject.components()}
        assert names | set(subject.left_out) == set(PREDICTORS)
