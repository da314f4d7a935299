"""A trace larger than memory: parts are the whole, training on them is training on it, and memory does not grow."""

import json
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import make_trace
from typer.testing import CliRunner, Result

from foregate.cli import app
from foregate.components import build
from foregate.errors import ChoiceError, ForegateError, TraceError
from foregate.predictors import PREDICTORS
from foregate.predictors.interlayer.batches import Grid
from foregate.predictors.interlayer.interlayer import Interlayer
from foregate.predictors.interlayer.training import _lessons, frequency
from foregate.predictors.storage import load
from foregate.splits import split, without_duplicates
from foregate.streaming import split_parts
from foregate.traces.parts import Parts
from foregate.traces.schema import Trace, concat
from foregate.traces.storage import read_trace, write_trace

TINY = "interlayer:dim=8,heads=2,ff=8,depth=1,window=2,epochs=2,batch=4"


def stored(trace: Trace, path: Path, *, group: int) -> Path:
    """A trace file with so many rows a row group."""
    whole = path.with_suffix(".whole")
    write_trace(trace, whole)
    pq.write_table(pq.read_table(whole), path, row_group_size=group, write_page_checksum=True)
    return path


def alike(parts: list[Trace], whole: Trace) -> bool:
    """Equal but for the numbers of forward passes, which joining changes."""
    joined, none = concat(parts), np.zeros(len(whole), np.int32)
    return len(joined) == len(whole) and replace(joined, step=none).equals(replace(whole, step=none))


@pytest.mark.parametrize("rows", [1, 5, 12, 13, 1000])
def test_parts_are_the_whole(rows: int, tmp_path: Path) -> None:
    trace = make_trace(prompts=7, hidden=3)
    path = stored(trace, tmp_path / "t.parquet", group=11)
    for hidden in (True, False):
        parts = Parts.stored(path, hidden=hidden, rows=rows)
        found = list(parts)
        assert all(len(part) % 12 == 0 for part in found)  # whole sequences
        assert len(found) > 1 or rows == 1000
        assert alike(found, read_trace(path, hidden=hidden))
        assert alike(list(parts), concat(found))  # again
        assert parts.prompts == trace.prompts
    some = Parts.stored(path, rows=rows).take_prompts([1, 3, 5]).take_prompts([0, 2])
    assert alike(list(some), trace.without(hidden=True).take_prompts([1, 5]))
    assert some.prompts == (trace.prompts[1], trace.prompts[5])


def test_a_damaged_file_is_noticed_where_it_is_gone_through(tmp_path: Path) -> None:
    path = stored(make_trace(prompts=40, tokens=50), tmp_path / "t.parquet", group=100)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(TraceError, match="not a readable trace"):
        list(Parts.stored(path, rows=100))
    with pytest.raises(TraceError, match="does not exist"):
        Parts.stored(tmp_path / "none.parquet")


def test_a_streamed_split_is_the_split(tmp_path: Path) -> None:
    trace = make_trace(prompts=23)
    twice = concat([trace, trace.take_prompts([3, 4])])
    path = stored(twice, tmp_path / "t.parquet", group=50)
    expected = next(split(without_duplicates(twice), "prompt", seed=3))
    assert expected.validation is not None
    found = split_parts(Parts.stored(path, rows=30), seed=3)
    assert alike(list(found.train), expected.train)
    assert alike([found.validation], expected.validation)
    with pytest.raises(ChoiceError, match="three are the fewest"):
        split_parts(Parts.of(make_trace(prompts=2)))


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["train", *(str(a) for a in arguments)])


def same(first: Path, second: Path) -> bool:
    a, b = (vars(load(path)) for path in (first, second))
    return all(np.array_equal(a["weights_"][name], b["weights_"][name]) for name in a["weights_"])


def test_training_on_one_part_is_training_on_the_whole(tmp_path: Path) -> None:
    """Runs are shuffled within a part, so that one part and the whole trace are the same lesson."""
    write_trace(make_trace(prompts=20), tmp_path / "t.parquet")
    for name, how in (("a", "--stream"), ("b", "--no-stream"), ("c", None)):
        found = run(TINY, tmp_path / "t.parquet", "-o", tmp_path / f"{name}.npz", *([how] if how else []))
        assert found.exit_code == 0, (found.output, found.exception)
        assert ("streamed" in found.output) == (how == "--stream")
    assert same(tmp_path / "a.npz", tmp_path / "b.npz")
    assert same(tmp_path / "b.npz", tmp_path / "c.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("rules", "--stream"), "predictor that streams; not rules"),
        ((TINY, "--stream", "--split", "token"), "--stream is for one trace file, a split by prompt"),
        ((TINY, "--curve", "c.png"), "neither .json nor .html"),
        ((TINY, "--stream", "--distance", 5), "distance 5 does not fit"),
    ],
)
def test_what_does_not_go_together_is_said(arguments: tuple[Any, ...], message: str, tmp_path: Path) -> None:
    write_trace(make_trace(prompts=20), tmp_path / "t.parquet")
    result = run(*arguments, tmp_path / "t.parquet", "-o", tmp_path / "p.npz")
    assert isinstance(result.exception, ForegateError), result.output
    assert message in str(result.exception)


def test_train_tells_what_it_did(tmp_path: Path) -> None:
    pytest.importorskip("plotly")
    write_trace(make_trace(prompts=20), tmp_path / "t.parquet")
    out, page, curve, said = (tmp_path / name for name in ("p.npz", "c.html", "c.json", "s.json"))
    assert run(TINY, tmp_path / "t.parquet", "-o", out, "--curve", page, "--json", said).exit_code == 0
    found = json.loads(said.read_text())
    assert (found["predictor"], found["output"], found["bytes"]) == (TINY, str(out), out.stat().st_size)
    assert 0 < found["validation"]["recall@2"] < 1
    assert [point["epoch"] for point in found["curve"]] == [1, 2]
    assert "came after epoch" in page.read_text()
    assert not (tmp_path / "p.npz.checkpoint").exists()
    again = run(TINY, tmp_path / "t.parquet", "-o", out, "--curve", curve, "--json", "-", "--overwrite")
    assert json.loads(again.stdout)["curve"] == json.loads(curve.read_text()) == found["curve"]


def test_train_goes_on_after_a_kill(tmp_path: Path) -> None:
    """Shot from outside, as a batch system does; the first run alone is timed by its own checkpoint."""
    write_trace(make_trace(prompts=30), tmp_path / "t.parquet")
    text = TINY.replace("epochs=2", "epochs=4")
    arguments = [text, tmp_path / "t.parquet", "-o", tmp_path / "p.npz", "--checkpoint-every", 0]
    code = "import sys; from foregate.cli import main; sys.argv[0] = 'foregate'; main()"
    process = subprocess.Popen([sys.executable, "-c", code, "train", *map(str, arguments)])
    kept = tmp_path / "p.npz.checkpoint"
    while not kept.exists() and process.poll() is None:
        pass
    process.kill()
    process.wait()
    assert not (tmp_path / "p.npz").exists()
    assert "--resume" in str(run(*arguments).exception)
    other = run(*arguments, "--resume", "--seed", 1)
    assert "another run (split: prompt 0, now prompt 1)" in str(other.exception)
    assert run(*arguments, "--resume").exit_code == 0
    assert not kept.exists()
    assert run(*arguments[:3], tmp_path / "q.npz").exit_code == 0
    assert same(tmp_path / "p.npz", tmp_path / "q.npz")


def test_memory_does_not_grow_with_the_trace(tmp_path: Path) -> None:
    """Four times the tokens, 9 MB more of routing: what numpy and Arrow hold grows by less than half.

    A process' own peak also has torch and what allocators do not give back.
    """
    peaks = []
    for times in (1, 4):
        small = make_trace(prompts=80, tokens=100, layers=48, experts=120, k=8)
        copies = [replace(small, token_id=small.token_id + 20 * i) for i in range(times)]
        path = stored(concat(copies), tmp_path / f"{times}.parquet", group=1000)
        assert pq.ParquetFile(path).num_row_groups == 8 * times
        del small, copies
        predictor = build(PREDICTORS, f"{TINY},contexts=1")
        assert isinstance(predictor, Interlayer)
        tracemalloc.start()
        fold = split_parts(Parts.stored(path, rows=1000))
        judges = fold.validation.experts.nbytes + 16 * len(fold.validation)
        frequency(fold.train)
        lessons = _lessons(predictor.course, Grid.of(fold.validation.spec, 1, 2), fold.train, 1)
        arrow = max(pa.total_allocated_bytes() for _ in lessons)
        peaks.append(arrow + tracemalloc.get_traced_memory()[1] - 2 * judges)  # gathered, then joined
        tracemalloc.stop()
    assert peaks[1] - peaks[0] < 4_000_000, peaks


def test_whoever_says_that_it_streams_does() -> None:
    for name, kind in PREDICTORS.items():
        if getattr(kind, "streams", False):
            assert callable(getattr(build(PREDICTORS, name), "fit_parts", None))
