"""The leaderboard: fit every predictor on the same training rows, ask for the same test rows, say how sure we are."""

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from foregate.arrays import Float64, Int64
from foregate.components import build
from foregate.errors import ChoiceError
from foregate.evaluation import (
    Measure,
    Tally,
    calibration_error,
    evaluate,
    interval,
    layer_means,
    merge,
    metric_names,
    predict_us,
    resamples,
)
from foregate.predictors import BASELINES, LEARNED, PREDICTORS
from foregate.predictors.base import Predictor
from foregate.predictors.storage import to_bytes
from foregate.splits import Fold, answers_seen, duplicate_prompts, split, without_duplicates
from foregate.traces.schema import Trace, concat

REASONS = {
    "token_id": "the trace has no token ids",
    "ranked": "the trace does not say which routed expert is the primary",
    "weights": "the trace has no gate weights",
    "hidden": "the trace has no hidden states (record with --hidden)",
    "residual": "the trace has no residual stream (record it again with --hidden)",
}


@dataclass(frozen=True)
class Exam:
    """What every predictor is asked: how many layers ahead, with which budgets, and how prefill is replayed."""

    distances: tuple[int, ...]
    budgets: tuple[int, ...]
    as_decode: bool


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    measures    the rows
    skipped     predictors that this trace cannot feed -> why
    prompts     how many distinct prompts were tested
    duplicates  how many were removed before splitting
    seen        share of test cells whose answer stands in a training row's routed sets (see `splits.answers_seen`)
    """

    measures: list[Measure]
    skipped: dict[str, str]
    prompts: int
    duplicates: int
    seen: float


def missing(predictor: Predictor, trace: Trace) -> str | None:
    """Why a trace cannot feed a predictor; None if it can."""
    has = {
        "token_id": trace.has_tokens,
        "ranked": trace.primary is not None,
        "weights": trace.weights is not None,
        "hidden": trace.hidden is not None,
        "residual": trace.residual is not None,
    }
    return next((REASONS[need] for need in sorted(predictor.needs) if not has[need]), None)


def choose(
    trace: Trace, asked: Sequence[str] | None, baselines: Sequence[str] = BASELINES
) -> tuple[list[str], dict[str, str]]:
    """The predictors to compare (those asked for and the baselines, or all but LEARNED), and those that the trace
    cannot feed.

    Raises: ChoiceError if one that was asked for cannot be fed.
    """
    usable: list[str] = []
    skipped: dict[str, str] = {}
    wanted = asked if asked is not None else [name for name in PREDICTORS if name not in LEARNED]
    for text in dict.fromkeys([*baselines, *wanted]):
        reason = missing(build(PREDICTORS, text), trace)
        if reason is None:
            usable.append(text)
        elif asked is not None and text in asked:
            raise ChoiceError(f"{text} cannot be compared here: {reason}")
        else:
            skipped[text] = reason
    return usable, skipped


def fit_on(predictor: Predictor, fold: Fold) -> tuple[Predictor, float]:
    """A predictor, fitted on a fold's training rows, and the seconds that took."""
    started = time.perf_counter()
    predictor.fit(fold.train, fold.validation)
    return predictor, time.perf_counter() - started


def compare(
    trace: Trace,
    *,
    test: Trace | None = None,
    predictors: Sequence[str] | None = None,
    how: str = "prompt",
    folds: int | None = None,
    seeds: int = 1,
    shares: tuple[float, float] | None = None,
    distances: Sequence[int] = (1,),
    budgets: Sequence[int] | None = None,
    as_decode: bool = False,
    baselines: Sequence[str] = BASELINES,
    fit: Callable[[Predictor, Fold], tuple[Predictor, float]] = fit_on,
    advance: Callable[[str, float], None] = lambda what, share: None,
) -> Comparison:
    """Compare predictors on one model's routing.

    test       a trace to test on; then all of `trace` is trained on, and what both hold is not tested
    how        the split (see `splits.split`, also for `folds` and `shares`)
    seeds      repeat the split so many times; folds and seeds are pooled by prompt
    distances  how many layers ahead; every predictor is fitted once for all
    budgets    experts that may be fetched per layer, for recall; by default 1, k and 2k
    as_decode  replay prefill token by token
    baselines  compared too, whatever `predictors` are; who compares one at a time has them in its table once
    fit        a caller that keeps fitted predictors gives its own
    advance    told what runs, and the share of all work it was

    Raises: ChoiceError for options that do not fit the trace.
    """
    names, skipped = choose(trace, predictors, baselines)
    exam = Exam(_checked(distances, trace), _budgets(budgets, trace), as_decode)
    clean = without_duplicates(trace)
    if test is not None and (folds, seeds, how, shares) != (None, 1, "prompt", None):
        raise ChoiceError("--test is the test set; --split, --folds, --seeds and --shares do not go with it")
    divisions = (
        [fold for seed in range(seeds) for fold in split(clean, how, seed=seed, folds=folds, shares=shares)]
        if test is None
        else [_against(clean, test)]
    )
    runs = [_Runs(name, exam, fit) for name in names]
    for fold in divisions:
        for run in runs:
            share = 1 / len(divisions) / len(runs)
            run.add(fold, lambda part, name=run.name, share=share: advance(name, part * share))  # type: ignore[misc]
    row = Measure(
        predictor="",
        trace=trace.spec.model,
        split="test" if test is not None else how,
        leaks=divisions[0].leaks,
        replay="decode" if as_decode else "recorded",
        metric="",
        layer=None,
        distance=None,
        budget=None,
        value=0.0,
        low=None,
        high=None,
        n=0,
        coverage=None,
        top_k=trace.spec.top_k,
        self_check=trace.provenance.self_check,
    )
    measures = [measure for run in runs for measure in run.measures(row)]
    tested = {p for fold in divisions for p in fold.test.prompts}
    return Comparison(
        measures=measures,
        skipped=skipped,
        prompts=len(tested),
        duplicates=len(trace.prompts) - len(clean.prompts),
        seen=float(np.mean([answers_seen(fold) for fold in divisions])),
    )


class _Runs:
    """One predictor over all folds and seeds."""

    def __init__(self, name: str, exam: Exam, fit: Callable[[Predictor, Fold], tuple[Predictor, float]]) -> None:
        self.name = name
        self.exam = exam
        self.fit = fit
        self.tallies: dict[int, list[Tally]] = defaultdict(list)
        self.costs: dict[str, list[float]] = defaultdict(list)

    def add(self, fold: Fold, advance: Callable[[float], None]) -> None:
        """Fit on a fold and test; `advance` is told each share of the fold that is done."""
        exam = self.exam
        predictor, seconds = self.fit(build(PREDICTORS, self.name, horizon=max(exam.distances)), fold)
        self.costs["fit_s"].append(seconds)
        self.costs["bytes"].append(len(to_bytes(predictor)))
        cost = predict_us(predictor, fold.test, distance=min(exam.distances), as_decode=exam.as_decode)
        self.costs["predict_us"].append(cost)
        whole = len(exam.distances) * len(fold.test)
        for distance in exam.distances:
            tally = evaluate(
                predictor,
                fold.test,
                distance=distance,
                budgets=exam.budgets,
                as_decode=exam.as_decode,
                earliest=-1,
                advance=lambda tokens: advance(tokens / whole),
            )
            self.tallies[distance].append(tally)

    def measures(self, row: Measure) -> list[Measure]:
        """The rows of this predictor; `row` holds what they share."""
        row = replace(row, predictor=self.name)
        rows = [replace(row, metric=m, value=float(np.median(v)), n=len(v)) for m, v in self.costs.items()]
        for distance, tallies in self.tallies.items():
            rows += _accuracy(merge(tallies), replace(row, distance=distance), self.exam.budgets)
        return rows


def _accuracy(tally: Tally, row: Measure, budgets: Sequence[int]) -> list[Measure]:
    """All metrics of one predictor at one distance: the mean over layers first, then each layer; then reliability."""
    draws = resamples(len(tally.prompts))
    rows = []
    covered = tally.mean("coverage")
    for name in metric_names(budgets):
        if name in tally.sums:
            metric, _, budget = name.partition("@")
            samples = layer_means(draws @ tally.sums[name], draws @ tally.cells[name])
            named = replace(row, metric=metric, budget=int(budget) if budget else None)
            rows += _with_intervals(named, tally.mean(name), samples, tally.count(name), covered)
    if "log_loss" in tally.sums:
        flat = tally.bins.reshape(len(tally.prompts), -1)
        samples = calibration_error((draws @ flat).reshape(len(draws), *tally.bins.shape[1:]))
        means = calibration_error(tally.bins.sum(axis=0))
        named = replace(row, metric="calibration_error")
        rows += _with_intervals(named, means, samples, tally.count("log_loss"), covered)
        rows += _reliability(tally, draws, row)
    return rows


def _reliability(tally: Tally, draws: Float64, row: Measure) -> list[Measure]:
    """A row for each bin of confidence that has guesses, over the layers that count in means."""
    assert row.distance is not None
    bins = tally.bins[:, row.distance :].sum(axis=1)  # [prompts, BINS, 3]
    confidence, hits, count = bins.sum(axis=0).T
    samples = layer_means(draws @ bins[:, :, 1], draws @ bins[:, :, 2])
    rows = []
    for i in np.flatnonzero(count).tolist():
        low, high = interval(samples[:, i]) or (None, None)
        value, mean = float(hits[i] / count[i]), float(confidence[i] / count[i])
        named = replace(row, metric="reliability", value=value, confidence=mean, n=int(count[i]))
        rows.append(replace(named, low=low, high=high))
    return rows


def _with_intervals(row: Measure, means: Float64, samples: Float64, cells: Int64, covered: Float64) -> list[Measure]:
    """The mean over the layers that have cells and a routed layer `distance` before them, then a row for each layer."""
    assert row.distance is not None
    asked = np.flatnonzero(cells > 0)
    layers = asked[asked >= row.distance]
    low, high = interval(np.nanmean(samples[:, layers], axis=1)) or (None, None)
    everything = replace(
        row,
        value=float(means[layers].mean()),
        low=low,
        high=high,
        n=int(cells[layers].sum()),
        coverage=float(covered[layers].mean()),
    )
    rows = [everything]
    for layer in asked.tolist():
        low, high = interval(samples[:, layer]) or (None, None)
        value, coverage = float(means[layer]), float(covered[layer])
        rows.append(replace(row, layer=layer, value=value, low=low, high=high, n=int(cells[layer]), coverage=coverage))
    return rows


def _against(trace: Trace, test: Trace) -> Fold:
    """Train on one trace, test on another."""
    joined = concat([trace, test])  # one vocabulary, and refuses another model
    cut = len(trace)
    train, test = joined.take(slice(0, cut)), without_duplicates(joined.take(slice(cut, None)))
    return Fold(train, None, _unseen(train, test))


def _unseen(train: Trace, test: Trace) -> Trace:
    """The test prompts that are not in the training trace."""
    joined = concat([train, test])
    repeats = duplicate_prompts(joined)
    fresh = [i for i in range(len(test.prompts)) if i + len(train.prompts) not in repeats]
    if not fresh:
        raise ChoiceError("every prompt of --test is in the training trace; give a test trace of other prompts")
    return test.take_prompts(fresh)


def _checked(distances: Sequence[int], trace: Trace) -> tuple[int, ...]:
    for distance in distances:
        if not 1 <= distance < trace.spec.num_layers:
            raise ChoiceError(
                f"distance {distance} does not fit {trace.spec.num_layers} layers; "
                f"choose between 1 and {trace.spec.num_layers - 1}"
            )
    return tuple(sorted(set(distances)))


def _budgets(asked: Sequence[int] | None, trace: Trace) -> tuple[int, ...]:
    """Always with k, the published measure."""
    k, experts = trace.spec.top_k, trace.spec.num_experts
    for budget in asked or ():
        if not 1 <= budget <= experts:
            raise ChoiceError(f"budget {budget} does not fit {experts} experts; choose between 1 and {experts}")
    return tuple(sorted({*(asked or (1, min(2 * k, experts))), k}))
