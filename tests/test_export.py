"""Export gives back what import read, byte for byte, and refuses what records cannot say."""

import gzip
import json
import lzma
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_importers import DATA, lines, published, put, records
from test_storage import made_up

from foregate.errors import TraceError
from foregate.traces.export import export_jsonl, left_out
from foregate.traces.importers import IMPORTERS
from foregate.traces.storage import write_trace


def foregate(*words: object, limit: int | None = None) -> subprocess.CompletedProcess[bytes]:
    """The command in a process of its own, which may write files of at most `limit` bytes."""
    return subprocess.run(
        [sys.executable, "-c", "from foregate.cli import main; main()", *map(str, words)],
        preexec_fn=(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))) if limit else None,
        capture_output=True,
        check=False,
    )


@published
def test_published_mixtral_comes_back_byte_for_byte(tmp_path: Path) -> None:
    for name in ("humaneval", "gsm8k"):
        source = DATA / f"mixtral-8x7b-instruct/{name}_2_routing.jsonl.xz"
        trace = IMPORTERS["records"]([source])
        export_jsonl(trace, tmp_path / "a.jsonl")
        assert (tmp_path / "a.jsonl").read_bytes() == lzma.decompress(source.read_bytes())
        assert IMPORTERS["records"]([tmp_path / "a.jsonl"]).equals(trace)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_records_come_back_byte_for_byte(data: st.DataObject, tmp_path: Path) -> None:
    weight = st.floats(0, 1) | st.floats(0, 1, width=32)
    problems = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=3, unique=True))
    rows = []
    for problem in problems:
        for row in records(tokens=data.draw(st.integers(1, 3)), layers=2, problem_id=problem, dataset='é"\\'):
            row["gating_probs"] = [data.draw(weight), data.draw(weight)]
            if (row["layer"], row["token_idx"]) != (1, 1) or data.draw(st.booleans()):
                rows.append(row)
    source = put(tmp_path / "a.jsonl", lines(rows))
    trace = IMPORTERS["records"]([source])
    export_jsonl(trace, tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_bytes() == source.read_bytes()
    assert IMPORTERS["records"]([tmp_path / "b.jsonl"]).equals(trace)


def test_any_trace_can_be_read_back_as_records(tmp_path: Path) -> None:
    trace = made_up(3, pieces=True)
    assert export_jsonl(trace, tmp_path / "t.jsonl") == int((trace.experts[:, :, 0] >= 0).sum())
    back = IMPORTERS["records"]([tmp_path / "t.jsonl"], experts=8)
    assert back.experts.tolist() == trace.experts.tolist()
    assert back.spec.layer_ids == trace.spec.layer_ids
    assert "token ids" in left_out(trace)
    assert not left_out(IMPORTERS["records"]([put(tmp_path / "a.jsonl", lines(records()))]))


def test_without_weights_records_have_no_gating_probs(tmp_path: Path) -> None:
    trace = made_up(0, weights=None)
    export_jsonl(trace, tmp_path / "t.jsonl")
    assert all("gating_probs" not in json.loads(line) for line in (tmp_path / "t.jsonl").open())
    assert IMPORTERS["records"]([tmp_path / "t.jsonl"]).weights is None


def test_a_half_empty_cell_is_refused(tmp_path: Path) -> None:
    trace = made_up(0)
    trace.experts[1, 2] = [3, -1]
    with pytest.raises(TraceError, match="token row 1, layer 2 has 1 of 2 experts"):
        export_jsonl(trace, tmp_path / "t.jsonl")
    assert not list(tmp_path.iterdir())


def test_the_suffix_says_how_to_pack(tmp_path: Path) -> None:
    trace = made_up(0)
    for name in ("t.jsonl", "t.jsonl.gz", "t.jsonl.xz", "u.jsonl.gz"):
        export_jsonl(trace, tmp_path / name)
    plain = (tmp_path / "t.jsonl").read_bytes()
    assert gzip.decompress((tmp_path / "t.jsonl.gz").read_bytes()) == plain
    assert lzma.decompress((tmp_path / "t.jsonl.xz").read_bytes()) == plain
    assert (tmp_path / "t.jsonl.gz").read_bytes() == (tmp_path / "u.jsonl.gz").read_bytes()


def test_the_command_writes_to_standard_output(tmp_path: Path) -> None:
    write_trace(made_up(0), tmp_path / "t.parquet")
    done = foregate("export", tmp_path / "t.parquet", "-o", "-")
    export_jsonl(made_up(0), tmp_path / "t.jsonl")
    assert done.returncode == 0
    assert done.stdout == (tmp_path / "t.jsonl").read_bytes()
    assert b"no place for token ids" in done.stderr


def test_the_command_keeps_what_is_there(tmp_path: Path) -> None:
    write_trace(made_up(0), tmp_path / "t.parquet")
    output = put(tmp_path / "t.jsonl", "precious")
    done = foregate("export", tmp_path / "t.parquet", "-o", output)
    assert done.returncode == 2
    assert b"--overwrite" in done.stderr
    assert output.read_text() == "precious"
    assert foregate("export", tmp_path / "t.parquet", "-o", output, "--overwrite").returncode == 0
    assert output.read_text() != "precious"


def test_an_unknown_format_lists_the_known(tmp_path: Path) -> None:
    done = foregate("export", tmp_path / "t.parquet", "--format", "csv", "-o", "-")
    assert done.returncode == 2
    assert b"choose one of jsonl" in done.stderr


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.xz"])
def test_a_full_disk_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    write_trace(made_up(0, prompts=50, tokens=20), tmp_path / "t.parquet")
    (tmp_path / "out").mkdir()
    done = foregate("export", tmp_path / "t.parquet", "-o", tmp_path / "out" / name, limit=4000)
    assert done.returncode == 2
    assert b"File too large; nothing was left behind" in done.stderr
    assert b"Traceback" not in done.stderr
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_standard_output_is_a_sentence(tmp_path: Path) -> None:
    write_trace(made_up(0), tmp_path / "t.parquet")
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                "from foregate.cli import main; main()",
                "export",
                tmp_path / "t.parquet",
                "-o",
                "-",
            ],
            stdout=full,
            stderr=subprocess.PIPE,
            env=dict(os.environ),
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr.strip().endswith(b"cannot write to standard output: No space left on device")


def test_weights_print_as_the_source_printed_them(tmp_path: Path) -> None:
    head = '{"dataset": "d", "problem_id": 0, "layer": 0, "experts": [1, 0], "gating_probs": '
    text = head + '[0.6959583759307861, 1e-05], "token_idx": 0}\n'
    trace = IMPORTERS["records"]([put(tmp_path / "a.jsonl", text)])
    assert trace.weights is not None
    assert trace.weights.dtype == np.float64  # 1e-05 is no float32
    export_jsonl(trace, tmp_path / "b.jsonl")
    assert (tmp_path / "b.jsonl").read_text() == text
