"""`foregate compare` as a user types it."""

import json
from pathlib import Path

import pytest
from conftest import make_trace
from typer.testing import CliRunner, Result

from foregate.cli import app
from foregate.errors import ForegateError
from foregate.evaluation import Measure
from foregate.traces.storage import write_trace


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "t.parquet"
    write_trace(make_trace(prompts=20), path)
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_rows_are_measures(file: Path, tmp_path: Path) -> None:
    result = run(file, "--distance", "1,2", "--budget", "1,3", "--as", "decode", "--json", tmp_path / "rows.json")
    assert result.exit_code == 0, result.output
    rows = [Measure(**row) for row in json.loads((tmp_path / "rows.json").read_text())]
    assert {r.budget for r in rows if r.metric == "recall"} == {1, 2, 3}
    assert {r.distance for r in rows if r.metric == "top1"} == {1, 2}
    for text in ("1 layer ahead", "2 layers ahead", "memory", "next-gate was left out"):
        assert text in result.output


def test_json_to_standard_output_is_only_json(file: Path) -> None:
    result = run(file, "--predictors", "tokens", "--json", "-")
    assert {row["predictor"] for row in json.loads(result.stdout)} == {"chance", "popularity", "previous", "tokens"}


def test_a_leaking_split_warns_and_marks_its_rows(file: Path) -> None:
    result = run(file, "--split", "token", "--predictors", "tokens")
    assert "leaks" in result.stderr
    assert "tokens (leaks)" in result.stdout


def test_a_single_prompt_is_split_by_half_and_the_page_says_so(tmp_path: Path) -> None:
    path, json_file = tmp_path / "one.parquet", tmp_path / "rows.json"
    write_trace(make_trace(prompts=1, tokens=40), path)
    result = run(path, "--split", "half", "--predictors", "tokens", "--json", json_file)
    assert result.exit_code == 0, result.output
    assert "says nothing of other prompts" in " ".join(result.stdout.split())
    rows = [Measure(**row) for row in json.loads(json_file.read_text())]
    assert {(r.split, r.leaks) for r in rows} == {("half", False)}
    assert all(r.low is None and r.high is None for r in rows)  # one prompt cannot be drawn again


def test_several_traces_of_one_model_are_joined(file: Path) -> None:
    result = run(file, file, "--predictors", "tokens")
    assert "20 duplicate prompts removed" in " ".join(result.output.split())


@pytest.mark.parametrize(
    "arguments",
    [("--as", "fast"), ("--distance", "x"), ("--split", "weekday"), ("--predictors", "oracle"), ("--folds", "1")],
)
def test_a_wrong_value_is_answered_with_a_sentence(file: Path, arguments: tuple[str, str]) -> None:
    result = run(file, *arguments)
    assert isinstance(result.exception, ForegateError)
    assert len(str(result.exception).splitlines()) == 1


def test_a_failed_comparison_writes_nothing(file: Path, tmp_path: Path) -> None:
    run(file, "--distance", "77", "--json", tmp_path / "rows.json")
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_split_all_stands_side_by_side_and_says_what_leaks(file: Path, tmp_path: Path) -> None:
    result = run(file, "--split", "all", "--folds", "2", "--predictors", "tokens", "--json", tmp_path / "rows.json")
    assert result.exit_code == 0, result.output
    rows = [Measure(**row) for row in json.loads((tmp_path / "rows.json").read_text())]
    assert {(r.split, r.leaks) for r in rows} == {("prompt", False), ("token", True), ("sample", True)}
    assert "stands in a training row" in " ".join(result.stdout.split())
