"""The Mixtral study's scripts, reproduced: golden files, reference values, and rules counted the plain way."""

import hashlib
import json
import shutil
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace
from typer.testing import CliRunner, Result

from foregate.cli import app
from foregate.comparison import compare
from foregate.components import build
from foregate.errors import ChoiceError, ForegateError
from foregate.history import Replay
from foregate.journeys import Journeys, Reading, read
from foregate.predictors import PREDICTORS
from foregate.predictors.levels import packed
from foregate.predictors.votes import Votes
from foregate.rulebook import LEVELS, create, evaluate, wilson
from foregate.rulefiles import read_rules, write_rules
from foregate.traces.export import export_jsonl
from foregate.traces.importers import IMPORTERS
from foregate.traces.schema import Trace
from foregate.traces.storage import write_trace

RULES = {"test_rules": ["p0_token_0"], "rules_p0_first5": [f"p0_token_{t}" for t in range(5)]}
LATER = [f"p0_token_{t}" for t in range(5, 10)]
OTHERS = [f"p1_token_{t}" for t in range(10)]
EVALUATIONS = {
    "eval_results": ("test_rules", sorted([*OTHERS, "p1_token_11"])),
    "eval_p0_5to9": ("rules_p0_first5", LATER),
    "eval_p1_first10": ("rules_p0_first5", OTHERS),
    "eval_all_15": ("rules_p0_first5", LATER + OTHERS),
}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def well(*arguments: object) -> Result:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def complaint(*arguments: object) -> str:
    """What `main` prints before it exits with 2."""
    result = run(*arguments)
    assert isinstance(result.exception, ForegateError), (result.output, result.exception)
    return str(result.exception)


@pytest.fixture(scope="module")
def published(shared: Path) -> Path:
    return shared / "mixtral-8x7b-instruct"


@pytest.fixture(scope="module")
def folder(published: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 22 journeys."""
    folder = tmp_path_factory.mktemp("journeys")
    for problem in (0, 1):
        for start, stop in ((0, 10), (11, 12)):
            source = published / "humaneval_2_routing.jsonl.xz"
            well("journeys", source, "--problem", problem, "--tokens", start, stop, "-o", folder)
    return folder


def files(folder: Path, names: list[str]) -> list[Path]:
    return [folder / f"{name}.jsonl" for name in names]


def test_journeys_have_the_published_bytes(published: Path, folder: Path) -> None:
    golden = dict(line.split()[::-1] for line in (published / "golden/token_journeys.sha256").read_text().splitlines())
    assert len(golden) == 22
    for name, digest in golden.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest, name


def test_journeys_of_an_imported_trace_have_the_same_bytes(published: Path, folder: Path, tmp_path: Path) -> None:
    sources = [published / f"{name}_2_routing.jsonl.xz" for name in ("humaneval", "gsm8k")]
    write_trace(IMPORTERS["records"](sources), tmp_path / "t.parquet")
    assert "--dataset" in complaint("journeys", tmp_path / "t.parquet", "-p", 1, "-t", 3, 5, "-o", tmp_path)
    well("journeys", tmp_path / "t.parquet", "-p", 1, "-t", 3, 5, "-o", tmp_path, "--dataset", "humaneval")
    for name in ("p1_token_3.jsonl", "p1_token_4.jsonl"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", RULES)
def test_rule_files_match_byte_for_byte(name: str, published: Path, folder: Path, tmp_path: Path) -> None:
    well("rules", "create", *files(folder, RULES[name]), "-o", tmp_path / "rules.json")
    assert (tmp_path / "rules.json").read_bytes() == (published / f"golden/{name}.json").read_bytes()


@pytest.mark.parametrize("name", EVALUATIONS)
@pytest.mark.parametrize("intervals", [False, True])
def test_evaluations_match(name: str, intervals: bool, published: Path, folder: Path, tmp_path: Path) -> None:
    rules, tests = EVALUATIONS[name]
    shutil.copy(published / f"golden/{rules}.json", tmp_path)
    extra = ["--intervals"] if intervals else []
    where = ["--rules", tmp_path / f"{rules}.json", "-o", tmp_path / "out.json", *extra]
    output = well("rules", "evaluate", *where, "--test", *files(folder, tests)).stdout
    found, golden = (json.loads(p.read_text()) for p in (tmp_path / "out.json", published / f"golden/{name}.json"))
    best = golden["best_level"]
    assert f"BEST: {best['name']} with {best['accuracy_percent']:.1f}% accuracy" in output
    if intervals:
        for result in found["results"].values():
            low, high = result.pop("interval_percent")
            assert low < result["accuracy_percent"] < high
            assert 0 < result.pop("coverage_percent") < 100
    for values in (found, golden):
        del values["metadata"]["timestamp"]
    assert json.dumps(found) == json.dumps(golden)


def test_patterns_are_expanded_and_traces_are_journeys(published: Path, folder: Path, tmp_path: Path) -> None:
    rules = published / "golden/rules_p0_first5.json"
    one = well("rules", "evaluate", "-r", rules, "-t", folder / "p1_token_?.jsonl", folder / "p1_token_11.jsonl").stdout
    trace = IMPORTERS["records"]([published / "humaneval_2_routing.jsonl.xz"])
    wanted = trace.take((trace.sequence == 1) & np.isin(trace.position, [*range(10), 11]))
    write_trace(wanted, tmp_path / "t.parquet")
    assert well("rules", "evaluate", "-r", rules, "-t", tmp_path / "t.parquet").stdout == one


REFERENCES = {
    "hybrid:levels=mode": (16.0, 30.7),
    "hybrid:levels=1": (20.3, 36.8),
    "hybrid:levels=2": (23.0, 39.1),
    "hybrid:levels=3": (22.7, 37.3),
    "hybrid:levels=4": (22.2, 38.8),
    "hybrid:levels=path": (16.5, 31.4),
    "hybrid": (24.6, 39.6),
}
SKIPS = {2: 21.9, 4: 19.6, 8: 20.4}


def test_reference_values_by_problem(published: Path) -> None:
    """One problem of each data set trains, the other tests, both directions; complete tokens, as published."""
    whole = IMPORTERS["records"]([published / f"{name}_2_routing.jsonl.xz" for name in ("humaneval", "gsm8k")])
    trace = whole.take((whole.experts >= 0).all(axis=(1, 2)))
    found = compare(trace, folds=2, predictors=list(REFERENCES)).measures
    means = {(m.predictor, m.metric): m for m in found if m.layer is None}
    for name, (top1, top2) in REFERENCES.items():
        assert means[name, "top1"].n == 17_887
        assert means[name, "top1"].value * 100 == pytest.approx(top1, abs=1.0), name
        assert means[name, "top2"].value * 100 == pytest.approx(top2, abs=1.0), name
    assert means["hybrid", "coverage"].value > means["hybrid:levels=3", "coverage"].value
    skips = compare(trace, folds=2, predictors=["hybrid:levels=1"], distances=list(SKIPS)).measures
    for m in skips:
        if m.predictor == "hybrid:levels=1" and m.metric == "top1" and m.layer is None and m.distance is not None:
            assert m.value * 100 == pytest.approx(SKIPS[m.distance], abs=1.0), m.distance


def journeys(*, tokens: int = 60, layers: int = 10, experts: int = 4, seed: int = 0) -> Journeys:
    """Few experts, so that ties are many."""
    rng = np.random.default_rng(seed)
    ranked = np.array([[rng.permutation(experts)[:2] for _ in range(layers)] for _ in range(tokens)])
    return Journeys("random", ranked, experts, (f"seed{seed}",), 0)


def by_hand(source: Journeys) -> dict[str, Any]:
    """The study's script as its documents describe it."""
    votes: dict[str, dict[str, Counter[int]]] = {level.name: defaultdict(Counter) for level in LEVELS}
    for token in source.ranked.tolist():
        first = [pair[0] for pair in token]
        for layer in range(len(first) - 1):
            follows = first[layer + 1]
            keys = {"level1": (layer, first[layer]), "level4": (layer, *token[layer])}
            keys |= {"level2": (layer, *first[layer - 1 : layer + 1])} if layer >= 1 else {}
            keys |= {"level3": (layer, *first[layer - 2 : layer + 1])} if layer >= 2 else {}
            for name, key in keys.items():
                votes[name][str(key)][follows] += 1
            votes["full_path"][str((layer, tuple(first[: layer + 1])))][follows] += 1
            for skip in (2, 4, 8):
                if layer + skip < len(first):
                    votes[f"level5_skip{skip}"][str((layer, first[layer]))][first[layer + skip]] += 1
    return {name: {key: _rule(counter) for key, counter in rules.items()} for name, rules in votes.items()}


def _rule(counter: Counter[int]) -> dict[str, Any]:
    prediction, most = counter.most_common(1)[0]
    total = sum(counter.values())
    ballot = {str(answer): count for answer, count in counter.items()}
    return {"prediction": prediction, "confidence": most / total, "votes": ballot, "samples": total}


@pytest.mark.parametrize("seed", range(3))
def test_counting_with_arrays_is_counting_by_hand(seed: int, tmp_path: Path) -> None:
    source = journeys(seed=seed)
    write_rules(create(source, LEVELS), tmp_path / "rules.json")
    text = (tmp_path / "rules.json").read_text()
    values = json.loads(text)
    assert text == json.dumps(values, indent=2)
    expected = by_hand(source)
    for level in LEVELS:
        skip = level.ahead if level.ahead > 1 else None
        found = values["level5"]["rules"][f"skip_{skip}"] if skip else values[level.name]["rules"]
        assert json.dumps(found) == json.dumps(expected[level.name]), level.name  # the order counts too


def test_trying_rules_with_arrays_is_trying_them_by_hand(tmp_path: Path) -> None:
    train, test = journeys(seed=0), journeys(seed=1)
    book = create(train, LEVELS)
    write_rules(book, tmp_path / "rules.json")
    scores = evaluate(book, test)
    assert evaluate(read_rules(tmp_path / "rules.json"), test) == scores
    rules, asked = by_hand(train), by_hand(test)
    for score in scores:
        known, trials = rules[score.level.name], asked[score.level.name]
        pairs = [(known[key]["prediction"], key) for key in trials if key in known]
        assert score.total == sum(trials[key]["samples"] for _, key in pairs)
        assert score.correct == sum(trials[key]["votes"].get(str(guess), 0) for guess, key in pairs)
        assert score.rows == 60 * (10 - score.level.ahead)
        assert 0 < score.coverage < 1 or score.level.looks_up in ("1", "4")


def test_a_level_that_looks_beyond_a_shallow_model_covers_nothing() -> None:
    source = journeys(layers=5)
    scores = {score.level.name: score for score in evaluate(create(source, LEVELS), source)}
    beyond = [score for score in scores.values() if score.level.ahead >= 5]
    assert [score.rows for score in beyond] == [0]
    assert all(score.total > 0 for score in scores.values() if score not in beyond)


def test_long_paths_of_many_experts_are_told_apart(tmp_path: Path) -> None:
    """They do not fit one integer: a path is covered only if it is the same in every layer."""
    source = journeys(tokens=30, layers=40, experts=200)
    book = create(source, [LEVELS[-1]])
    write_rules(book, tmp_path / "rules.json")
    assert {key: rule["prediction"] for key, rule in by_hand(source)["full_path"].items()} == {
        key: rule["prediction"]
        for key, rule in json.loads((tmp_path / "rules.json").read_text())["full_path"]["rules"].items()
    }
    (score,) = evaluate(book, source)
    assert (score.total, score.rows) == (30 * 39, 30 * 39)
    changed = source.ranked.copy()
    changed[:, 0, 0] = (changed[:, 0, 0] + 100) % 200
    (other,) = evaluate(book, replace(source, ranked=changed))
    assert other.total <= sum(len(set(rows)) < 30 for rows in changed[:, :, 0].T)


def test_wilson_interval() -> None:
    assert wilson(21, 24) == pytest.approx((0.690, 0.957), abs=5e-4)
    assert wilson(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson(10, 10)[1] == pytest.approx(1, abs=1e-12)


def test_votes_keep_the_order_they_came_in() -> None:
    votes = Votes.count(np.array([5, 9, 5, 5, -1, 9, 5]), np.array([2, 1, 0, 0, 1, -1, 2]), 3)
    assert votes.keys.tolist() == [5, 9]
    assert votes.answers.tolist() == [2, 0, 1]
    assert votes.counts.tolist() == [2, 2, 1]
    assert votes.winners().tolist() == [2, 1]
    assert Votes.count(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64), 3).winners().tolist() == []


def test_long_contexts_get_numbers_of_their_own() -> None:
    ids = np.random.default_rng(0).integers(0, 60, (20_000, 30))
    keys = np.concatenate([packed(ids, place, 61) for place in (0, 1)])
    assert len(np.unique(keys)) == 40_000
    assert keys.min() >= 0
    ids[7, 3] = -1
    assert packed(ids, 0, 61)[7] == -1


def one_expert(rows: list[list[int]]) -> Trace:
    trace = make_trace(prompts=1, tokens=len(rows), layers=len(rows[0]), experts=4, k=1)
    return replace(trace, experts=np.array(rows, dtype=np.int8)[:, :, None])


def test_hybrid_takes_the_longest_rule_and_the_first_seen_of_equals() -> None:
    trace = one_expert([[0, 1, 3], [0, 1, 2], [3, 1, 0], [3, 1, 0], [2, 1, 0]])
    hybrid = build(PREDICTORS, "hybrid").fit(trace)
    asked = one_expert([[0, 1, 0], [3, 1, 0], [1, 1, 0], [1, 3, 0]])
    query = Replay(asked).query(1, 2)
    order = np.argsort(-hybrid.predict(query), axis=1, kind="stable")
    # (0, 1) was followed by 3 and 2, once each, 3 first. (1, 1) is unknown, but 1 alone says 0. 3 is unknown: the mode.
    assert order[:, 0].tolist() == [3, 0, 0, 0]
    assert order[0, 1] == 2
    assert hybrid.covers(query).tolist() == [True, True, True, False]


def test_single_levels_do_not_back_off() -> None:
    trace = one_expert([[0, 1, 3], [2, 1, 0], [2, 1, 0]])
    level2 = build(PREDICTORS, "hybrid:levels=2").fit(trace)
    query = Replay(one_expert([[1, 1, 0]])).query(1, 2)
    assert level2.covers(query).tolist() == [False]
    assert build(PREDICTORS, "hybrid:levels=path").fit(trace).covers(Replay(trace).query(1, 2)).all()


@pytest.mark.parametrize(("levels", "message"), [("7", "there is no level '7'"), ("3-x", "'x'"), ("4", "secondary")])
def test_unknown_levels_of_hybrid_are_refused(levels: str, message: str) -> None:
    with pytest.raises(ChoiceError, match=message):
        build(PREDICTORS, f"hybrid:levels={levels}").fit(one_expert([[0, 1], [1, 0]]))


@pytest.fixture
def journey(tmp_path: Path) -> Path:
    trace = make_trace(prompts=1, tokens=1, layers=32)
    path = tmp_path / "p0_token_0.jsonl"
    export_jsonl(trace, path)
    return path


@pytest.mark.parametrize("layer", [0, 5, 31])
def test_a_journey_without_a_layer_is_refused(journey: Path, layer: int) -> None:
    lines = journey.read_text().splitlines(keepends=True)
    journey.write_text("".join(lines[:layer] + lines[layer + 1 :]))
    said = complaint("rules", "create", journey, "-o", journey.parent / "rules.json")
    assert str(journey) in said
    assert f"lacks layer {layer} " in said
    assert not (journey.parent / "rules.json").exists()


def test_what_is_wrong_is_said(journey: Path, tmp_path: Path) -> None:
    rules = tmp_path / "rules.json"
    well("rules", "create", journey, "-o", rules)
    assert "there is no level '6'" in complaint("rules", "create", journey, "--levels", "1,6")
    assert "nothing to test on" in complaint("rules", "evaluate", "--rules", rules)
    assert "no file matches" in complaint("rules", "evaluate", "--rules", rules, "--test", tmp_path / "q*.jsonl")
    assert "given twice" in complaint("rules", "create", journey, journey)
    assert "does not exist" in complaint("rules", "evaluate", "-r", tmp_path / "no.json", "-t", journey)
    assert "does not exist" in complaint("rules", "create", tmp_path / "no.jsonl")
    assert "neither a journey" in complaint("rules", "create", rules)
    (tmp_path / "empty.jsonl").write_text("")
    assert "is empty" in complaint("rules", "evaluate", "-r", rules, "-t", tmp_path / "empty.jsonl")


@pytest.mark.parametrize(("layers", "experts", "message"), [(31, 8, "31 x 8"), (32, 16, "32 x 16"), (32, 4, "32 x 4")])
def test_rules_of_another_model_are_refused(
    journey: Path, tmp_path: Path, layers: int, experts: int, message: str
) -> None:
    well("rules", "create", journey, "-o", tmp_path / "rules.json")
    write_trace(make_trace(layers=layers, experts=experts), tmp_path / "t.parquet")
    said = complaint("rules", "evaluate", "-r", tmp_path / "rules.json", "-t", tmp_path / "t.parquet")
    assert "32 layers x 8 experts" in said
    assert message in said


def test_a_journey_with_too_large_an_expert_is_refused(journey: Path, tmp_path: Path) -> None:
    well("rules", "create", journey, "-o", tmp_path / "rules.json")
    lines = journey.read_text().splitlines()
    record = json.loads(lines[4])
    record["experts"][0] = 9
    (tmp_path / "other.jsonl").write_text("\n".join([*lines[:4], json.dumps(record), *lines[5:]]))
    said = complaint("rules", "evaluate", "-r", tmp_path / "rules.json", "-t", tmp_path / "other.jsonl")
    assert "line 5: expert 9 is outside 0..7" in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('{\n  "metadata"', '{{\n  "metadata"', "not whole JSON"),
        ('"training_files"', '"files"', "no metadata.training_files"),
        ("Mixtral 8x7B", "something", "how many layers and experts"),
        ('"level2"', '"level9"', "unknown level 'level9'"),
        ('"skip_4"', '"skip_5"', "level5 has 'skip_5'"),
        ('"prediction": ', '"prediction": 1', "is not an expert in 0..7"),
        ('"(0, ', '"(0; ', "is not a context of this level"),
        ('"(0, ', '"(77, ', "does not have"),
        ('"rules"', '"rule"', "has no rules"),
    ],
)
def test_a_broken_rule_file_is_refused(journey: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    rules = tmp_path / "rules.json"
    well("rules", "create", journey, "-o", rules)
    rules.write_text(rules.read_text().replace(old, new, 1))
    said = complaint("rules", "evaluate", "-r", rules, "-t", journey)
    assert str(rules) in said
    assert message in said


@pytest.mark.parametrize("content", ["[]", "{}", '{"metadata": {"training_files": [], "description": "x"}}', "\x00"])
def test_what_is_no_rule_file_is_refused(journey: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "rules.json").write_text(content)
    assert "rules.json" in complaint("rules", "evaluate", "-r", tmp_path / "rules.json", "-t", journey)


def test_unranked_traces_need_a_word(tmp_path: Path) -> None:
    trace = make_trace().without(weights=True)
    write_trace(replace(trace, provenance=replace(trace.provenance, ranked=False)), tmp_path / "t.parquet")
    assert "--unranked-first" in complaint("rules", "create", tmp_path / "t.parquet")
    well("rules", "create", tmp_path / "t.parquet", "--unranked-first", "-o", tmp_path / "rules.json")


def test_incomplete_tokens_are_refused_or_counted(tmp_path: Path) -> None:
    trace = make_trace()
    experts = trace.experts.copy()
    experts[5, 3] = -1
    write_trace(replace(trace, experts=experts), tmp_path / "t.parquet")
    assert "token 5 of set0/0 lacks layer 3" in complaint("rules", "create", tmp_path / "t.parquet")
    output = well("rules", "create", tmp_path / "t.parquet", "--complete-only", "-o", tmp_path / "rules.json").output
    assert "1 tokens lack layers and were left out" in output
    assert "token 5 of set0/0 lacks layer 3" in complaint("journeys", tmp_path / "t.parquet", "-p", 0, "-t", 4, 7)


def test_journeys_that_are_not_there_are_refused(journey: Path, tmp_path: Path) -> None:
    out = ["-o", tmp_path / "out"]
    assert "there is no problem 3" in complaint("journeys", journey, "-p", 3, "-t", 0, 1, *out)
    assert "has no token 1" in complaint("journeys", journey, "-p", 0, "-t", 0, 2, *out)
    assert "names no token" in complaint("journeys", journey, "-p", 0, "-t", 1, 1, *out)
    assert not (tmp_path / "out").exists()


def test_testing_on_training_files_is_remarked(journey: Path, tmp_path: Path) -> None:
    well("rules", "create", journey, "-o", tmp_path / "rules.json", "--full-path")
    result = well("rules", "evaluate", "-r", tmp_path / "rules.json", "-t", journey)
    assert "the rules have seen the answers" in " ".join(result.stderr.split())
    assert "Full path (Layer, Path)" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_files_of_different_models_are_refused(journey: Path, tmp_path: Path) -> None:
    write_trace(make_trace(layers=5), tmp_path / "t.parquet")
    with pytest.raises(ForegateError, match="files of one model"):
        read([journey, tmp_path / "t.parquet"], Reading())
