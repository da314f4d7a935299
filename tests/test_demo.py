"""The demo: its prompts, its mistakes, and the whole loop on the embedded model within its time."""

import json
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foregate.cli import demo
from foregate.errors import ModelError
from foregate.evaluation import Measure
from foregate.traces.prompts import read_prompts
from foregate.traces.storage import read_trace

LIMIT = 120  # seconds on two cores


def test_the_prompts_are_many_kinds_and_all_different() -> None:
    prompts = read_prompts(str(demo.PROMPTS))
    assert len(prompts) >= 60
    assert len({p.text for p in prompts}) == len({p.name for p in prompts}) == len(prompts)
    kinds = Counter(p.dataset for p in prompts)
    assert len(kinds) >= 10
    assert min(kinds.values()) >= demo.FOLDS, "every fold tests a prompt of every kind"
    assert all(40 <= len(p.text) <= 300 for p in prompts)


def test_the_prompts_travel_with_the_package() -> None:
    import foregate

    assert demo.PROMPTS.is_relative_to(Path(foregate.__file__).parent)


def test_a_missing_model_is_answered_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "EMBEDDED", tmp_path / "models" / "tiny")
    with pytest.raises(ModelError, match="pass --model FOLDER"):
        demo.find_model(None)
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        demo.find_model(tmp_path)


def processor_seconds() -> float:
    """Of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_whole_loop_runs_within_its_time(tmp_path: Path) -> None:
    """In a process of its own: it must also start, compile and load within the limit."""
    if not (demo.EMBEDDED / "config.json").is_file():
        pytest.skip("models/tiny is not here: the demo was not run")
    pytest.importorskip("torch")
    pytest.importorskip("plotly")
    began = processor_seconds()
    command = [sys.executable, "-c", "from foregate.cli import main; main()", "demo", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=6 * LIMIT, check=False)
    assert done.returncode == 0, done.stderr
    assert processor_seconds() - began <= LIMIT  # it uses one thread; the clock would measure who else is running
    trace = read_trace(tmp_path / "out" / "trace.parquet")
    assert trace.hidden is not None
    assert len(trace.prompts) == len(read_prompts(str(demo.PROMPTS)))
    measures = [Measure(**row) for row in json.loads((tmp_path / "out" / "results.json").read_text())]
    assert {m.distance for m in measures if m.metric == "recall"} == {1, 2, 4}
    assert not any(m.leaks for m in measures)
    page = (tmp_path / "out" / "report.html").read_text()
    assert "foregate record" in page
    for command_line in ("foregate record", "foregate describe", "foregate compare"):
        assert f"$ {command_line}" in done.stdout
    assert "Where to look next" in done.stdout


def test_the_printed_commands_are_ones_that_exist() -> None:
    from foregate.cli import app

    line = demo._record_line(Path("models/tiny"), Path("demo/trace.parquet"))
    words = line.split()
    assert words[:3] == ["foregate", "record", "models/tiny"]
    known = CliRunner(env={"COLUMNS": "200", "TERM": "dumb"}).invoke(app, ["record", "--help"]).output
    for option in (w for w in words if w.startswith("--")):
        assert option in known
