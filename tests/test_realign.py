"""Realignment puts dropped records' followers back, learns from other prompts only, and says what it did."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_trace
from typer.testing import CliRunner

from foregate.cli import app
from foregate.errors import TraceError
from foregate.traces.export import export_jsonl
from foregate.traces.importers import IMPORTERS
from foregate.traces.realign import realign, short_layers
from foregate.traces.schema import Trace
from foregate.traces.storage import read_trace, write_trace


def chained(prompts: int = 4, tokens: int = 40) -> Trace:
    """Layers that follow from each other, with no two neighbouring tokens alike: a gap has one right place."""
    trace = make_trace(prompts=prompts, tokens=tokens, layers=5, k=2)
    rng = np.random.default_rng(5)
    first = np.cumsum(rng.integers(1, 8, prompts * tokens)) % 8
    experts = (first[:, None, None] + np.arange(5)[None, :, None] + np.array([0, 3])) % 8
    return replace(trace, experts=experts.astype(np.int8))


def dropped(trace: Trace, gaps: dict[tuple[int, int], list[int]]) -> Trace:
    """As the recorder did: for (prompt, layer), those tokens' records are gone, and the later ones move up."""
    experts = trace.experts.copy()
    weights = None if trace.weights is None else trace.weights.copy()
    starts = np.searchsorted(trace.sequence, np.arange(len(trace.prompts) + 1))
    for (prompt, layer), lost in gaps.items():
        rows = slice(int(starts[prompt]), int(starts[prompt + 1]))
        keep = np.setdiff1d(np.arange(rows.stop - rows.start), lost)
        for array, absent in ((experts, -1), (weights, 0)):
            if array is not None:
                kept = array[rows, layer][keep].copy()
                array[rows, layer] = absent
                array[rows.start : rows.start + len(keep), layer] = kept
    return replace(trace, experts=experts, weights=weights)


def test_gaps_go_back_where_they_were_and_weights_go_with_them() -> None:
    whole = chained()
    found = realign(dropped(whole, {(0, 2): [7], (1, 0): [3, 30], (3, 4): [0]}))
    absent = found.trace.experts < 0
    assert np.argwhere(absent[:, :, 0]).tolist() == [[7, 2], [43, 0], [70, 0], [120, 4]]
    np.testing.assert_array_equal(found.trace.experts, np.where(absent, -1, whole.experts))
    assert whole.weights is not None
    np.testing.assert_array_equal(found.trace.weights, np.where(absent, 0, whole.weights))
    assert (found.short, found.cells) == (3, 4 * 40 * 5 - 4)
    assert found.moved == (39 - 7) + (38 - 3) + 39
    assert f"realigned: {found.moved} of {found.cells} cells" in found.trace.provenance.notes[-1]


def test_a_prompt_does_not_teach_itself() -> None:
    """The other prompts never use the experts of the short one, so nothing is known and nothing may move."""
    whole = chained(prompts=2)
    experts = whole.experts.copy()
    experts[:40] = experts[:40] % 4
    experts[40:] = 4 + experts[40:] % 4
    found = realign(dropped(replace(whole, experts=experts), {(0, 2): [7]}))
    assert found.moved == 0


def test_layers_with_holes_in_their_places_are_left_alone() -> None:
    trace = chained()
    experts = trace.experts.copy()
    experts[5, 1] = -1
    assert short_layers(replace(trace, experts=experts)) == []


@pytest.mark.parametrize(
    ("prompts", "gaps", "message"), [(4, {}, "nothing to realign"), (1, {(0, 1): [2]}, "only one")]
)
def test_what_cannot_be_realigned_is_refused(
    prompts: int, gaps: dict[tuple[int, int], list[int]], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        realign(dropped(chained(prompts), gaps))


def test_both_commands_realign_alike(tmp_path: Path) -> None:
    broken = dropped(chained(), {(0, 2): [7], (1, 0): [3, 30]})
    write_trace(broken, tmp_path / "broken.parquet")
    export_jsonl(broken, tmp_path / "broken.jsonl")
    run = CliRunner()
    one = run.invoke(app, ["realign", str(tmp_path / "broken.parquet"), "-o", str(tmp_path / "one.parquet")])
    source = ["import", "records", str(tmp_path / "broken.jsonl"), "--realign", "-o", str(tmp_path / "two.parquet")]
    two = run.invoke(app, source)
    assert (one.exit_code, two.exit_code) == (0, 0), one.output + two.output
    traces = [read_trace(tmp_path / name) for name in ("one.parquet", "two.parquet")]
    np.testing.assert_array_equal(traces[0].experts, traces[1].experts)
    for trace, result in zip(traces, (one, two), strict=True):
        assert any(note.startswith("realigned: ") for note in trace.provenance.notes)
        assert "realigned: " in result.output


def test_published_gaps(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One record dropped in each of four complete layers per problem, ten times; uniformly drawn, seed 0."""
    folder = shared / "mixtral-8x7b-instruct"
    trace = IMPORTERS["records"]([folder / f"{name}_2_routing.jsonl.xz" for name in ("humaneval", "gsm8k")])
    rng = np.random.default_rng(0)
    missed = np.concatenate([_missed(trace, rng) for _ in range(10)])
    exact, near = float((missed == 0).mean()), float((missed <= 5).mean())
    found = realign(trace)
    with capsys.disabled():
        print(
            f"\nrealignment of {len(missed)} synthetic gaps: {exact:.1%} exact, {near:.1%} within 5 tokens, median "
            f"{np.median(missed):g} away; as published, {found.moved:,} of {found.cells:,} cells move"
        )
    assert exact > 0.35
    assert near > 0.8
    assert 0.15 < found.moved / found.cells < 0.35  # about a quarter, says the data's description


def _missed(trace: Trace, rng: np.random.Generator) -> np.ndarray:
    """How many tokens beside its place each synthetic gap is put."""
    gaps: dict[tuple[int, int], list[int]] = {}
    rows = list(trace.sequences())
    for prompt, own in enumerate(rows):
        complete = np.flatnonzero((trace.experts[own, :, 0] >= 0).all(axis=0))
        for layer in rng.choice(complete, 4, replace=False).tolist():
            gaps[prompt, layer] = [int(rng.integers(own.stop - own.start))]
    experts = realign(dropped(trace, gaps)).trace.experts
    put = [int(np.flatnonzero(experts[rows[p], layer, 0] < 0)[0]) for p, layer in gaps]
    return np.abs(np.array(put) - np.concatenate(list(gaps.values())))
