"""The original's analysis files: written with its definitions, read back, and used as popularity and no more."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import datetime
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace
from typer.testing import CliRunner

from foregate.cli import app
from foregate.errors import ForegateError
from foregate.hardware.presets import PRESETS
from foregate.moments import METRICS, analysis_of, moments_of
from foregate.simulation.passes import passes_of
from foregate.simulation.popularity import Machine, expected, lru_hits
from foregate.simulation.rows import sums
from foregate.simulation.shapes import MODELS, of_spec
from foregate.simulation.simulate import simulate
from foregate.spec import MoESpec
from foregate.traces.schema import Prompt, Provenance, Trace
from foregate.traces.storage import write_trace
from foregate.usage import Usage, usage_of
from foregate.usagefiles import COUNTS, FILES, LONGEST, MOMENTS, PATHS, counts_file, read_counts, text_of

Values = dict[str, Any]


@pytest.fixture(scope="module")
def example(shared: Path) -> Path:
    return shared / "switch-base-128"


@pytest.fixture
def trace() -> Trace:
    made = make_trace(prompts=7, tokens=150, layers=3, experts=12)
    return replace(made, spec=replace(made.spec, layer_ids=(1, 3, 11)))


def run(*words: object) -> Any:
    runner = CliRunner(env={"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"})
    return runner.invoke(app, [str(word) for word in words])


def printed(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return str(result.stdout)


def load(path: Path) -> Values:
    found: Values = json.loads(path.read_text())
    return found


def shape_of(value: object) -> object:
    """Keys in their order, and types; a list is as its first element, an object of numbered keys as its first."""
    if isinstance(value, dict):
        if value and all(key.isdigit() for key in value):
            return {"number": shape_of(next(iter(value.values())))}
        return [(key, shape_of(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return [shape_of(value[0])]
    return type(value).__name__


# What the files mean


def test_the_example_is_written_again_byte_for_byte_from_its_counts(example: Path) -> None:
    values = load(example / COUNTS)
    again = counts_file(read_counts(example / COUNTS), datetime.fromisoformat(values["generation_time"]))
    assert text_of(again) == (example / COUNTS).read_text()


def test_every_number_of_the_examples_analysis_follows_from_its_counts(example: Path) -> None:
    """By definitions written out here once more, so that it does not hang on ours."""
    values = load(example / COUNTS)
    for layer, said in values["layer_analysis"].items():
        uses = values["expert_usage_by_layer"][layer]
        total, active = sum(uses.values()), sum(n > 0 for n in uses.values())
        assert said["active_experts"] == active
        assert said["diversity_percentage"] == pytest.approx(100 * active / values["num_experts"], abs=1e-9)
        bits = -sum(n / total * math.log2(n / total) for n in uses.values() if n)
        assert said["entropy"] == pytest.approx(bits, abs=1e-9)
        assert said["total_usage"] == total
        assert said["top_5_experts"] == [list(pair) for pair in sorted(uses.items(), key=lambda pair: -pair[1])[:5]]
        ours = analysis_of(np.array(list(uses.values())))
        assert json.loads(json.dumps(asdict(ours))) == said


@pytest.mark.parametrize("numbers", [16])
def test_the_examples_moments_hang_together_as_ours_do(example: Path, numbers: int) -> None:
    """The counts behind them were not published, but each field that follows from the others does so by our rule."""
    values = load(example / MOMENTS)
    assert values["metrics_included"] == list(METRICS)
    assert len(METRICS) == numbers
    E = values["num_experts"]
    for m in values["layer_statistics"].values():
        assert m["mean"] == m["total_usage"] / E
        assert m["coefficient_of_variation"] == pytest.approx(m["std"] / m["mean"], rel=1e-12)
        assert m["iqr"] == m["q75"] - m["q25"]
        assert m["expert_diversity"] == m["active_experts"] / E
        assert m["zero_usage_experts"] == E - m["active_experts"]


@pytest.mark.parametrize(("divide_by", "whole"), [("experts", True), ("experts less one", False)])
def test_whole_numbers_have_the_examples_moments_only_by_our_definitions(
    example: Path, divide_by: str, whole: bool
) -> None:
    """Counts are whole numbers, so are the sums of their powers. With the population's variance and moments that are
    not corrected they come out whole, and as even or odd as they must be; with the sample's variance none does.
    """
    with localcontext() as context:
        context.prec = 50
        for m in load(example / MOMENTS)["layer_statistics"].values():
            n, mean = Decimal(128), Decimal(m["total_usage"]) / 128
            freedom = n if divide_by == "experts" else n - 1
            squares = Decimal(m["std"]) ** 2 * freedom + n * mean**2
            assert is_whole(squares, Decimal("1e-4")) is whole
            if not whole:
                continue
            squares = round(squares)
            variance = squares / n - mean**2
            cubes = n * (Decimal(m["skewness"]) * variance * variance.sqrt() + 3 * mean * squares / n - 2 * mean**3)
            assert is_whole(cubes, Decimal("0.01"))
            assert (squares - m["total_usage"]) % 2 == 0  # n^2 - n is even
            assert (round(cubes) - m["total_usage"]) % 6 == 0  # n^3 - n is a multiple of 6
            fourth = n * (
                (Decimal(m["kurtosis"]) + 3) * variance**2
                + 4 * mean * round(cubes) / n
                - 6 * mean**2 * squares / n
                + 3 * mean**4
            )
            if fourth < 10**16:  # beyond, a float does not hold the sum to the last digit
                assert (round(fourth) - squares) % 12 == 0  # n^4 - n^2 is a multiple of 12


def is_whole(value: Decimal, tolerance: Decimal) -> bool:
    return abs(value - round(value)) < tolerance


def test_moments_by_hand() -> None:
    m = moments_of(np.array([0, 1, 1, 6]))
    assert (m.mean, m.median, m.min_usage, m.max_usage, m.total_usage) == (2, 1, 0, 6, 8)
    assert (m.active_experts, m.zero_usage_experts, m.expert_diversity) == (3, 1, 0.75)
    assert m.std == pytest.approx(math.sqrt(22 / 4))
    assert m.coefficient_of_variation == pytest.approx(math.sqrt(22 / 4) / 2)
    assert m.skewness == pytest.approx((-8 - 1 - 1 + 64) / 4 / (22 / 4) ** 1.5)
    assert m.kurtosis == pytest.approx((16 + 1 + 1 + 256) / 4 / (22 / 4) ** 2 - 3)
    assert (m.q25, m.q75, m.iqr) == (0.75, 2.25, 1.5)
    assert m.entropy_bits == pytest.approx(0.75 * math.log2(8 / 6) + 0.25 * 3)


def test_what_does_not_exist_is_null_and_not_a_number_made_up() -> None:
    even, unused = moments_of(np.full(8, 5)), moments_of(np.zeros(8, dtype=np.int64))
    assert (even.skewness, even.kurtosis, even.coefficient_of_variation, even.entropy_bits) == (None, None, 0.0, 3.0)
    assert (unused.skewness, unused.coefficient_of_variation, unused.entropy_bits) == (None, None, 0.0)


# Files of any trace


def test_the_files_have_the_examples_structure(example: Path, trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "t.parquet")
    printed("statistics", tmp_path / "t.parquet", "-o", tmp_path / "out")
    for name in FILES:
        ours, theirs = load(tmp_path / "out" / name), load(example / name)
        assert shape_of(ours) == shape_of(theirs)
    counts = load(tmp_path / "out" / COUNTS)
    assert counts["layers"] == [1, 3, 11]
    assert list(counts["expert_usage_by_layer"]) == list(counts["layer_analysis"]) == ["1", "3", "11"]
    assert list(counts["expert_usage_by_layer"]["3"]) == [str(e) for e in range(12)]


def test_the_numbers_are_the_traces(trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "t.parquet")
    before = (tmp_path / "t.parquet").read_bytes()
    printed("statistics", tmp_path / "t.parquet", "-o", tmp_path, "--samples", 3)
    assert (tmp_path / "t.parquet").read_bytes() == before
    uses = load(tmp_path / COUNTS)["expert_usage_by_layer"]
    assert uses["11"]["4"] == int((trace.experts[:, 2] == 4).sum())
    assert sum(uses["1"].values()) == len(trace) * trace.spec.top_k
    paths = load(tmp_path / PATHS)
    assert [sample["sample_id"] for sample in paths["3"]] == ["set0/0", "set0/2", "set0/4"]
    assert paths["3"][1]["expert_sequence"] == trace.experts[300 : 300 + LONGEST, 1].ravel().tolist()
    assert {sample["sequence_length"] for layer in paths.values() for sample in layer} == {LONGEST * trace.spec.top_k}


def test_absent_experts_count_for_nothing_and_keep_their_place(trace: Trace, tmp_path: Path) -> None:
    experts = trace.experts.copy()
    experts[1, 0] = -1
    experts[4, 0, 1] = -1
    write_trace(replace(trace, experts=experts), tmp_path / "t.parquet")
    result = run("statistics", tmp_path / "t.parquet", "-o", tmp_path)
    assert "note: 3 absent experts are counted nowhere" in result.output
    assert load(tmp_path / MOMENTS)["layer_statistics"]["1"]["total_usage"] == len(trace) * 2 - 3
    assert load(tmp_path / PATHS)["1"][0]["expert_sequence"][2:4] == [-1, -1]


@pytest.mark.parametrize(("ranked", "said"), [(True, "the primary first"), (False, "in no order")])
def test_with_several_experts_a_token_the_sequences_list_them_all(
    ranked: bool, said: str, trace: Trace, tmp_path: Path
) -> None:
    source = Provenance(("x",), "test", ranked=ranked)
    write_trace(replace(trace, weights=None, provenance=source), tmp_path / "t.parquet")
    result = run("statistics", tmp_path / "t.parquet", "-o", tmp_path)
    assert f"counts for all its 2 experts, and the sequences list them, {said}" in result.output
    assert load(tmp_path / PATHS)["1"][0]["expert_sequence"] == trace.experts[:LONGEST, 0].ravel().tolist()


def test_json_on_standard_output_is_all_three_files(trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "t.parquet")
    found = json.loads(printed("statistics", tmp_path / "t.parquet", "-o", tmp_path / "out", "--json", "-"))
    assert {f"{name}.json" for name in found} == set(FILES)
    assert found[PATHS.removesuffix(".json")] == load(tmp_path / "out" / PATHS)


def test_files_that_exist_are_not_replaced_unless_asked(trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "t.parquet")
    (tmp_path / PATHS).write_text("mine")
    result = run("statistics", tmp_path / "t.parquet", "-o", tmp_path)
    assert isinstance(result.exception, ForegateError)
    assert "--overwrite" in str(result.exception)
    assert not (tmp_path / COUNTS).exists()
    assert (tmp_path / PATHS).read_text() == "mine"
    printed("statistics", tmp_path / "t.parquet", "-o", tmp_path, "--overwrite")
    assert (tmp_path / COUNTS).exists()


def test_more_samples_than_prompts_are_refused(trace: Trace, tmp_path: Path) -> None:
    write_trace(trace, tmp_path / "t.parquet")
    result = run("statistics", tmp_path / "t.parquet", "-o", tmp_path / "out", "--samples", 8)
    assert "--samples 8 is not within 1 to 7" in str(result.exception)
    assert not (tmp_path / "out").exists()


# Counts as input


@pytest.fixture
def counts(trace: Trace, tmp_path: Path) -> Path:
    (tmp_path / COUNTS).write_text(text_of(counts_file(usage_of(trace), datetime(2026, 1, 1))))
    return tmp_path / COUNTS


def test_counts_survive_their_file(trace: Trace, counts: Path) -> None:
    found = read_counts(counts)
    assert found.layer_ids == (1, 3, 11)
    assert found.counts.tolist() == usage_of(trace).counts.tolist()


def test_describe_says_of_counts_what_it_says_of_their_trace_and_no_more(
    trace: Trace, counts: Path, tmp_path: Path
) -> None:
    write_trace(trace, tmp_path / "t.parquet")
    of_trace = json.loads(printed("describe", tmp_path / "t.parquet", "--json", "-"))
    of_counts = json.loads(printed("describe", counts, "--json", "-"))
    for ours, theirs in zip(of_counts["layers"], of_trace["layers"], strict=True):
        for name in ("model_layer", "counts", "entropy_bits", "entropy_share", "never_used"):
            assert ours[name] == theirs[name]
        assert ours["imbalance"] == pytest.approx(max(ours["counts"]) / np.mean(ours["counts"]))
        assert ours["reuse_histogram"] is ours["lru_hit_rate"] is None
    assert of_counts["neighbours"] is of_counts["tokens"] is None
    assert "takes a trace" in of_counts["unknown"]
    text = printed("describe", counts)
    assert "not a trace" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def broken(change: Callable[[Values], None]) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        values = load(path)
        change(values)
        path.write_text(json.dumps(values))

    return apply


def text(content: str) -> Callable[[Path], None]:
    return lambda path: path.write_text(content) and None


def layer(values: Values, number: str) -> Values:
    found: Values = values["expert_usage_by_layer"][number]
    return found


@pytest.mark.parametrize("command", [("describe",), ("simulate", "--profile", "rtx-3090")], ids=lambda words: words[0])
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (text("{"), "is not readable JSON"),
        (text("[1, 2]"), "holds a list, not the object"),
        (text("[" * 100_000), "is not readable JSON"),
        (text('{"a": 1, "a": 2}'), "the key 'a' is there twice"),
        (text('{"rows": []}'), "has no expert_usage_by_layer"),
        (text('{"layer_statistics": {"1": {}}}'), "give the expert_statistics_3d.json beside it"),
        (broken(lambda v: v["expert_usage_by_layer"].clear()), "has no expert_usage_by_layer"),
        (broken(lambda v: layer(v, "3").update({"2": -1})), "layer 3, expert 2 was used -1 times"),
        (broken(lambda v: layer(v, "3").update({"2": 1.5})), "layer 3, expert 2 was used 1.5 times"),
        (broken(lambda v: layer(v, "3").update({"2": True})), "layer 3, expert 2 was used True times"),
        (broken(lambda v: layer(v, "3").update({"2": "7"})), "layer 3, expert 2 was used '7' times"),
        (broken(lambda v: layer(v, "3").update({"2": 10**30})), "counts are whole numbers from 0"),
        (broken(lambda v: layer(v, "3").update({"x": 1})), "layer 3: expert 'x' is not a number"),
        (broken(lambda v: layer(v, "3").popitem()), "layer 3 has 11 experts and layer 1 has 12"),
        (broken(lambda v: layer(v, "3").pop("5")), "layer 3 lacks expert 5"),
        (broken(lambda v: v["expert_usage_by_layer"].update({"3": {}})), "layer 3 is not an object of experts"),
        (broken(lambda v: layer(v, "3").update(dict.fromkeys(layer(v, "3"), 0))), "layer 3 counts 0 uses"),
        (broken(lambda v: v["expert_usage_by_layer"].pop("3")), "lists other layers than it has counts of"),
        (broken(lambda v: v["expert_usage_by_layer"].update({"-1": layer(v, "3")})), "layer '-1' is not a number"),
        (broken(lambda v: v.update(num_experts=128)), "says 128 experts, but counts 12"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_file_of_counts_is_refused_in_a_sentence(
    damage: Callable[[Path], None], said: str, command: tuple[str, ...], counts: Path
) -> None:
    damage(counts)
    result = run(command[0], counts, *command[1:])
    assert isinstance(result.exception, ForegateError), result.output
    assert said in str(result.exception)
    assert str(counts) in str(result.exception)
    assert "\n" not in str(result.exception)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--strategies", "lfu"), "--strategies takes a trace"),
        (("--predictor", "bank"), "--predictor takes a trace"),
        (("--as", "decode"), "--as decode takes a trace"),
        (("--split", "none"), "--split none takes a trace"),
        (("--sweep", "batch=1,4"), "--sweep batch takes a trace"),
        (("--memory", "6GiB"), "needs --model"),
        (("--memory", "1%"), "are 0 slots"),
        (("--model", "mixtral-8x7b"), "has 32 of 8"),
    ],
)
def test_what_popularity_cannot_answer_is_refused(words: tuple[str, ...], said: str, counts: Path) -> None:
    result = run("simulate", counts, "--profile", "rtx-3090", *words)
    assert isinstance(result.exception, ForegateError), result.output
    assert said in str(result.exception)


def test_planning_on_counts_is_refused(counts: Path) -> None:
    result = run("plan", counts, "--profile", "rtx-3090")
    assert "is JSON, not a trace" in str(result.exception)


def test_counts_that_so_many_experts_a_token_cannot_give_are_refused(example: Path) -> None:
    """One of 128 experts has 24 % of the uses: no token can have used five different ones."""
    with pytest.raises(ForegateError, match="expert 122 of layer 3 has 24% of the uses"):
        expected(read_counts(example / COUNTS), 5, {"25%": 192})


def test_estimates_say_what_they_are(example: Path, counts: Path) -> None:
    shown = printed("simulate", example / COUNTS, "--profile", "rtx-3090", "--model", "switch-base-128")
    assert "Derived from popularity, independent draws" in shown
    assert "Nothing was run" in shown
    assert max(map(len, shown.splitlines())) <= 80
    without = json.loads(printed("simulate", counts, "--profile", "rtx-3090", "--json", "-"))
    assert {row["how"] for row in without["rows"]} == {"derived from popularity, independent draws"}
    assert all(row["tokens_per_second"] is row["bytes_per_token"] is None for row in without["rows"])
    assert any("name the --model" in fact for fact in without["facts"])


# Estimates against draws


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("slots", [20, 50, 100, 150])
@pytest.mark.parametrize("cache", ["static", "lru"])
def test_independent_draws_do_what_is_expected_of_them(cache: str, slots: int, k: int) -> None:
    """The same popularity, drawn and run through the simulator's own cache and clock."""
    trace = draws(k)
    shape, machine = of_spec(trace.spec), PRESETS["rtx-3090"]
    usage = usage_of(trace)
    row = next(r for r in expected(usage, k, {"": slots}, Machine(shape, machine, True)) if r.cache == cache)
    timeline = simulate(
        passes_of(trace), shape, machine, slots, cache, host_slots=None, look_seconds=0.0, usage=usage.counts
    )
    ran = sums(timeline, shape)
    assert row.hit_rate == pytest.approx(ran.hit_rate, abs=0.01)
    assert row.reads_per_token == pytest.approx(ran.bytes_per_token / shape.slot_bytes, abs=0.01 * k * shape.layers)
    assert row.tokens_per_second is not None
    slower = 1 / row.tokens_per_second - 1 / ran.tokens_per_second
    slack = 0.01 * k * shape.layers * machine.copy_seconds(shape.slot_bytes)
    # What is there is computed while the rest is read, which is not counted on.
    hidden = (k - 1) * shape.layers * machine.expert_seconds(1, shape.slot_bytes)
    assert -slack < slower < slack + hidden


def draws(k: int, tokens: int = 6000, layers: int = 6, experts: int = 32) -> Trace:
    """Each token draws k experts a layer anew, some experts far oftener than others."""
    rng = np.random.default_rng(k)
    liking = np.log(rng.pareto(1.5, (layers, experts)) + 0.2)
    routed = np.argsort(-(liking + rng.gumbel(size=(tokens, layers, experts))), axis=2)[:, :, :k].astype(np.int8)
    count = np.arange(tokens, dtype=np.int32)
    return Trace(
        spec=MoESpec("draws", "decoder", tuple(range(layers)), experts, k, (9_000_000,) * layers),
        sequence=np.zeros(tokens, np.int32),
        position=count,
        step=count,
        token_id=np.zeros(tokens, np.int32),
        experts=routed,
        weights=None,
        hidden=None,
        prompts=(Prompt("p", "d", 1),),
        provenance=Provenance(("drawn",), "test"),
    )


def test_with_room_for_all_everything_is_there_and_more_room_never_hurts() -> None:
    usage = Usage((0, 1), np.array([[5, 3, 2, 0], [9, 1, 0, 0]]), "hand")
    rows = expected(usage, 1, {str(n): n for n in range(2, 9)})
    for cache in ("static", "lru"):
        rates = [row.hit_rate for row in rows if row.cache == cache]
        assert rates == sorted(rates)
        assert rates[-1] == 1.0


def test_fewer_slots_than_a_token_uses_hit_nothing() -> None:
    chances = np.full((10, 4), 0.5)  # 2 a layer, 20 a token
    assert lru_hits(chances, 19).max() == 0
    assert lru_hits(chances, 20).min() > 0


def test_the_largest_models_answer_at_once() -> None:
    shape = MODELS["qwen3-30b-a3b"]
    usage = Usage(tuple(range(48)), np.random.default_rng(0).integers(0, 1000, (48, 128)), "drawn")
    rows = expected(usage, 8, {"99%": int(0.99 * usage.counts.size)}, Machine(shape, PRESETS["rtx-3090"], True))
    assert all(0.9 < row.hit_rate < 1 for row in rows)


# Figures


def test_the_page_draws_what_the_original_drew(trace: Trace) -> None:
    pytest.importorskip("plotly")
    from foregate.report.statistics_page import statistics_sections

    drawn = {figure.name: figure for section in statistics_sections(trace, 2) for figure in section.figures}
    assert list(drawn) == ["use", "comparison", "sequences", "over-time", "transition"]
    use, sequences, time = drawn["use"], drawn["sequences"], drawn["over-time"]
    assert list(use.views) == list(sequences.views) == list(time.views) == ["layer 1", "layer 3", "layer 11"]
    counts = usage_of(trace).counts
    assert use.views["layer 3"][0]["y"] == counts[1].tolist()
    half = drawn["comparison"].data[-1]["y"][0]
    assert half == pytest.approx(np.sort(counts[0])[-6:].sum() / counts[0].sum(), abs=1e-4)
    assert sequences.views["layer 11"][0]["y"] == trace.experts[:LONGEST, 2, 0].tolist()
    # Equally many tokens in each stretch: over all of them, use relative to an even load is the layer's.
    relative = np.array(time.views["layer 1"][0]["z"])
    assert relative.mean(axis=1) == pytest.approx(counts[0] / counts[0].mean(), abs=0.15)


def test_one_layer_and_one_token_can_be_drawn(trace: Trace) -> None:
    pytest.importorskip("plotly")
    from foregate.report.statistics_page import statistics_sections

    spec = replace(trace.spec, layer_ids=(5,))
    one = replace(trace, spec=spec, experts=trace.experts[:, :1], weights=None).take(slice(0, 1))
    assert len(statistics_sections(one, 1)) == 3
