"""Comparing and planning: the same bytes for everybody, other prompts than were learned from, and guesses only where
they pay.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace
from typer.testing import CliRunner

from foregate.errors import ChoiceError, ForegateError
from foregate.hardware.machine import Machine
from foregate.hardware.presets import PRESETS
from foregate.hardware.profile import Profile, Timing
from foregate.hardware.storage import to_json
from foregate.simulation.breakeven import _crossing, break_even, guesses
from foregate.simulation.budget import least_slots, slots_for
from foregate.simulation.chances import oracle_chances
from foregate.simulation.experiment import compare_strategies, settle
from foregate.simulation.guesser import Stage
from foregate.simulation.passes import passes_of
from foregate.simulation.plan import LEAST_GAIN, Search, search
from foregate.simulation.planfile import read
from foregate.simulation.rows import Row
from foregate.simulation.shapes import MODELS, of_spec
from foregate.simulation.strategies import BOUNDS, STRATEGIES, chosen
from foregate.splits import split
from foregate.traces.schema import Trace
from foregate.traces.storage import write_trace

MB = 10**6


def machine(read_ms: float, work_ms: float) -> Profile:
    """A disk that takes so long for 1 MB, at whatever depth; a layer that works so long whatever it is given."""
    timings = [Timing("read", MB, read_ms * depth / 1e3, "measured", depth) for depth in (1, 2)]
    timings += [Timing(kind, 1, work_ms / 1e3, "measured") for kind in ("dense", "expert", "head")]
    timings += [Timing(kind, 1000, work_ms / 1e3 + 1e-9, "measured") for kind in ("dense", "expert", "head")]
    timings += [Timing("memread", MB, 1e-4, "measured"), Timing("memcpy", MB, 1e-4, "measured")]
    return Profile("made up", Machine(), tuple(timings))


def staged(trace: Trace, profile: Profile, *, validation: bool = False) -> Stage:
    fold = next(split(trace, "prompt"))
    spec = replace(trace.spec, expert_bytes=(MB,) * trace.spec.num_layers)
    tested = fold.validation if validation else fold.test
    assert tested is not None
    return Stage(fold.train, fold.validation, tested, of_spec(spec), profile, 0, as_decode=True)


def chained(prompts: int = 12, tokens: int = 30) -> Trace:
    """Every layer's experts follow from the layer before; the first layer's are drawn."""
    trace = make_trace(prompts=prompts, tokens=tokens, layers=6, experts=16, k=2)
    rng = np.random.default_rng(0)
    turn = np.stack([rng.permutation(16) for _ in range(6)])
    experts = np.empty_like(trace.experts)
    experts[:, 0] = [rng.choice(16, 2, replace=False) for _ in range(len(trace))]
    for layer in range(1, 6):
        experts[:, layer] = turn[layer][experts[:, layer - 1]]
    return replace(trace, experts=experts)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """All strategies that random routing can feed, in two sizes."""
    stage = staged(make_trace(prompts=20, tokens=24, layers=5, experts=12, k=2), machine(1.0, 0.2))
    found, left = compare_strategies(
        stage, settle(chosen(None), "counts", stage.test), {"25%": 15, "50%": 30}, batches=(1, 2)
    )
    assert set(left) == {"pre-gated", "fate"}  # they read hidden states
    assert all("--hidden" in reason for reason in left.values())
    return found


def test_everybody_gets_the_same_bytes(rows: list[Row]) -> None:
    for memory, slots in {"25%": 15, "50%": 30}.items():
        sizes = {row.bytes for row in rows if row.memory == memory}
        assert sizes == {slots * MB}


def test_everybody_runs_the_same_tokens_and_says_that_it_is_simulated(rows: list[Row]) -> None:
    assert len({row.tokens for row in rows}) == 1
    assert {row.how for row in rows} == {"simulated"}
    assert {row.strategy for row in rows} == set(STRATEGIES) - {"pre-gated", "fate"}


def test_no_strategy_passes_the_bounds(rows: list[Row]) -> None:
    for memory, batch in {(row.memory, row.batch) for row in rows}:
        here = {row.strategy: row for row in rows if (row.memory, row.batch) == (memory, batch)}
        for row in here.values():
            assert row.tokens_per_second <= here["oracle"].tokens_per_second * (1 + 1e-9)
            if row.cold_precision is None and row.strategy != "oracle":
                assert row.hit_rate <= here["belady"].hit_rate + 1e-9


def test_a_run_is_never_faster_than_its_reads(rows: list[Row]) -> None:
    for row in rows:  # the disk brings 1 MB in 1 ms, whatever is under way
        assert row.bytes_per_token * row.tokens_per_second <= 1e9 * (1 + 1e-9)


def test_intervals_hold_what_they_are_of(rows: list[Row]) -> None:
    for row in rows:
        assert row.prompts >= 1
        if row.low is not None and row.high is not None:
            assert row.low <= row.tokens_per_second <= row.high
        assert row.p50 <= row.p95 <= row.p99


def test_a_named_strategy_that_cannot_be_fed_is_an_error() -> None:
    stage = staged(make_trace(), machine(1.0, 0.2))
    with pytest.raises(ForegateError, match="fate cannot be simulated: next-gate cannot be asked, the trace has no"):
        compare_strategies(stage, chosen("fate"), {"50%": 20}, required=["fate"])


@pytest.mark.slow
def test_processes_change_no_row(rows: list[Row]) -> None:
    stage = staged(make_trace(prompts=20, tokens=24, layers=5, experts=12, k=2), machine(1.0, 0.2))
    wanted = {name: STRATEGIES[name] for name in (*BOUNDS, "lfu", "foregate-cache")}
    found, _ = compare_strategies(stage, wanted, {"25%": 15}, batches=(1,), jobs=2)
    same = [row for row in rows if row.strategy in wanted and (row.memory, row.batch) == ("25%", 1)]
    assert sorted(map(str, found)) == sorted(map(str, same))


def test_where_guesses_are_good_and_time_is_there_reading_ahead_is_recommended() -> None:
    found = planned(chained(), machine(1.0, 2.0), ["cooccur"])
    assert found.best is found.loud
    assert found.best.strategy.predictor == "cooccur"
    assert found.gain is not None
    assert found.gain > 0.1


def test_where_guesses_are_bad_and_the_disk_is_slow_it_is_not() -> None:
    trace = make_trace(prompts=12, tokens=30, layers=6, experts=16, k=2)
    found = planned(trace, machine(5.0, 0.01), ["chance"])
    assert found.best is found.quiet
    assert found.best.strategy.prefetch == "none"
    assert found.gain is not None
    assert found.gain < LEAST_GAIN


def planned(trace: Trace, profile: Profile, predictors: list[str]) -> Search:
    stage = staged(trace, profile, validation=True)
    found = search(stage, 24, predictors=predictors, evictions=("lru", "lfu", "predicted"), distances=(1, 2))
    assert found.best.speed >= max(t.speed for t in found.trials) / (1 + LEAST_GAIN)
    assert found.quiet.speed >= found.lru.speed
    return found


def test_a_predictor_that_cannot_be_fed_is_left_out_with_the_reason() -> None:
    stage = staged(make_trace(), machine(1.0, 0.2), validation=True)
    found = search(stage, 20, predictors=["next-gate"], evictions=("lru",), distances=(1,))
    assert found.loud is None
    assert found.gain is None
    assert "no hidden states" in found.left["next-gate"]


@pytest.mark.parametrize("quality", [0.0, 0.5, 1.0])
def test_made_guesses_are_as_good_as_they_say(quality: float) -> None:
    passes = passes_of(make_trace(prompts=8, tokens=30, layers=5, experts=12, k=2), as_decode=True)
    true = oracle_chances(passes, 1)[:, :, 0] > 0
    said = guesses(passes, 3, quality, np.random.default_rng(0)) > 0
    assert (said == said[:, :, :1]).all()
    assert (said[:, :, 0].sum(axis=2) == true.sum(axis=2)).all()
    assert (said[:, :, 0] & true).sum() / true.sum() == pytest.approx(quality, abs=0.03)


def test_guesses_pay_where_reads_hide_and_not_where_nothing_does() -> None:
    hidden = break_even(staged(chained(), machine(1.0, 2.0)), 24)
    assert hidden.precision is not None
    assert hidden.precision < 0.9
    assert hidden.points[-1][0] == 1.0
    assert hidden.points[0][0] < 0.1
    exposed = break_even(staged(chained(), machine(5.0, 0.001)), 24)
    assert exposed.precision is None or exposed.precision > hidden.precision


def test_the_break_even_lies_where_the_speeds_cross() -> None:
    assert _crossing([(0.0, 0.8), (0.5, 0.9), (1.0, 1.1)]) == pytest.approx(0.75)
    assert _crossing([(0.0, 0.8), (1.0, 0.99)]) is None
    assert _crossing([(0.1, 1.1), (1.0, 1.2)]) == pytest.approx(0.1)


def test_slots_follow_from_shares_and_bytes() -> None:
    shape = MODELS["mixtral-8x7b"]
    assert slots_for(shape, percent=25) == 64
    dense = sum(shape.dense_bytes) + 2 * shape.head_bytes
    assert slots_for(shape, size=dense + 10 * shape.slot_bytes) == 10
    assert slots_for(shape, size=1 << 50) == shape.all_experts
    assert least_slots(shape) == 4
    for given in ({"percent": 1.0}, {"size": 10**6}):
        with pytest.raises(ChoiceError, match=r"needs 4 slots .* 1\.6% of its experts"):
            slots_for(shape, **given)


# --- the commands ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plan")
    trace = chained(prompts=24, tokens=12)
    sized = replace(trace, spec=replace(trace.spec, model="made-up", expert_bytes=(MB,) * 6))
    write_trace(sized, folder / "trace.parquet")
    write_trace(trace, folder / "unsized.parquet")
    (folder / "machine.json").write_text(json.dumps(to_json(machine(1.0, 2.0))))
    (folder / "old.json").write_text(json.dumps({**to_json(machine(1.0, 2.0)), "format": 0}))
    bad: dict[str, Any] = json.loads(json.dumps(to_json(machine(1.0, 2.0))))
    bad["timings"][0]["seconds"] = float("nan")
    (folder / "nan.json").write_text(json.dumps(bad))
    return folder


def run(*words: str) -> Any:
    from foregate.cli import app

    return CliRunner().invoke(app, list(words))


def test_simulate_prints_its_table_and_says_what_it_is(files: Path) -> None:
    done = run(
        "simulate", str(files / "trace.parquet"), "--profile", str(files / "machine.json"), "--as", "decode",
        "--strategies", "lfu,A", "--sweep", "memory=25%,50%", "batch=1,2", "--json", str(files / "rows.json"),
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    text = " ".join(done.stdout.split())
    assert text.count("(simulated)") == 4
    assert "Machine: made up (measured)" in text
    assert "oracle*" in text
    found = json.loads((files / "rows.json").read_text())
    assert {row["strategy"] for row in found["rows"]} == {*BOUNDS, "lfu"}
    assert len(found["rows"]) == 16
    assert found["leaks"] is False


def test_the_help_names_every_strategy_and_datasheet() -> None:
    text = " ".join(run("simulate", "--help").stdout.replace("│", " ").split())
    for name in (*STRATEGIES, *PRESETS):
        assert name in text.replace("- ", "-"), name


def test_a_datasheet_is_called_one_and_running_what_was_learned_is_marked(files: Path) -> None:
    done = run(
        "simulate", str(files / "trace.parquet"), "--profile", "laptop", "--strategies", "A", "--split", "none",
        "--memory", "50%",
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert "laptop (datasheet)" in " ".join(done.stdout.split())
    assert "holds nowhere else" in done.output


def test_plan_writes_what_run_takes(files: Path) -> None:
    out = files / "plan.json"
    done = run(
        "plan", str(files / "trace.parquet"), "--profile", str(files / "machine.json"), "--as", "decode",
        "--predictors", "cooccur", "-o", str(out), "--jobs", "1",
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert "Break-even" in done.stdout
    plan = read(out)
    assert plan.provenance["how"] == "simulated"
    assert plan.predictor == str(files / "plan.npz")
    assert plan.expected.tokens_per_second > plan.expected.on_demand
    assert str(plan.wish).startswith(f"{files / 'plan.npz'},")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["unsized.parquet", "--profile", "machine.json"], "does not say how large an expert is"),
        (["trace.parquet", "--profile", "old.json"], "profile format 0"),
        (["trace.parquet", "--profile", "nan.json"], "is nan; it must be a number of seconds"),
        (["trace.parquet", "--profile", "absent"], "neither a file"),
        (["trace.parquet", "--profile", "laptop", "--memory", "1%"], "are too little"),
        (["trace.parquet", "--profile", "laptop", "--memory", "much"], "is no size"),
        (["trace.parquet", "--profile", "laptop", "--model", "mixtral-8x7b"], "has 32 of 8"),
        (["trace.parquet", "--profile", "laptop", "--as", "prefill"], "neither recorded nor decode"),
        (["trace.parquet", "--profile", "laptop", "--host-memory", "1B"], "holds no two experts"),
    ],
)
@pytest.mark.parametrize("command", ["simulate", "plan"])
def test_what_cannot_be_is_said_in_a_sentence(files: Path, command: str, words: list[str], message: str) -> None:
    full = [str(files / word) if word.endswith((".parquet", ".json")) else word for word in words]
    done = run(command, *full)
    assert isinstance(done.exception, ForegateError)
    assert message in str(done.exception)


TINY = Path(__file__).parent.parent / "models" / "tiny"


def test_a_model_in_place_of_a_trace_is_told_how_to_record_one() -> None:
    done = run("simulate", str(TINY), "--profile", "laptop")
    assert isinstance(done.exception, ChoiceError)
    assert "foregate record" in str(done.exception)


@pytest.mark.slow
def test_a_plan_of_a_model_records_it_first(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "prompts.txt").write_text("".join(f"def f{i}(a, b):\n" for i in range(12)))
    out = tmp_path / "plan.json"
    done = run(
        "plan", str(TINY), "--profile", "laptop", "--prompts", str(tmp_path / "prompts.txt"), "--max-new-tokens", "3",
        "--predictors", "counts", "--jobs", "1", "-o", str(out),
    )  # fmt: skip
    assert done.exit_code == 0, done.exception
    assert read(out).provenance["source"] == str(TINY)


def test_the_presets_can_simulate_every_model() -> None:
    from foregate.simulation.pace import pace_of

    for profile in PRESETS.values():
        for shape in MODELS.values():
            pace = pace_of(profile, shape, on_disk=not profile.has_device)
            assert 0 < pace.window < pace.read * shape.top_k * 100
