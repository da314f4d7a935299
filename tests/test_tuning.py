"""The search for options: what it asks, what it refuses, and that workers share a study and survive each other."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from conftest import make_trace
from typer.testing import CliRunner, Result

from foregate.cli import app
from foregate.comparison import compare
from foregate.components import build, describe
from foregate.errors import ChoiceError, ForegateError, StorageError
from foregate.evaluation import evaluate
from foregate.layers import some_layers
from foregate.predictors import PREDICTORS
from foregate.predictors.memory.memory import Memory
from foregate.predictors.space import Options, Range
from foregate.predictors.storage import load
from foregate.traces.schema import Trace
from foregate.traces.storage import write_trace
from foregate.trials import open_study, work
from foregate.tuning import COMPONENT, Question, component, division, free_space, score, tune

QUESTION = Question("memory", budget=2, as_decode=True)
TUNABLE = sorted(name for name, kind in PREDICTORS.items() if kind.space)
HEARTBEAT = 1
STATE = optuna.trial.TrialState


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make_trace(prompts=40)


@pytest.fixture
def file(tmp_path: Path, trace: Trace) -> Path:
    write_trace(trace, tmp_path / "t.parquet")
    return tmp_path / "t.parquet"


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/s.db"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["tune", *map(str, arguments)])


def stored(folder: Path, study: str = "memory") -> list[Any]:
    return optuna.load_study(study_name=study, storage=url(folder)).trials


@pytest.mark.parametrize("name", TUNABLE)
def test_every_declared_space_holds_the_default(name: str) -> None:
    defaults = describe(build(PREDICTORS, name))
    for option, choice in PREDICTORS[name].space.items():
        if isinstance(choice, Range):
            assert choice.low <= defaults[option] <= choice.high
            assert choice.low > 0 or not choice.log
        else:
            assert defaults[option] in choice.values


@pytest.mark.parametrize("name", TUNABLE)
def test_what_is_tried_can_be_typed_again(name: str) -> None:
    for end in (0, 1):
        values = {
            option: choice.values[-end] if isinstance(choice, Options) else (choice.low, choice.high)[end]
            for option, choice in PREDICTORS[name].space.items()
        }
        again = describe(build(PREDICTORS, component(name, values)))
        assert {option: again[option] for option in values} == values


def test_options_that_the_user_types_are_not_searched() -> None:
    assert set(free_space("memory:beta=2,decay=0.9")) == {"context", "recency", "prior", "votes"}
    assert component("memory:beta=2", {"prior": 0.25}) == "memory:beta=2,prior=0.25"
    assert component("memory", {"prior": 0.5}) == "memory"  # what it has anyway


def test_the_score_is_that_of_the_leaderboard_on_the_validation_prompts(trace: Trace) -> None:
    fold = division(trace, QUESTION)
    assert fold.validation is not None
    reported: list[tuple[int, float]] = []
    found = score(Memory(), QUESTION, fold, lambda step, value: reported.append((step, value)))
    tally = evaluate(Memory().fit(fold.train), fold.validation, budgets=(2,), as_decode=True)
    assert found == pytest.approx(np.nanmean(tally.mean("recall@2")))
    assert [step for step, _ in reported] == [25, 50]
    board = compare(fold.train, test=fold.validation, predictors=["memory"], budgets=[2], as_decode=True).measures
    shown = next(m for m in board if (m.predictor, m.metric, m.budget, m.layer) == ("memory", "recall", 2, None))
    assert found == pytest.approx(shown.value)


def test_the_test_prompts_cannot_change_a_score(trace: Trace) -> None:
    fold = division(trace, QUESTION)
    tested = {p.name for p in fold.test.prompts}
    changed = trace.experts.copy()
    rows = np.isin(trace.sequence, [i for i, p in enumerate(trace.prompts) if p.name in tested])
    changed[rows] = (changed[rows] + 1) % trace.spec.num_experts
    other = Trace(**{**vars_of(trace), "experts": changed})
    assert score(Memory(), QUESTION, fold, ignore) == score(Memory(), QUESTION, division(other, QUESTION), ignore)


def vars_of(trace: Trace) -> dict[str, Any]:
    return {name: getattr(trace, name) for name in trace.__dataclass_fields__}


def ignore(step: int, value: float) -> None:
    pass


def test_a_predictor_that_learns_in_epochs_reports_them_and_can_be_stopped(trace: Trace) -> None:
    class StopError(Exception):
        pass

    class Learner(Memory):  # type: ignore[misc] - final, for others than this test
        def fit(self, trace: Trace, validation: Trace | None = None) -> "Learner":
            for epoch in range(1, 9):
                if self.on_epoch is not None:
                    self.on_epoch(epoch, epoch / 10)
            return super().fit(trace)

    fold = division(trace, QUESTION)
    reported: list[int] = []
    score(Learner(), QUESTION, fold, lambda step, value: reported.append(step))
    assert reported == list(range(1, 9))

    def stop(step: int, value: float) -> None:
        if step == 4:
            raise StopError

    with pytest.raises(StopError):
        score(Learner(), QUESTION, fold, stop)


def test_a_study_begins_with_the_default_stops_some_and_resumes(trace: Trace, tmp_path: Path) -> None:
    told: list[int] = []

    def work(trials: int) -> Any:
        return tune(
            trace, QUESTION, trials=trials, storage=url(tmp_path), study="memory", told=lambda a: told.append(a.number)
        )

    first = work(8)
    assert first.default is not None
    assert (first.default.number, first.default.component) == (0, "memory")
    again = work(20)
    assert told == list(range(20))
    assert work(20).best == again.best
    assert told == list(range(20))  # nothing was left to do
    assert again.best.score is not None
    assert again.default is not None
    assert again.default.score is not None
    assert again.best.score >= again.default.score
    assert any(a.score is None for a in again.attempts)
    assert all(len(t.intermediate_values) > 0 for t in stored(tmp_path))


def test_a_new_study_alone_is_the_same_each_time(trace: Trace, tmp_path: Path) -> None:
    found = [
        tune(trace, QUESTION, trials=4, storage=url(tmp_path), study=name).attempts[-1].component for name in ("a", "b")
    ]
    assert found[0] == found[1]


def test_log_loss_is_made_small(trace: Trace, tmp_path: Path) -> None:
    question = Question("tokens", metric="log_loss")
    tuned = tune(trace, question, trials=8, storage=url(tmp_path), study="t")
    whole = [a.score for a in tuned.attempts if a.score is not None]
    assert tuned.best.score == min(whole)


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (Question("chance"), "declares nothing to tune; choose one of .*memory"),
        (Question("tokens:smoothing=1"), "fixes all"),
        (Question("next-gate"), "no hidden states"),
        (Question("memory", metric="speed"), "no metric 'speed'"),
        (Question("memory", distance=9), "distance 9"),
        (Question("memory", budget=0), "budget 0"),
        (Question("memory", how="dataset"), "nothing to validate on"),
        (Question("nonsense"), "choose one of"),
    ],
)
def test_an_impossible_question_is_answered_with_a_sentence(
    question: Question, message: str, trace: Trace, tmp_path: Path
) -> None:
    with pytest.raises(ChoiceError, match=message):
        tune(trace, question, trials=1, storage=url(tmp_path), study="s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("sqlite:////no/such/folder/s.db", "unable to open database file"),
        ("study.db", "not an address"),
        ("nosuch://user:secret@host/x", "cannot use the storage nosuch://user:\\*\\*\\*@host/x"),
    ],
)
def test_a_storage_that_cannot_be_reached_is_answered_with_a_sentence(address: str, message: str, trace: Trace) -> None:
    with pytest.raises(StorageError, match=message) as caught:
        tune(trace, QUESTION, trials=1, storage=address, study="s")
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_is_no_database_is_answered_with_a_sentence(trace: Trace, tmp_path: Path) -> None:
    (tmp_path / "s.db").write_text("my diary, page one\n" * 100)
    with pytest.raises(StorageError, match="not a database"):
        tune(trace, QUESTION, trials=1, storage=url(tmp_path), study="s")


def test_a_study_of_other_settings_or_makers_is_refused(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foregate.trials.PATIENCE", 0.2)

    def work(trace: Trace, question: Question, study: str = "s") -> None:
        tune(trace, question, trials=1, storage=url(tmp_path), study=study)

    work(trace, QUESTION)
    with pytest.raises(ChoiceError, match=r"another distance \(1, not 2\); choose another --study"):
        work(trace, Question("memory", budget=2, as_decode=True, distance=2))
    with pytest.raises(ChoiceError, match="another trace"):
        work(make_trace(prompts=40, seed=1), QUESTION)
    with pytest.raises(ChoiceError, match="another layers"):
        work(some_layers(trace, 0, 2), QUESTION)
    optuna.create_study(study_name="theirs", storage=url(tmp_path)).optimize(lambda t: t.suggest_float("x", 0, 1), 1)
    with pytest.raises(ChoiceError, match="not made by foregate"):
        work(trace, QUESTION, "theirs")


def test_some_layers_are_as_they_were(trace: Trace) -> None:
    part = some_layers(trace, 1, 3)
    assert part.spec.layer_ids == trace.spec.layer_ids[1:4]
    np.testing.assert_array_equal(part.experts, trace.experts[:, 1:4])
    with pytest.raises(ChoiceError, match="layers 3-5"):
        some_layers(trace, 3, 5)


def test_the_command_says_what_it_found_and_what_to_type_next(file: Path, tmp_path: Path) -> None:
    result = run(
        *("memory", file, "--trials", 25, "--storage", url(tmp_path), "--as", "decode", "--layers", 3),
        *("--plot", tmp_path / "p.html", "--json", tmp_path / "r.json", "-o", tmp_path / "best.npz"),
    )
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "r.json").read_text())
    assert len(found["trials"]) == 25
    assert found["best"]["score"] >= found["default"]["score"]
    following = next(line for line in result.stdout.splitlines() if line.startswith("next: foregate compare"))
    assert found["best"]["component"] in following
    page = (tmp_path / "p.html").read_text()
    assert "default-src 'none'" in page
    assert all(name in page for name in ('"history"', '"course"', '"importance"', found["best"]["component"]))
    best = load(tmp_path / "best.npz")
    assert len(best.frequency_) == 5  # type: ignore[attr-defined] - all layers
    assert component("memory", describe(best)) == found["best"]["component"]


@pytest.mark.parametrize("arguments", [("--layers", "x"), ("--layers", "9"), ("--as", "fast"), ("--metric", "speed")])
def test_a_wrong_option_is_answered_with_a_sentence(arguments: tuple[str, str], file: Path, tmp_path: Path) -> None:
    result = run("memory", file, "--storage", url(tmp_path), *arguments)
    assert isinstance(result.exception, ForegateError)
    assert len(str(result.exception).splitlines()) == 1


def test_a_trial_that_never_showed_a_sign_of_life_does_not_block(trace: Trace, tmp_path: Path) -> None:
    tune(trace, QUESTION, trials=1, storage=url(tmp_path), study="memory")
    optuna.load_study(study_name="memory", storage=url(tmp_path)).ask()  # its worker dies here
    tuned = tune(trace, QUESTION, trials=2, storage=url(tmp_path), study="memory", heartbeat=HEARTBEAT)
    assert [a.number for a in tuned.attempts] == [0, 2]
    assert stored(tmp_path)[1].state.name == "FAIL"


def test_a_worker_that_was_taken_for_dead_goes_on(tmp_path: Path) -> None:
    """It slept, another gave its trial up: the result of that trial is lost, the study and the worker are not."""
    settings: dict[str, Any] = {"default": {}, "maximize": True, "seed": 0, "heartbeat": HEARTBEAT}
    study = open_study(url(tmp_path), "memory", settings={}, **settings)

    def objective(trial: optuna.Trial) -> float:
        if trial.number in (0, 2):
            optuna.load_study(study_name="memory", storage=url(tmp_path)).tell(trial.number, state=STATE.FAIL)
        if trial.number == 2:
            trial.report(0.5, 1)
        return float(trial.number)

    told: list[int] = []
    work(study, objective, 2, heartbeat=HEARTBEAT, told=lambda t: told.append(t.number))
    assert told == [1, 3]
    assert [t.state for t in stored(tmp_path)] == [STATE.FAIL, STATE.COMPLETE, STATE.FAIL, STATE.COMPLETE]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts a process that types the same command: trials of half a second."""
    write_trace(make_trace(prompts=60, tokens=400, layers=6, experts=32), tmp_path / "t.parquet")
    command = ["tune", "memory", "t.parquet", "--as", "decode", "--trials", "20", "--heartbeat", str(HEARTBEAT)]
    code = "import sys; from foregate.cli import main; sys.argv[0] = 'foregate'; main()"
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *command, "--storage", url(tmp_path)],
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_workers_share_twenty_trials_and_one_may_be_killed_in_the_middle(
    worker: Callable[[], subprocess.Popen[str]], tmp_path: Path
) -> None:
    victim, survivor = worker(), worker()
    number = kill_in_a_trial(victim, tmp_path)
    output, errors = survivor.communicate(timeout=120)
    assert survivor.returncode == 0, errors
    assert "as it comes" in output
    trials = stored(tmp_path)
    finished = [t for t in trials if t.state.name in ("COMPLETE", "PRUNED")]
    assert len(finished) == 20
    assert trials[number].state.name == "FAIL"
    again = [t for t in finished if t.system_attrs.get("failed_trial") == number]
    assert [t.params for t in again] == [trials[number].params]
    others = [t for t in finished if f"trial {t.number}:" not in errors]
    assert others, "the victim finished nothing, so nothing was shared"


def kill_in_a_trial(victim: subprocess.Popen[str], folder: Path) -> int:
    """Kill a worker while one of its trials runs, but not its first few; the trial's number."""
    assert victim.stderr is not None
    for line in victim.stderr:  # one line for each trial that it finished
        if line.startswith("trial"):
            break
    while victim.poll() is None:
        time.sleep(0.05)
        os.kill(victim.pid, signal.SIGSTOP)  # what it does now it goes on doing while we look
        mine = [t for t in running(folder) if t.user_attrs.get("worker") == victim.pid]
        if mine:
            victim.kill()
            victim.wait()
            return int(mine[0].number)
        os.kill(victim.pid, signal.SIGCONT)
    raise AssertionError("the worker ended before it could be killed")


def running(folder: Path) -> list[Any]:
    """Trials that run and have their options; none while the stopped worker holds the file."""
    try:
        storage = optuna.storages.RDBStorage(url(folder), engine_kwargs={"connect_args": {"timeout": 0.2}})
        trials = optuna.load_study(study_name="memory", storage=storage).trials
    except Exception:
        return []
    return [t for t in trials if t.state.name == "RUNNING" and COMPONENT in t.user_attrs]
