"""Write docs/leaderboard.md and .json: every registered predictor on every trace at hand, one to four layers ahead.

Traces, results and long fits are kept in a work folder, each under a name that says what it came from; a run that was
stopped goes on with what is missing. Traces and settings are in `leaderboard_subjects`, names of what is kept in
`leaderboard_kept`, the page in `leaderboard_page`.
"""

import argparse
import json
import multiprocessing
import os
import time
import traceback
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path

import leaderboard_page
from leaderboard_kept import Keeper, digest, key, write_json
from leaderboard_page import Board
from leaderboard_subjects import DISTANCES, ROOT, SUBJECTS, Subject

from foregate.comparison import Comparison, compare, missing
from foregate.components import build, describe, split_list
from foregate.errors import ChoiceError
from foregate.evaluation import Measure
from foregate.predictors import PREDICTORS
from foregate.predictors.storage import load
from foregate.splits import split, without_duplicates
from foregate.traces.schema import Trace
from foregate.traces.storage import read_trace, write_trace

COST = {
    "memory": 3.0,
    "bank": 25.0,
    "fusion": 300.0,
    "online": 40.0,
    "pre-attention": 20.0,
    "probe": 15.0,
    "gating": 20.0,
    "xgboost": 40.0,
    "mlp": 20.0,
    "ensemble": 40.0,
    "blend": 50.0,
    "calibrated": 10.0,
    "interlayer": 60.0,
    "multiscale": 100.0,
    "augmented": 60.0,
}
"""What predictors take beside a counting one, roughly: the order of work and the time left follow from it."""
AFTER = {"online": "fusion"}
"""Begun when the other is done on the same trace: it goes on from the one that was kept."""
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
"""What libraries read, when a process starts, to know how many threads to take."""


@dataclass(frozen=True)
class Task:
    """One predictor on one trace: the files it reads and writes, and the exam.

    expected  how long it takes, in a unit of its own
    asked     whether this run is to do it
    """

    subject: str
    component: str
    trace: Path
    result: Path
    fits: Path
    distances: tuple[int, ...]
    how: str
    folds: int | None
    as_decode: bool
    expected: float
    asked: bool

    @property
    def name(self) -> str:
        """The predictor's, without its options."""
        return _name(self.component)

    def goes_on_from(self, other: "Task") -> bool:
        """Whether it is to begin when the other is done."""
        return self.subject == other.subject and AFTER.get(self.name) == other.name

    @property
    def missing(self) -> bool:
        """Whether there is no result yet."""
        return not self.result.exists()


def main(arguments: Sequence[str] | None = None, subjects: Sequence[Subject] = SUBJECTS) -> int:
    """Read, compare what is missing and asked for, write all that is there; 1 if something failed."""
    options = _options(arguments, subjects)
    if options.adopt is not None:
        options.only = options.adopt[0]
    boards, tasks = planned(subjects, options)
    if options.adopt is not None:
        _adopt(tasks, *options.adopt)
        return 0
    failed = complete([task for task in tasks if task.asked], options.jobs)
    by_name = {board.subject.name: board for board in boards}
    for task in tasks:
        board = by_name[task.subject]
        if task in failed:
            board.left_out[task.component] = f"it failed: {failed[task]}"
        elif task.missing:
            board.left_out[task.component] = "not compared yet"
        else:
            board.found[task.component] = _read(task, board.subject)
    leaderboard_page.write(boards, options.out)
    print(f"wrote {options.out} and {options.out.with_suffix('.json')}")
    return 1 if failed else 0


def planned(subjects: Sequence[Subject], options: argparse.Namespace) -> tuple[list[Board], list[Task]]:
    """All that there is to compare, and a board for each trace that is at hand, which says what is left out."""
    traces = None if options.only is None else options.only.split(",")
    wanted = None if options.predictors is None else split_list(options.predictors)
    boards, tasks = [], []
    for subject in subjects:
        path = options.work / "traces" / f"{subject.name}.parquet"
        asked = traces is None or subject.name in traces
        if not path.exists() and not (asked and _gathered(subject, options.data, path)):
            continue
        trace = read_trace(path)
        board = Board(subject, trace.spec, len(trace), left_out=dict(subject.left_out))
        boards.append(board)
        content = digest(trace)
        for component in subject.components():
            name = _name(component)
            reason = missing(build(PREDICTORS, component), trace)
            if reason is not None:
                board.left_out[component] = reason
                continue
            distances = tuple(d for d in DISTANCES if d < trace.spec.num_layers)
            exam = (component, distances, subject.how, subject.folds, subject.as_decode)
            tasks.append(
                Task(
                    subject=subject.name,
                    component=component,
                    trace=path,
                    result=options.work / "results" / subject.name / f"{name}-{key(exam, content)}.json",
                    fits=options.work / "fits",
                    distances=distances,
                    how=subject.how,
                    folds=subject.folds,
                    as_decode=subject.as_decode,
                    expected=len(trace) * trace.spec.num_layers * COST.get(name, 1.0),
                    asked=asked and (wanted is None or name in wanted or component in wanted),
                )
            )
    return boards, tasks


def _name(component: str) -> str:
    return component.partition(":")[0]


def _gathered(subject: Subject, data: Path, path: Path) -> bool:
    """Make a trace, if what it is made of is there."""
    if not (data / subject.needs).is_dir():
        print(f"{subject.name} is left out: {data / subject.needs} is not there", flush=True)
        return False
    print(f"{subject.name}: reading", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_trace(subject.read(data), path)
    return True


def complete(tasks: Sequence[Task], jobs: int) -> dict[Task, str]:
    """Do what has no result yet, the longest first; returns what failed, and why."""
    todo = sorted((t for t in tasks if t.missing), key=lambda t: -t.expected)
    failed: dict[Task, str] = {}
    print(f"{len(tasks) - len(todo)} of {len(tasks)} results are there", flush=True)
    began, done, whole = time.monotonic(), 0.0, sum(t.expected for t in todo)
    for number, (task, seconds, error) in enumerate(_worked_off(todo, jobs), start=1):
        done += task.expected
        left = (time.monotonic() - began) * (whole / done - 1) / 60
        if error:
            failed[task] = error
        told = f"FAILED: {error}" if error else f"{seconds:.0f} s"
        print(f"[{number}/{len(todo)}] {task.subject}: {task.component}: {told}; ~{left:.0f} min left", flush=True)
    return failed


def _worked_off(tasks: Sequence[Task], jobs: int) -> Iterator[tuple[Task, float, str]]:
    """Do all in their order, but for those that go on from another; gives what `examine` says of each."""
    todo = list(tasks)
    if jobs == 1 or len(todo) < 2:
        while (task := _next(todo, ())) is not None:
            yield examine(task)
        return
    running: dict[Future[tuple[Task, float, str]], Task] = {}
    with _one_core_each(), ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        while todo or running:
            while len(running) < jobs and (task := _next(todo, running.values())) is not None:
                running[pool.submit(examine, task)] = task
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                del running[future]
                yield future.result()


@contextmanager
def _one_core_each() -> Iterator[None]:
    """New processes start with one thread in each library that would take all cores."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update({name: value or "1" for name, value in before.items()})
    try:
        yield
    finally:
        for name in THREADS:
            del os.environ[name]
        os.environ.update({name: value for name, value in before.items() if value is not None})


def _next(todo: list[Task], running: Iterable[Task]) -> Task | None:
    """Take out the first that need not wait for another; None if all must."""
    undone = (*todo, *running)
    for task in todo:
        if not any(task.goes_on_from(other) for other in undone):
            todo.remove(task)
            return task
    return None


def examine(task: Task) -> tuple[Task, float, str]:
    """Compare one predictor and write its result; the seconds that took, and what went wrong."""
    began = time.monotonic()
    try:
        found = compare(
            _trace(task.trace),
            predictors=[task.component],
            how=task.how,
            folds=task.folds,
            distances=task.distances,
            as_decode=task.as_decode,
            baselines=(),
            fit=Keeper(task.fits),
        )
    except Exception as error:  # the other predictors go on; the page names it, and the run ends with 1
        traceback.print_exc()
        return task, 0.0, f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - began
    task.result.parent.mkdir(parents=True, exist_ok=True)
    write_json({"component": task.component, "seconds": seconds, **asdict(found)}, task.result)
    return task, seconds, ""


def _adopt(tasks: Sequence[Task], subject: str, component: str, file: str, seconds: str) -> None:
    """Keep a predictor that was fitted elsewhere, on this very trace's training rows, as if it had been fitted here."""
    task = next((t for t in tasks if (t.subject, t.component) == (subject, component)), None)
    if task is None:
        raise ChoiceError(f"{subject} has no {component}; it has {', '.join(t.component for t in tasks)}")
    folds = list(split(without_duplicates(_trace(task.trace)), task.how, folds=task.folds))
    asked = build(PREDICTORS, component, horizon=max(task.distances))
    fitted = load(Path(file), folds[0].train.spec)
    if len(folds) > 1 or type(fitted) is not type(asked) or describe(fitted) != describe(asked):
        raise ChoiceError(f"{file} is not {component} with the options {describe(asked)}, for one fold")
    task.result.unlink(missing_ok=True)
    print(f"kept {Keeper(task.fits).keep(fitted, folds[0], float(seconds))}, fitted in {float(seconds):.0f} s")


@lru_cache(maxsize=1)
def _trace(path: Path) -> Trace:
    return read_trace(path)


def _read(task: Task, subject: Subject) -> Comparison:
    values = json.loads(task.result.read_text(encoding="utf-8"))
    measures = [replace(Measure(**m), trace=subject.title) for m in values["measures"]]
    return Comparison(measures, values["skipped"], values["prompts"], values["duplicates"], values["seen"])


def _options(arguments: Sequence[str] | None, subjects: Sequence[Subject]) -> argparse.Namespace:
    names = [s.name for s in subjects]
    parser = argparse.ArgumentParser(description="Write docs/leaderboard.md and .json; goes on where it was stopped.")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, default=ROOT / ".leaderboard", help="kept results; may be deleted")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "leaderboard.md")
    parser.add_argument("--only", help=f"traces, joined by commas: {','.join(names)}")
    parser.add_argument("--predictors", help="names or components, joined by commas")
    parser.add_argument("--jobs", type=int, default=1, choices=(1, 2, 4, 8), help="comparisons side by side")
    parser.add_argument(
        "--adopt",
        nargs=4,
        metavar=("TRACE", "COMPONENT", "FILE", "SECONDS"),
        help="keep a predictor that was fitted on the trace's training rows (seed 0), and stop",
    )
    options = parser.parse_args(arguments)
    for name in (options.only or "").split(","):
        if name and name not in names:
            parser.error(f"there is no trace {name!r}; choose from {', '.join(names)}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
