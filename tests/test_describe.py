"""Numbers of a description against ones worked out by hand or by brute force."""

import json
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import make_trace
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from foregate.cli import app
from foregate.cooccurrence import chance_information, mutual_information, transitions
from foregate.description import describe
from foregate.reuse import hit_rates, median_distance, reuse_histogram
from foregate.spec import MoESpec
from foregate.traces.schema import Prompt, Provenance, Trace
from foregate.traces.storage import write_trace
from foregate.usage import load_entropy


def tiny(experts: list[list[list[int]]], num_experts: int = 4, **changes: object) -> Trace:
    """One prompt, decoded token by token; experts: [T][L][k]."""
    routed = np.array(experts, dtype=np.int8)
    T, L, k = routed.shape
    trace = Trace(
        spec=MoESpec("tiny", "decoder", tuple(range(1, L + 1)), num_experts, k),
        sequence=np.zeros(T, dtype=np.int32),
        position=np.arange(T, dtype=np.int32),
        step=np.arange(T, dtype=np.int32),
        token_id=np.arange(T, dtype=np.int32),
        experts=routed,
        weights=None,
        hidden=None,
        prompts=(Prompt("p", "d", 1),),
        provenance=Provenance(("hand",), "test"),
    )
    return replace(trace, **changes)  # type: ignore[arg-type]


def test_counts_and_entropy_by_hand() -> None:
    described = describe(tiny([[[0], [3]], [[1], [3]], [[0], [3]], [[2], [3]]]))
    assert described.counts.tolist() == [[2, 1, 1, 0], [0, 0, 0, 4]]
    assert described.entropy.tolist() == pytest.approx([1.5, 0.0])
    assert described.entropy_share.tolist() == pytest.approx([0.75, 0.0])
    assert described.never_used(0) == [3]
    assert described.top_experts(0, 2) == [(0, 0.5), (1, 0.25)]
    assert (described.prefill, described.decode, described.steps) == (1, 3, 4)


def test_entropy_of_an_even_load_is_log2_of_its_experts() -> None:
    assert load_entropy(np.full((1, 16), 5)).tolist() == [4.0]
    assert load_entropy(np.zeros((1, 16), dtype=np.int64)).tolist() == [0.0]


def test_transitions_by_hand_and_absent_experts_count_for_nothing() -> None:
    experts = np.array([[[0, 1], [2, 3]], [[0, -1], [3, 1]], [[-1, -1], [0, 1]]], dtype=np.int8)
    expected = np.zeros((4, 4), dtype=np.int64)
    for a, b in ((0, 2), (0, 3), (1, 2), (1, 3), (0, 3), (0, 1)):
        expected[a, b] += 1
    assert transitions(experts, 4).tolist() == [expected.tolist()]


def test_a_layer_that_decides_the_next_tells_all_of_its_entropy() -> None:
    first = np.repeat(np.arange(4), 25)
    experts = np.stack([first, (first + 1) % 4], axis=1)[:, :, None]
    assert mutual_information(transitions(experts, 4))[0] == pytest.approx(2.0)


def test_layers_that_meet_in_all_ways_alike_tell_nothing() -> None:
    a, b = np.meshgrid(np.arange(4), np.arange(4))
    experts = np.stack([a.ravel(), b.ravel()], axis=1)[:, :, None]
    assert mutual_information(transitions(experts, 4))[0] == pytest.approx(0.0)


@pytest.mark.parametrize(("tokens", "k"), [(2000, 1), (2000, 3)])
def test_unrelated_layers_show_no_more_than_chance(tokens: int, k: int) -> None:
    """Chance is (E - k)^2 / (2 T k^2 ln 2) bits for even loads; k = 1 is the Miller-Madow correction."""
    rng = np.random.default_rng(1)
    E = 16
    experts = np.argsort(rng.random((tokens, 2, E)), axis=2)[:, :, :k]
    found, chance = mutual_information(transitions(experts, E))[0], chance_information(experts, E)[0]
    assert chance == pytest.approx((E - k) ** 2 / (2 * tokens * k**2 * np.log(2)), rel=0.15)
    assert found == pytest.approx(chance, rel=0.3)


def test_a_single_token_tells_nothing_beyond_chance() -> None:
    described = describe(tiny([[[0, 1], [2, 3]]]))
    assert described.information.tolist() == described.chance.tolist()


uses = st.lists(st.integers(-1, 5), max_size=60)


@given(uses)
@settings(max_examples=60, deadline=None)
def test_reuse_distances_are_those_of_brute_force(sequence: list[int]) -> None:
    expected = [0] * 7
    past: list[int] = []
    for expert in sequence:
        if expert < 0:
            continue
        if expert in past:
            last = len(past) - 1 - past[::-1].index(expert)
            expected[len(set(past[last + 1 :]))] += 1
        else:
            expected[6] += 1
        past.append(expert)
    experts = np.array(sequence, dtype=np.int8).reshape(-1, 1, 1)
    assert reuse_histogram(experts, 6).tolist() == [expected]


@pytest.mark.parametrize("slots", [1, 2, 3, 5, 8])
def test_hit_rates_are_those_of_a_real_lru(slots: int) -> None:
    trace = make_trace(prompts=4, tokens=40)
    layer = 2
    cache: OrderedDict[int, None] = OrderedDict()
    hits = total = 0
    for rows in trace.steps():
        for expert in trace.experts[rows, layer].reshape(-1).tolist():
            total += 1
            if expert in cache:
                hits += 1
                cache.move_to_end(expert)
            else:
                cache[expert] = None
                if len(cache) > slots:
                    cache.popitem(last=False)
    assert describe(trace).hit_rates([slots])[layer, 0] == pytest.approx(hits / total)


def test_execution_order_is_that_of_the_forward_passes() -> None:
    """Two sequences that ran in turns are told apart from two that ran one after the other."""
    routed = [[[0]], [[0]], [[1]], [[1]]]
    changes = {
        "sequence": np.array([0, 0, 1, 1], dtype=np.int32),
        "position": np.array([0, 1, 0, 1], dtype=np.int32),
        "prompts": (Prompt("a", "d", 1), Prompt("b", "d", 1)),
    }
    in_turns = tiny(routed, **changes, step=np.array([0, 2, 1, 3], dtype=np.int32))
    in_a_row = tiny(routed, **changes, step=np.array([0, 1, 2, 3], dtype=np.int32))
    assert describe(in_turns).reuse.tolist() == [[0, 2, 0, 0, 2]]
    assert describe(in_a_row).reuse.tolist() == [[2, 0, 0, 0, 2]]


def test_median_distance_by_hand() -> None:
    histogram = np.array([[1, 0, 1, 0, 9], [0, 0, 0, 0, 3], [2, 1, 0, 0, 1]])
    assert median_distance(histogram).tolist() == pytest.approx([1.0, np.nan, 0.0], nan_ok=True)
    assert hit_rates(histogram, [1, 4]).tolist() == [[1 / 11, 2 / 11], [0, 0], [0.5, 0.75]]


def test_duplicates_and_incomplete_cells_are_found() -> None:
    trace = make_trace(prompts=3, tokens=4)
    rows = trace.token_id.copy()
    rows[8:] = rows[:4]
    experts = trace.experts.copy()
    experts[0, 1] = -1
    experts[5, 2, 1] = -1
    described = describe(replace(trace, token_id=rows, experts=experts))
    assert described.duplicates == ((2, 0),)
    assert described.incomplete_cells == 2


@pytest.mark.parametrize(
    ("check", "said"),
    [
        (None, "self-check not checkable from this source"),
        (1.0, "self-check 100.0 %"),
        (0.973, "self-check 97.3 %: NOT fully trustworthy"),
        (0.99999, "self-check 99.9 %: NOT fully trustworthy"),
    ],
)
def test_the_self_check_is_said_plainly(check: float | None, said: str) -> None:
    trace = tiny([[[0], [1]]], provenance=Provenance(("hand",), "test", self_check=check))
    assert describe(trace).trust() == said


def test_the_json_is_complete() -> None:
    trace = make_trace()
    described = describe(trace)
    values = json.loads(json.dumps(described.to_json(), allow_nan=False))
    L, E = trace.spec.num_layers, trace.spec.num_experts
    assert np.array([layer["counts"] for layer in values["layers"]]).shape == (L, E)
    assert np.array([layer["reuse_histogram"] for layer in values["layers"]]).shape == (L, E + 1)
    assert np.array([pair["transitions"] for pair in values["neighbours"]]).tolist() == described.transitions.tolist()
    assert values["tokens"] == len(trace)
    assert {"definitions", "how", "provenance", "phases", "datasets", "duplicates", "trust"} <= values.keys()


def test_one_layer_can_be_described() -> None:
    described = describe(tiny([[[0]], [[1]]]))
    assert described.transitions.shape == (0, 4, 4)
    assert described.to_json()["neighbours"] == []


def run(*words: str) -> str:
    result = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}).invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_tables_fit_80_columns_without_colour(tmp_path: Path) -> None:
    trace = make_trace(prompts=9, layers=7, experts=64, k=6)
    doubtful = Provenance(("x",), "test", self_check=0.973, notes=("A note [with] brackets.",))
    write_trace(replace(trace, provenance=doubtful), tmp_path / "t.parquet")
    text = run("describe", str(tmp_path / "t.parquet"))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "\x1b" not in text
    assert "…" not in text
    assert "self-check 97.3 %: NOT fully trustworthy" in text
    assert "A note [with] brackets." in text


def test_json_goes_to_a_file_or_to_standard_output(tmp_path: Path) -> None:
    write_trace(make_trace(), tmp_path / "t.parquet")
    run("describe", str(tmp_path / "t.parquet"), "--json", str(tmp_path / "d.json"))
    assert json.loads((tmp_path / "d.json").read_text()) == json.loads(
        run("describe", str(tmp_path / "t.parquet"), "--json", "-")
    )
