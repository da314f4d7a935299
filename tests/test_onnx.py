"""A predictor's graph scores what the predictor scores, says what it is, and is refused where there is none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace
from typer.testing import CliRunner, Result

from foregate.cli import app
from foregate.components import build
from foregate.errors import ChoiceError, ForegateError, StorageError
from foregate.exporting import export, exportable
from foregate.history import Replay
from foregate.predictors import PREDICTORS
from foregate.predictors.graph import Exportable
from foregate.predictors.storage import save
from foregate.traces.schema import Trace
from foregate.traces.storage import write_trace

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")
pytest.importorskip("torch")
QUICK = {
    "mlp": "mlp:epochs=2,width=16",
    "probe": "probe:epochs=2,rank=3",
    "pre-attention": "pre-attention:epochs=2,rank=8",
    "fusion": "fusion:epochs=1,width=16,token_size=4,buckets=50",
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export-predictor", *map(str, arguments)])


def gaps(trace: Trace) -> Trace:
    """Absent experts, and weights in no order."""
    rng = np.random.default_rng(1)
    return replace(trace, experts=np.where(rng.random(trace.experts.shape) < 0.2, -1, trace.experts))


@pytest.mark.parametrize("horizon", [1, 2])
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("name", exportable())
def test_the_graph_scores_what_the_predictor_scores(name: str, weighted: bool, horizon: int, tmp_path: Path) -> None:
    trace = make_trace(hidden=6)
    trace = trace if weighted else trace.without(weights=True)
    predictor: Any = build(PREDICTORS, QUICK.get(name, name), horizon=horizon).fit(trace)
    export(predictor, trace.spec, tmp_path / "p.onnx", trace)
    session = onnxruntime.InferenceSession(tmp_path / "p.onnx")
    asked = 0
    for rows in trace.sequences():
        replay = Replay(gaps(trace).take(rows), as_decode=True)
        for distance in (1, 2):
            for target in range(distance - 1, trace.spec.num_layers):
                query = replay.query(target - distance, target)
                features = predictor.features(query)
                if features is not None:
                    asked += 1
                    np.testing.assert_allclose(session.run(None, features)[0], predictor.predict(query), atol=1e-5)
                else:
                    assert not predictor.covers(query).any()
    assert asked


def test_those_with_a_graph_are_named() -> None:
    assert set(QUICK) <= set(exportable())
    assert all(issubclass(PREDICTORS[name], Exportable) for name in exportable())


def test_the_command_writes_checks_and_times(tmp_path: Path) -> None:
    trace = make_trace()
    save(build(PREDICTORS, QUICK["mlp"]).fit(trace), tmp_path / "p.npz", trace.spec)
    result = run(tmp_path / "p.npz", "-o", tmp_path / "p.onnx", "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    found = json.loads(result.stdout)
    assert found["difference"] <= found["tolerance"] == 1e-4
    assert [cost["batch"] for cost in found["costs"]] == [1, 8]
    assert all(cost["foregate"] > 0 and cost["onnx"] > 0 for cost in found["costs"])
    assert found["routing"] == "random"
    assert found["inputs"] == {"rows": "float32 [N, 10]"}
    shown = " ".join(run(tmp_path / "p.npz", "-o", tmp_path / "q.onnx").stdout.split())
    assert "of random routing" in shown
    assert "onnxruntime" in shown


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    trace = make_trace()
    export(build(PREDICTORS, QUICK["mlp"]).fit(trace), trace.spec, tmp_path / "p.onnx")
    said = onnxruntime.InferenceSession(tmp_path / "p.onnx").get_modelmeta().custom_metadata_map
    header = json.loads(said["foregate.json"])
    assert (header["predictor"], header["options"]["width"], header["model"]["top_k"]) == ("mlp", 16, 2)
    assert json.loads(said["inputs"]) == {"rows": "float32 [N, 10]"}


def test_a_traces_routing_can_be_asked_about(tmp_path: Path) -> None:
    trace = make_trace(tokens=20)
    write_trace(trace, tmp_path / "t.parquet")
    save(build(PREDICTORS, QUICK["mlp"]).fit(trace), tmp_path / "p.npz")  # a file that does not say its model
    result = run(tmp_path / "p.npz", "-o", tmp_path / "p.onnx", "--trace", tmp_path / "t.parquet", "--json")
    assert json.loads(result.stdout)["routing"] == "random"  # the model's name in these tests
    refused = run(tmp_path / "p.npz", "-o", tmp_path / "q.onnx")
    assert isinstance(refused.exception, ChoiceError)
    assert "give a --trace" in str(refused.exception)


def test_what_has_no_graph_is_refused(tmp_path: Path) -> None:
    trace = make_trace()
    save(build(PREDICTORS, "tokens").fit(trace), tmp_path / "p.npz", trace.spec)
    result = run(tmp_path / "p.npz", "-o", tmp_path / "p.onnx")
    assert isinstance(result.exception, ForegateError)
    assert "tokens cannot be written as a graph" in str(result.exception)
    assert "mlp" in str(result.exception)
    assert not (tmp_path / "p.onnx").exists()


def test_a_file_that_exists_is_kept(tmp_path: Path) -> None:
    (tmp_path / "p.onnx").write_text("mine")
    assert isinstance(run(tmp_path / "p.npz", "-o", tmp_path / "p.onnx").exception, StorageError)
    assert (tmp_path / "p.onnx").read_text() == "mine"
