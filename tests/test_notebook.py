"""The notebook of the original demo's steps: clean as committed, explained, and it runs from top to bottom."""

import re
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("torch")
pytest.importorskip("plotly")

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "routing_analysis.ipynb"
FIGURE = "application/vnd.plotly.v1+json"
STEPS = ["Record", "Look", "Predict", "Compare", "Simulate", "Plan and run"]


@pytest.fixture
def notebook() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def test_the_notebook_is_committed_without_outputs(notebook: Any) -> None:
    nbformat.validate(notebook)
    assert all(cell.outputs == [] and cell.execution_count is None for cell in notebook.cells if "outputs" in cell)


def test_every_cell_is_explained_by_the_one_before_it(notebook: Any) -> None:
    for before, cell in zip([None, *notebook.cells], notebook.cells, strict=False):
        if cell.cell_type == "code":
            assert before is not None
            assert before.cell_type == "markdown", cell.source
            assert len(before.source.split()) >= 8, before.source


def test_the_notebook_goes_through_the_whole_loop(notebook: Any) -> None:
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.findall(r"^## \d\. (.*)$", text, re.MULTILINE) == STEPS


def test_the_notebook_runs(notebook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own last step compares what was written with what the whole model writes."""
    if not (ROOT / "models" / "tiny" / "config.json").is_file():
        pytest.skip("models/tiny is not here: the notebook was not run")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    client = nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert sum(FIGURE in output.get("data", {}) for output in outputs) >= 6
    for said in ("self-check 100.0%", "(simulated)", "(measured)", "the same tokens as the whole model"):
        assert said in printed
    assert not list(tmp_path.glob("tmp*")), "the notebook leaves its files behind"
