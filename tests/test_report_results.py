"""The page's sections of results: what a figure shows is what the row says, leaks are named in words, tables sort."""

import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import make_trace
from typer.testing import CliRunner

from foregate.errors import SourceError
from foregate.evaluation import Measure
from foregate.hardware.machine import Machine
from foregate.hardware.presets import PRESETS
from foregate.hardware.profile import ModelShape, Profile, Timing
from foregate.report import budget_figures
from foregate.report.board import boards
from foregate.report.board_section import board_section
from foregate.report.figures import Figure
from foregate.report.plan_section import plan_section
from foregate.report.profile_section import profile_section
from foregate.report.ran import ran
from foregate.report.run_section import run_section
from foregate.report.section import Section
from foregate.report.simulated import FLOOR, Simulated, simulated
from foregate.report.simulation_section import simulation_section
from foregate.report.split_section import split_section
from foregate.report.transfer import transfer
from foregate.report.transfer_section import transfer_section
from foregate.report.validation import validation
from foregate.report.validation_section import validation_section
from foregate.runtime.sizes import MemoryPlan
from foregate.runtime.telemetry import Telemetry
from foregate.simulation.breakeven import BreakEven
from foregate.simulation.planfile import Expected, Plan
from foregate.simulation.rows import Row
from foregate.traces.storage import write_trace

EVIL = '</script><img src=x onerror=alert(1)>"&'
MODEL = "made up"
SIZE = 10**6


@pytest.fixture(scope="module")
def values(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `foregate simulate --json` writes of a small random trace."""
    from foregate.cli import app

    folder = tmp_path_factory.mktemp("simulated")
    trace = make_trace(prompts=20, tokens=18, layers=4, experts=12, k=2)
    write_trace(replace(trace, spec=replace(trace.spec, model=MODEL, expert_bytes=(SIZE,) * 4)), folder / "t.parquet")
    words = ["simulate", str(folder / "t.parquet"), "--profile", "laptop", "--strategies", "lfu,foregate-cache,top-k"]
    words += ["--sweep", "memory=25%,50%", "batch=1,2", "--jobs", "1", "--json", str(folder / "rows.json")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.exception
    found: dict[str, Any] = json.loads((folder / "rows.json").read_text())
    return found


@pytest.fixture(scope="module")
def found(values: dict[str, Any]) -> Simulated:
    return simulated(values, "rows.json")


@pytest.fixture(scope="module")
def section(found: Simulated) -> Section:
    return simulation_section(found, 3)


def rows(predictor: str, recall: float, **changes: Any) -> list[Measure]:
    """What `compare` says of one predictor."""
    shared: dict[str, Any] = {"trace": "random", "split": "prompt", "leaks": False, "replay": "recorded", "top_k": 2}
    shared |= {"distance": None, "budget": None, "low": None, "high": None, "layer": None, "n": 9, "coverage": None}
    shared |= changes
    made = [Measure(predictor, metric="predict_us", value=3.0, **shared)]
    for distance in (1, 2):
        for budget in (1, 2):
            value = recall * budget / 2 / distance
            cell = {**shared, "distance": distance, "budget": budget, "low": value - 0.01, "high": value + 0.02}
            made += [Measure(predictor, metric="recall", value=value, **{**cell, "layer": at}) for at in (None, 1, 2)]
        made.append(Measure(predictor, metric="calibration_error", value=0.1, **{**shared, "distance": distance}))
        sure = {**shared, "distance": distance, "confidence": 0.5}
        made.append(Measure(predictor, metric="reliability", value=0.4, **sure))
    return made


def compared(**changes: Any) -> list[Measure]:
    return [m for name, recall in (("chance", 0.2), ("rules", 0.5)) for m in rows(name, recall, **changes)]


def leaking() -> list[Measure]:
    return [
        m for name, recall in (("chance", 0.2), ("rules", 0.9)) for m in rows(name, recall, split="token", leaks=True)
    ]


def validated() -> dict[str, Any]:
    """What benchmarks/sim_vs_run.py writes."""
    case = {"evict": "lru", "policy": "none", "budget": 0.25, "load": 1.0, "read": [3], "stall": [0.1]}
    return {
        "machine": {"cores": 2, "load": [0, 0, 0]},
        "command": {"tokens": 28},
        "rows": [
            {**case, "measured": 10.0, "simulated": 10.4, "error": 0.04, "errors": [0.02, 0.06]},
            {**case, "policy": "top:2", "measured": 5.0, "simulated": 6.0, "error": 0.2, "errors": [0.1, 0.3]},
        ],
    }


def plan(**changes: Any) -> Plan:
    setting: dict[str, Any] = {"evict": "predicted", "prefetch": "none", "predictor": None, "distance": 1} | changes
    told = {"strategy": "recommended", "tokens_per_second": 12.0, "low": 10.0, "high": 13.0, "hit_rate": 0.5}
    told |= {"stall_share": 0.4, "cold_precision": None, "knows_future": False}
    tried = {"evict": "lru", "predictor": "counts", "prefetch": "top:2", "distance": 1, "tokens_per_second": 11.0}
    origin = {
        "gain_of_guesses_on_validation": 0.2 if setting["predictor"] else -0.05,
        "break_even": asdict(BreakEven(0.7, ((0.1, 0.8), (0.9, 1.2)), 1)),
        "test_rows": [
            told,
            {**told, "strategy": "oracle", "tokens_per_second": 20.0, "knows_future": True, "low": None},
        ],
        "runners_up": [tried],
        "settings_tried": 85,
    }
    return Plan(MODEL, 4, 12, "25%", **setting, read_seconds=1e-3, window_seconds=2e-4, look_seconds=1e-5,
                expected=Expected(12.0, 10.0, 13.0, 9.0), provenance=origin)  # fmt: skip


def transferred() -> dict[str, Any]:
    """What benchmarks/memory_transfer.py writes."""
    rows = [
        {"way": way, "expert_bytes": size, "experts": n, "p50": n * pace, "p95": 2 * n * pace, "p99": 3 * n * pace}
        | {"count": 9, "gb_s": size / pace / 1e9, "compute_p50": 1e-3, "break_even": n * pace / 1e-3}
        for size in (SIZE, 5 * SIZE)
        for way, pace in (("disk, 1 at once", size * 4e-9), ("memory", size * 1e-10))
        for n in (1, 4)
    ]
    return {"machine": {"cpu": "a cpu", "gpu": None, "direct": True}, "rounds": 5, "rows": rows}


def profile() -> Profile:
    """A machine as `foregate profile MODEL` finds it."""
    made = []
    for depth in (1, 2):
        made += [
            Timing("read", s, s * 1e-9 * depth + 1e-4, "measured", depth, s * 1e-9 + 9e-5, 2e-2, 3e-2, 9)
            for s in (4096, SIZE)
        ]
    made += [Timing("memcpy", s, s * 1e-10, "measured") for s in (4096, SIZE)]
    made += [Timing(k, n, 1e-3 * n, "measured") for k in ("expert", "dense", "head") for n in (1, 8)]
    shape = ModelShape(MODEL, "bfloat16", 4, 12, 64, SIZE)
    return Profile("this machine", Machine(cpu="a cpu", cores=2, threads=2), tuple(made), shape)


def run_values(*, guesses: bool = True) -> dict[str, Any]:
    """What `foregate run --json` writes: two layers, a prefill and a decoded token."""
    counts = Telemetry(2)
    for prefill, tokens in ((True, 6), (False, 1)):
        counts.begin(tokens, prefill)
        for layer in (0, 1):
            found = {"demanded": 4, "resident": 1 + layer, "in_time": guesses, "missed": 3 - layer - guesses}
            found |= {"read": 3 + guesses, "bytes": 3 * SIZE, "stall": 0.01 * (1 + layer), "compute": 0.02}
            fates = {"guessed": 4, "used": 1, "wasted": 2, "dropped": 0, "late": 0, "predictor": 1e-3}
            for name, value in (found | fates if guesses else found).items():
                counts.add(layer, name, value)
        counts.end(0.1)
    planned = MemoryPlan(10**9, 10**6, None, 128, 0, SIZE, 6, 24).to_json()
    told = {"model": f"somewhere/{MODEL.replace(' ', '-')}", "setting": "evict lru, read on demand"}
    return {**told, "text": EVIL, "memory": planned, "stats": json.loads(json.dumps(counts.totals()))}


def sections() -> Iterator[Section]:
    """One of each that needs no simulation."""
    honest, leak = boards([*compared(), *leaking()], ["chance"])
    yield board_section(honest, 0)
    yield board_section(leak, 1, (3, 5, 7))
    yield split_section([honest, leak], 0)
    yield plan_section(plan(), 0)
    yield plan_section(plan(predictor="counts", prefetch="top:2"), 1)
    yield validation_section(validation(validated(), "v.json"), 0)
    yield profile_section(profile(), 0)
    yield profile_section(PRESETS["rtx-3090"], 1)
    yield transfer_section(transfer(transferred(), "t.json"), 0)
    yield run_section(ran(run_values(), "r.json"), 0)
    yield run_section(ran(run_values(guesses=False), "r.json"), 1)


@pytest.fixture(scope="module")
def every(section: Section) -> list[Section]:
    return [section, *sections()]


def figure(section: Section, name: str) -> Figure:
    return next(f for f in section.figures if f.name.startswith(name))


def lines(drawn: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in drawn}


def plain(name: str) -> str:
    """A strategy's name on an axis, without what marks the bounds."""
    return name.strip("\u2013 ")


# --- every section ---------------------------------------------------------------------------------------------------


def numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        for inner in value.values():
            yield from numbers_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from numbers_in(inner)
    elif isinstance(value, float):
        yield value


def test_every_figure_says_how_it_was_obtained_and_tells_its_main_numbers(every: list[Section]) -> None:
    for one in (f for s in every for f in s.figures):
        assert re.search(r"[Mm]easured|[Ss]imulated|[Dd]erived", one.caption), one.name
        assert len(re.findall(r"\d", one.text)) >= 2, one.name
        assert all(re.search(r"\d", text) for text in one.texts.values()), one.name
        assert set(one.texts) == (set(one.views) if one.texts else set()), one.name


def test_no_figure_holds_a_number_that_is_not_finite(every: list[Section]) -> None:
    for one in (f for s in every for f in s.figures):
        assert all(map(math.isfinite, numbers_in([one.data, one.layout, one.views]))), one.name
        json.dumps([one.data, one.layout, one.views], allow_nan=False)


def test_names_are_unique(every: list[Section]) -> None:
    names = [s.name for s in every] + [f.name for s in every for f in s.figures]
    assert len(names) == len(set(names))


def test_lines_differ_in_more_than_colour(every: list[Section]) -> None:
    for one in (f for s in every for f in s.figures):
        looks = [
            (t["marker"].get("symbol"), t.get("line", {}).get("dash"))
            for t in one.data
            if t["type"] == "scatter" and "markers" in t["mode"] and not isinstance(t["marker"].get("symbol"), list)
        ]
        assert len(looks) == len(set(looks)), one.name


def test_what_is_quoted_cannot_become_markup(values: dict[str, Any]) -> None:
    evil = {**values, "trace": EVIL, "profile": EVIL, "facts": [EVIL], "left_out": {EVIL: EVIL}}
    case = {**validated()["rows"][0], "evict": EVIL}
    tested = [
        simulation_section(simulated(evil, "x"), 0),
        board_section(boards([*rows(EVIL, 0.5, trace=EVIL)], [])[0], 0),
        plan_section(replace(plan(), model=EVIL, provenance={"source": EVIL, "profile": EVIL}), 0),
        validation_section(validation({**validated(), "rows": [case], "machine": {EVIL: EVIL}}, "x"), 0),
        run_section(ran({**run_values(), "model": EVIL, "setting": EVIL}, "x"), 0),
        profile_section(replace(profile(), notes=(EVIL,), sources=(EVIL,), machine=Machine(cpu=EVIL, cores=1)), 0),
    ]
    for one in tested:
        assert "<img" not in one.body, one.name
        assert "&lt;img" in one.body, one.name


# --- predictors ------------------------------------------------------------------------------------------------------


def test_a_split_that_leaks_is_named_in_words_and_hatched() -> None:
    honest, leak = boards([*compared(), *leaking()], ["chance"])
    together = split_section([honest, leak], 0)
    assert "token LEAKS: tokens of one prompt stand on both sides" in together.body
    assert "rules seems to rise the most: from 50.0\u00a0% to 90.0\u00a0%" in together.body
    assert together.body.count("<td class=leak") == 2  # a cell for each predictor, and only under that split
    drawn = lines(figure(together, "splits").data)
    assert set(drawn) == {"by prompt", "by token (LEAKS)"}
    assert drawn["by token (LEAKS)"]["marker"]["symbol"].endswith("-open")
    assert dict(zip(drawn["by prompt"]["y"], drawn["by prompt"]["x"], strict=True)) == {"chance": 0.2, "rules": 0.5}
    alone = board_section(leak, 0)
    assert "THIS SPLIT LEAKS: tokens of one prompt" in alone.body
    assert "leaks" in alone.title
    assert "class=best" not in alone.body
    assert all("LEAKS" in f.caption for f in alone.figures)


def test_accuracy_figures_show_the_rows_with_their_intervals() -> None:
    board = boards(compared(), ["chance"])[0]
    line = lines(figure(board_section(board, 0), "budget").data)["rules"]
    assert (line["x"], line["y"]) == ([1, 2], [0.25, 0.5])
    assert line["error_y"]["array"] == [0.02, 0.02]
    assert line["error_y"]["arrayminus"] == [0.01, 0.01]


# --- simulation ------------------------------------------------------------------------------------------------------


def test_every_strategy_is_in_every_memorys_table_with_its_bytes(found: Simulated, section: Section) -> None:
    tables = re.findall(r"<table class=\"board\">.*?</table>", section.body)
    assert len(tables) == len(found.memories) * len(found.batches) == 4
    for table in tables:
        assert {name for name in found.names if f'data-value="{name}"' in table} == set(found.names)
        assert table.count("knows the future") == 2
    assert "the same bytes of fast memory and pays for every" in section.body
    for memory in found.memories:
        assert len({row.bytes for row in found.at(memory, 1)}) == 1


@pytest.mark.parametrize(("name", "field"), [("speed", "tokens_per_second"), ("hits", "hit_rate")])
def test_lines_over_memory_are_the_rows(found: Simulated, section: Section, name: str, field: str) -> None:
    drawn = lines(figure(section, name).data)
    assert set(drawn) == set(found.names)
    for strategy, line in drawn.items():
        of = [found.find(strategy, memory, 1) for memory in found.memories]
        assert line["y"] == pytest.approx([getattr(r, field) for r in of if r], abs=1e-4)
        assert line["x"] == pytest.approx([0.25, 0.5])
    assert drawn[FLOOR]["line"]["dash"] == "solid"
    assert drawn["oracle"]["line"]["dash"] != "solid"
    if name == "speed":
        assert drawn[FLOOR]["error_y"]["array"][0] == pytest.approx(
            (row := at(found, FLOOR)).high - row.tokens_per_second,
            abs=1e-3,  # type: ignore[operator]
        )


def at(found: Simulated, strategy: str, memory: str = "25%") -> Row:
    row = found.find(strategy, memory, 1)
    assert row is not None
    return row


def test_the_front_holds_whom_nobody_beats(found: Simulated, section: Section) -> None:
    front = lines(figure(section, "pareto").data)["front"]
    for x, y in zip(front["x"], front["y"], strict=True):
        rivals = [r for r in found.rows if r.batch == 1 and r.bytes <= x and not r.knows_future]
        assert y == pytest.approx(max(r.tokens_per_second for r in rivals), abs=1e-3)
    assert front["x"] == sorted(set(front["x"]))


@pytest.mark.parametrize("label", ["p50", "p95", "p99"])
def test_latencies_are_the_rows(found: Simulated, section: Section, label: str) -> None:
    for view, memory in zip(figure(section, "latency").views.values(), ("25%", "50%"), strict=True):
        marks = lines(view)[label]
        for name, x in zip(marks["y"], marks["x"], strict=True):
            assert x == pytest.approx(1e3 * getattr(at(found, plain(name), memory), label), rel=1e-4)


def test_shares_of_the_time_add_up_to_all_of_it(found: Simulated, section: Section) -> None:
    drawn = lines(figure(section, "spent").data)
    waits = drawn["waiting for bytes"]
    for i, name in enumerate(waits["y"]):
        assert waits["x"][i] == pytest.approx(at(found, plain(name)).stall_share, abs=1e-4)
        assert sum(line["x"][i] for line in drawn.values()) == pytest.approx(1, abs=1e-3)
    for row in found.rows:
        assert row.stall_share + row.expert_share + row.dense_share + row.predictor_share <= 1 + 1e-9
        assert budget_figures.beside(row) < 0.5


def test_what_is_read_is_the_rows(found: Simulated, section: Section) -> None:
    drawn = lines(figure(section, "read").data)
    for name, x in zip(drawn["read per token"]["y"], drawn["read per token"]["x"], strict=True):
        assert x == pytest.approx(at(found, plain(name)).bytes_per_token, abs=1)
    guessing = {r.strategy for r in found.at("25%", 1) if r.cold_precision is not None}
    assert {plain(name) for name in drawn["cold precision"]["y"]} == guessing
    waits = lines(figure(section, "waits").data)
    for name, line in waits.items():
        assert line["y"] == pytest.approx([1e3 * s for s in at(found, name).layer_stalls], rel=1e-4)


def test_all_strategies_tell_the_same_tokens_moment_by_moment(found: Simulated) -> None:
    for batch in found.batches:
        windows = [r.window for m in found.memories for r in found.at(m, batch)]
        assert len({(w.first, w.passes, w.tokens) for w in windows if w}) == 1
        assert None not in windows
    for row in found.rows:
        assert row.window is not None
        assert row.window.passes == 2
        spent = sum(end - begin for kind, begin, end, *_ in row.window.moments if kind != "read")
        assert 0 < spent <= row.window.seconds + 1e-9
        assert all(0 <= begin < end <= row.window.seconds + 1e-9 for _, begin, end, *_ in row.window.moments)


def test_the_timeline_shows_every_moment_once(found: Simulated, section: Section) -> None:
    shown = figure(section, "timeline")
    assert len(shown.views) >= 3
    for label, view in shown.views.items():
        row, floor = at(found, label.partition(" (")[0]), at(found, FLOOR)
        assert row.window is not None
        assert floor.window is not None
        assert sum(len(bars["x"]) for bars in view) == len(row.window.moments) + len(floor.window.moments)
        stalls = [
            end - begin for w in (row.window, floor.window) for kind, begin, end, *_ in w.moments if kind == "stall"
        ]
        assert sum(lines(view)["waits for bytes"]["x"]) == pytest.approx(
            1e3 * sum(stalls), abs=1e-3 * (1 + len(stalls))
        )
        lanes: dict[int, list[tuple[float, float]]] = {}
        for bars in view:
            for y, base, x in zip(bars["y"], bars["base"], bars["x"], strict=True):
                lanes.setdefault(y, []).append((base, base + x))
        for spans in lanes.values():
            spans.sort()
            assert all(b >= e - 1e-3 for (_, e), (b, _) in pairwise(spans)), "two at once in one lane"


def test_without_moments_there_is_no_timeline(values: dict[str, Any]) -> None:
    quiet = {**values, "rows": [{**row, "window": None} for row in values["rows"]]}
    assert not [f for f in simulation_section(simulated(quiet, "x"), 0).figures if f.name.startswith("timeline")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["rows"][0].pop("expert_share"), r"rows.json: rows\[0\].expert_share is missing"),
        (
            lambda v: v["rows"][1].update(p95=float("nan")),
            r"rows.json: rows\[1\].p95 is nan; it must be a number that is",
        ),
        (lambda v: v["rows"][0].update(slots="many"), r"rows\[0\].slots is 'many'; it must be a whole number"),
        (lambda v: v.update(rows=[]), "holds no rows"),
        (lambda v: v.update(colour=1), "colour is unknown here"),
        (lambda v: v["rows"][0]["window"].update(moments=[["read", 1]]), r"moments\[0\] has 2 values; it must have 6"),
    ],
)
def test_a_file_that_cannot_be_is_refused_by_the_field(values: dict[str, Any], change: Any, message: str) -> None:
    broken = json.loads(json.dumps(values))
    change(broken)
    with pytest.raises(SourceError, match=message):
        simulated(broken, "rows.json")


# --- plan, validation, profile ----------------------------------------------------------------------------------------


def test_a_plan_says_plainly_when_prefetching_does_not_pay() -> None:
    body = plan_section(plan(), 0).body
    assert "Do not prefetch here." in body
    assert "5.0% slower" in body
    assert "12 tokens/s [10, 13] expected" in body
    assert "pay from a cold precision of 70% on" in body
    paying = plan_section(plan(predictor="counts", prefetch="top:2"), 0).body
    assert "Do not" not in paying
    assert "read ahead (counts,top:2,distance=1)" in paying
    assert 'data-value="lru + counts, top:2, 1 ahead"' in paying


def test_a_plan_of_an_older_foregate_is_shown_without_what_it_lacks() -> None:
    old = plan_section(replace(plan(), provenance={}), 0)
    assert old.figures == ()
    assert "Runners-up" not in old.body


def test_validation_is_told_case_by_case_and_by_its_median() -> None:
    found = validation(validated(), "v.json")
    section = validation_section(found, 0)
    assert "off by 12.0% (median of 2 configurations" in section.body
    assert "1 of 2 are within 10%" in section.body
    assert section.body.count("off by more than 10%") == 1
    marks = lines(figure(section, "validation-scatter").data)
    assert (marks["no prefetch"]["x"], marks["no prefetch"]["y"]) == ([10.0], [10.4])
    assert lines(figure(section, "validation-errors").data)["median over prompts"]["x"] == [0.2, 0.04]


def test_validation_without_a_speed_is_refused() -> None:
    broken = validated()
    broken["rows"][1]["measured"] = 0.0
    with pytest.raises(SourceError, match=r"v.json: rows\[1\] has no speed above zero"):
        validation(broken, "v.json")


def test_a_profile_shows_what_was_measured_and_what_a_layer_hides() -> None:
    section = profile_section(profile(), 0)
    reads = lines(figure(section, "moved").data)
    assert reads["disk read"]["y"] == pytest.approx([1e3 * t.seconds for t in profile().of("read")[:2]], rel=1e-4)
    experts = lines(figure(section, "experts").data)
    assert experts["from disk, 1 at once"]["y"][3] == pytest.approx(4e3 * profile().read_seconds(SIZE), rel=1e-4)
    assert experts["a layer that computes so many"]["y"][3] == pytest.approx(1 + 4, rel=1e-4)
    assert lines(figure(section, "spread").data)["p99"]["x"] == [30.0] * 4


def test_a_transfer_is_told_by_percentiles_and_break_even() -> None:
    section = transfer_section(transfer(transferred(), "t.json"), 0)
    times = figure(section, "transfer-times")
    disk = lines(times.views["experts of 5\u00a0MB"])["disk, 1 at once"]
    assert (disk["x"], disk["y"]) == ([1, 4], [20.0, 80.0])
    assert disk["error_y"]["array"] == [40.0, 160.0]
    assert lines(figure(section, "transfer-even").data)["disk, 1 at once"]["y"] == [4.0, 4.0]
    with pytest.raises(SourceError, match="holds no times"):
        transfer({**transferred(), "rows": []}, "t.json")


def test_a_run_is_told_by_phase_and_by_layer() -> None:
    section = run_section(ran(run_values(), "r.json"), 0)
    assert section.title == "What ran: made-up with 25% of its experts in slots"
    assert "evict lru, read on demand" in section.body
    assert "16 issued, 4 used, 0 late, 8 wasted, 0 dropped; cold precision 33.3\u00a0%" in section.body
    assert re.findall(r'<th scope="row" data-value="(\w+)">', section.body) == ["prefill", "decode", "0", "1"]
    assert '<td data-value="10.0">10</td>' in section.body  # tokens a second: one in 0.1 s
    shares = lines(figure(section, "run-found").data)
    assert [shares[n]["y"] for n in ("there already", "read ahead, in time", "read ahead, late", "missed")] == [
        [0.25, 0.5],
        [0.25, 0.25],
        [0.0, 0.0],
        [0.5, 0.25],
    ]
    assert lines(figure(section, "run-spent").data)["waiting for bytes"]["y"] == pytest.approx(
        [20 / 7, 40 / 7], rel=1e-3
    )
    assert figure(section, "run-read").data[0]["y"] == [round(6 * SIZE / 7)] * 2
    fates = lines(figure(section, "run-guessed").data)
    assert {name: sum(line["y"]) for name, line in fates.items()} == {
        "used": 4,
        "wasted": 8,
        "never read": 0,
        "still in a slot": 4,
    }


def test_a_run_without_guesses_or_of_an_older_foregate_is_shown_without_them() -> None:
    old = run_values(guesses=False)
    del old["model"], old["setting"]
    section = run_section(ran({**old, "memory": None}, "r.json"), 0)
    assert section.title == "What ran: a model"
    assert not [f for f in section.figures if f.name.startswith("run-guessed")]
    assert "guesses" not in section.body
    assert EVIL not in section.body, "what was written is not the page's"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["stats"].pop("decode"), "r.json: decode is missing"),
        (lambda v: v.update(stats=[]), "r.json: prefill is missing"),
        (lambda v: v["stats"]["decode"].update(tokens="many"), "decode.tokens is 'many'"),
        (lambda v: v["stats"]["by_layer"].pop("late"), "holds no run with all its layers' numbers"),
        (lambda v: v["stats"]["by_layer"].update(late=[1.0]), "holds no run with all its layers' numbers"),
        (lambda v: v.update(memory=[]), "memory is"),
    ],
)
def test_a_run_that_cannot_be_is_refused_by_the_field(change: Any, message: str) -> None:
    broken = run_values()
    change(broken)
    with pytest.raises(SourceError, match=message):
        ran(broken, "r.json")


def test_a_datasheet_is_called_one() -> None:
    section = profile_section(PRESETS["rtx-3090"], 0)
    assert section.figures
    for one in section.figures:
        assert "from datasheets, not measured" in one.caption.lower()


# --- in a browser ----------------------------------------------------------------------------------------------------

SORTS = """
<script>
const table = document.querySelector("table.board");
const order = () => [...table.tBodies[0].rows].map((r) => r.cells[0].dataset.value).join(" ");
const press = (text) => {
  [...table.tHead.querySelectorAll("button")].find((b) => b.textContent === text).click();
  return `${order()} (${table.querySelector("[aria-sort]").ariaSort})`;
};
document.body.dataset.orders = ["COLUMN", "COLUMN", "FIRST"].map(press).join(" | ");
document.body.dataset.focus = [...table.tHead.querySelectorAll("button")].every((b) => b.tabIndex === 0);
</script></body>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: nothing was sorted")
    return found


def render(browser: str, sections: list[Section], script: str, folder: Path) -> str:
    """The page after its scripts and this one ran."""
    pytest.importorskip("plotly")
    from foregate.report.page import build_page

    html = build_page(sections, title="t", summary=[])
    file = folder / "page.html"
    file.write_text(html.replace("</body>", script), encoding="utf-8")
    quiet = ("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync")
    words = [browser, "--headless", "--no-sandbox", "--disable-gpu", *quiet, f"--user-data-dir={folder / 'profile'}"]
    words += ["--enable-logging=stderr", "--virtual-time-budget=20000", "--dump-dom", file.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True)
    assert not [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return done.stdout


def test_a_simulations_tables_sort_and_empty_cells_stay_last(
    browser: str, found: Simulated, section: Section, tmp_path: Path
) -> None:
    script = SORTS.replace("COLUMN", "cold precision").replace("FIRST", "strategy")
    dom = render(browser, [section], script, tmp_path)
    known = {r.strategy: r.cold_precision for r in found.at("25%", 1)}
    orders = [
        (part.split()[:-1], part.split()[-1]) for part in re.findall(r'data-orders="([^"]*)"', dom)[0].split(" | ")
    ]
    (down, one), (up, two), (names, _) = orders
    assert (one, two) == ("(descending)", "(ascending)")
    for order, sign in ((down, -1), (up, 1)):
        filled = [name for name in order if known[name] is not None]
        assert order[: len(filled)] == filled, "an empty cell stands before a filled one"
        assert filled == sorted(filled, key=lambda n: sign * (known[n] or 0.0))
    assert names == sorted(known)
    assert 'data-focus="true"' in dom


def test_every_result_section_is_drawn_without_complaint(browser: str, every: list[Section], tmp_path: Path) -> None:
    dom = render(browser, every, "</body>", tmp_path)
    drawn = re.findall(r'<div class="plot[^"]*js-plotly-plot', dom)
    assert len(drawn) == sum(len(one.figures) for one in every)
