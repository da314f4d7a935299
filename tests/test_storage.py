"""Traces on disk: what goes in comes out, and nothing broken is taken for a trace."""

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foregate.errors import StorageError, TraceError
from foregate.spec import MoESpec
from foregate.traces.schema import Prompt, Provenance, Trace, concat, narrowest_float, smallest_int
from foregate.traces.storage import TraceWriter, read_trace, write_trace

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def made_up(
    seed: int, *, prompts: int = 2, tokens: int = 3, layers: int = 3, experts: int = 8, top_k: int = 2, **kept: object
) -> Trace:
    """A random trace with gaps. `kept`: weights (a float type or None), hidden (width or 0), pieces (bool)."""
    random = np.random.default_rng(seed)
    T = prompts * tokens
    shape = (T, layers, top_k)
    weights, hidden, pieces = kept.get("weights", np.float32), kept.get("hidden", 0), kept.get("pieces", False)
    routed = random.random((T, layers, experts)).argsort(axis=2)[:, :, :top_k]
    routed[random.random((T, layers)) < 0.1] = -1
    ids = random.integers(0, 5, T)
    return Trace(
        spec=MoESpec("model/ü", "decoder", tuple(range(1, layers + 1)), experts, top_k, (7,) * layers),
        sequence=np.repeat(np.arange(prompts), tokens).astype(np.int32),
        position=np.tile(np.arange(tokens), prompts).astype(np.int32),
        step=np.arange(T, dtype=np.int32),
        token_id=ids.astype(np.int32),
        experts=routed.astype(smallest_int(experts - 1)),
        weights=None if weights is None else random.random(shape).astype(weights),  # type: ignore[call-overload]
        hidden=random.random((T, layers, hidden)).astype(np.float16) if isinstance(hidden, int) and hidden else None,
        prompts=tuple(Prompt(f'{seed}/"{i}"\n☃', "d,s", i % 2) for i in range(prompts)),
        provenance=Provenance(("a.jsonl",), "records", False, 0.5, ("note",), {"x": "1"}, {"batch": 3}),
        pieces=("<s>", "Ġa", "\n", '"', "é") if pieces else None,
    )


traces = st.builds(
    made_up,
    st.integers(0, 2**32),
    prompts=st.integers(1, 4),
    tokens=st.integers(1, 6),
    layers=st.integers(1, 4),
    experts=st.sampled_from([4, 127, 128, 129, 300]),
    top_k=st.integers(1, 4),
    weights=st.sampled_from([None, np.float16, np.float32, np.float64]),
    hidden=st.sampled_from([0, 5]),
    pieces=st.booleans(),
)


@SETTINGS
@given(trace=traces)
def test_what_is_written_is_what_is_read(trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "t.parquet")
    back = read_trace(tmp_path / "t.parquet")
    assert back.equals(trace)
    assert back.provenance == trace.provenance
    for name in ("experts", "weights", "hidden"):
        before, after = getattr(trace, name), getattr(back, name)
        assert before is after is None or before.dtype == after.dtype


@SETTINGS
@given(trace=traces, share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_not_a_trace(trace: Trace, share: float, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    write_trace(trace, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(TraceError, match=r"t\.parquet"):
        read_trace(path)


@settings(SETTINGS, max_examples=400)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_never_changes_a_trace_unnoticed(place: float, bit: int, tmp_path: Path) -> None:
    trace = made_up(1, tokens=20, hidden=2)
    path = tmp_path / "t.parquet"
    write_trace(trace, path)
    rotten = bytearray(path.read_bytes())
    rotten[int(place * len(rotten))] ^= 1 << bit
    path.write_bytes(rotten)
    try:
        back = read_trace(path)
    except TraceError:
        return
    assert back.equals(trace)


@pytest.mark.parametrize(("experts", "kind"), [(8, np.int8), (128, np.int8), (129, np.int16), (40000, np.int32)])
def test_expert_ids_take_the_smallest_type(experts: int, kind: type, tmp_path: Path) -> None:
    trace = made_up(0, experts=experts)
    write_trace(replace(trace, experts=trace.experts.astype(np.int64)), tmp_path / "t.parquet")
    assert read_trace(tmp_path / "t.parquet").experts.dtype == kind


@given(st.lists(st.floats(-60000, 60000), min_size=1))
def test_the_narrowest_float_loses_nothing(values: list[float]) -> None:
    exact = np.array(values)
    assert np.array_equal(narrowest_float(exact).astype(np.float64), exact)
    assert narrowest_float(exact.astype(np.float16).astype(np.float64)).dtype == np.float16


def test_hidden_states_can_be_left_on_disk(tmp_path: Path) -> None:
    trace = made_up(0, hidden=4)
    write_trace(trace, tmp_path / "t.parquet")
    assert read_trace(tmp_path / "t.parquet", hidden=False).equals(trace.without(hidden=True))


@pytest.mark.parametrize("content", [b"", b"PAR1", b"not parquet at all" * 100])
def test_other_files_are_named_as_such(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=r"t\.parquet is not a readable trace"):
        read_trace(path)


def test_other_parquet_files_are_named_as_such(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), tmp_path / "t.parquet")
    with pytest.raises(TraceError, match="not a foregate trace"):
        read_trace(tmp_path / "t.parquet")


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write_trace(made_up(0), tmp_path / "t.parquet")
    pq.write_table(pq.read_table(tmp_path / "t.parquet").drop_columns(["step"]), tmp_path / "u.parquet")
    with pytest.raises(TraceError, match="lacks the column step"):
        read_trace(tmp_path / "u.parquet")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="does not exist"):
        read_trace(tmp_path / "none.parquet")


@pytest.mark.parametrize("expert", [-2, 8])
def test_an_impossible_expert_is_never_written(expert: int, tmp_path: Path) -> None:
    trace = made_up(0)
    trace.experts[3, 1, 0] = expert
    with pytest.raises(TraceError, match="token row 3, layer 1"):
        write_trace(trace, tmp_path / "t.parquet")
    assert not list(tmp_path.iterdir())


def test_a_stopped_recording_reads_back(tmp_path: Path) -> None:
    parts = [
        made_up(seed, prompts=seed + 1, hidden=2, weights=kind) for seed, kind in enumerate((np.float16, np.float32))
    ]
    writer = TraceWriter(tmp_path / "t.parquet")
    for part in parts:
        writer.append(part)
    assert read_trace(tmp_path / "t.parquet.partial").equals(concat(parts))
    again = TraceWriter(tmp_path / "t.parquet")
    flushed = again.flushed()
    assert flushed is not None
    assert flushed.equals(concat(parts).without(hidden=True))
    again.finish(parts[0].provenance)
    assert read_trace(tmp_path / "t.parquet").equals(concat(parts))
    assert [p.name for p in tmp_path.iterdir()] == ["t.parquet"]


def test_an_empty_partial_folder_says_so(tmp_path: Path) -> None:
    (tmp_path / "t.partial").mkdir()
    with pytest.raises(TraceError, match="no flushed part"):
        read_trace(tmp_path / "t.partial")


def test_a_broken_part_is_named(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / "t.parquet")
    writer.append(made_up(0))
    (writer.folder / "000001.parquet").write_bytes(b"PAR1")
    with pytest.raises(TraceError, match=r"000001\.parquet"):
        read_trace(writer.folder)


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    write_trace(made_up(0, tokens=200), tmp_path / "in.parquet")
    (tmp_path / "out").mkdir()
    code = (
        "from pathlib import Path; from foregate.traces.storage import *; from foregate.errors import StorageError\n"
        f"t = read_trace(Path({str(tmp_path / 'in.parquet')!r}))\n"
        f"try: write_trace(t, Path({str(tmp_path / 'out/t.parquet')!r}))\n"
        "except StorageError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "File too large; nothing was left behind" in done.stdout
    assert not list((tmp_path / "out").iterdir())


def test_a_file_in_the_way_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        write_trace(made_up(0), tmp_path / "file/t.parquet")


def test_joined_traces_keep_their_rows_and_renumber() -> None:
    a, b = made_up(1, prompts=2), made_up(2, prompts=3)
    both = concat([a, b])
    assert len(both) == len(a) + len(b)
    assert both.take(slice(len(a), None)).experts.tolist() == b.experts.tolist()
    assert both.sequence.tolist() == [*a.sequence.tolist(), *(b.sequence + 2).tolist()]
    assert len(set(both.step.tolist())) == len(both)


@pytest.mark.parametrize("other", [{"experts": 16}, {"layers": 4}, {"top_k": 1}])
def test_traces_of_different_models_are_not_joined(other: dict[str, int]) -> None:
    with pytest.raises(TraceError, match="cannot join"):
        concat([made_up(0), made_up(0, **other)])


def test_pieces_of_text_keep_one_id_each_when_joined() -> None:
    a, b = made_up(1, pieces=True), made_up(2, pieces=True)
    assert b.pieces is not None
    b = replace(b, pieces=("new", *b.pieces[:-1]))
    both = concat([a, b])
    assert both.pieces is not None
    told = [both.pieces[i] for i in both.token_id]
    assert a.pieces is not None
    assert b.pieces is not None
    assert told == [a.pieces[i] for i in a.token_id] + [b.pieces[i] for i in b.token_id]


def test_metadata_is_json_and_carries_no_path(tmp_path: Path) -> None:
    write_trace(made_up(0), tmp_path / "t.parquet")
    text = pq.read_schema(tmp_path / "t.parquet").metadata[b"foregate"].decode()
    assert json.loads(text)["tokens"] == 6
    assert str(tmp_path) not in text
