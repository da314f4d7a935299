"""How well a predictor knows: metrics, results as Measure rows, intervals by bootstrap over prompts.

Everything follows from one number per routed expert: its rank in the predictor's order (0 = first, ties go to the lower
expert id). A Tally sums the metrics by (prompt, layer), so that means, intervals, folds and seeds are sums of tallies.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float, Float32, Float64, Int, Int64
from foregate.history import Replay
from foregate.predictors.base import Predictor
from foregate.traces.schema import Trace

BINS = 15
RESAMPLES = 1000


@dataclass(frozen=True)
class Measure:
    """One number of a leaderboard.

    predictor  as the user typed it, e.g. "rules:order=3"
    trace      the model whose routing was predicted
    split      prompt | dataset | half (of the same prompts) | token | sample | test (a trace of its own); `leaks` marks
               those whose test rows are partly known from training
    replay     "recorded": tokens of one prefill cannot see each other; "decode": replayed token by token
    metric     top1 | top2 | recall | exact_set | log_loss | calibration_error | reliability | coverage | predict_us |
               fit_s | bytes; reliability is how often guesses of about one confidence were right, over all layers
    layer      the target layer (counted from 0 over mixture layers); None = mean over the layers that have a routed one
               `distance` before them. Layer `distance` - 1 is asked before the forward pass starts (the token and its
               past are known); it stands beside that mean, not in it
    distance   layers between the last routed layer and the target; None where it does not matter
    budget     experts that may be fetched per layer, for recall
    value      the number; low..high is its 95 % interval, bootstrapped over prompts (None where it has none)
    n          (token, layer) cells that it is a mean of
    coverage   share of those cells that the predictor's own mechanism answered, the rest being its back-off
    top_k      routed experts of a token: the budget that a perfect predictor needs
    how        measured | simulated | derived
    self_check of the trace: below 1.0 the recording itself is in doubt; None where the source allows no check
    confidence mean confidence of the guesses behind a reliability; None for all other metrics
    """

    predictor: str
    trace: str
    split: str
    leaks: bool
    replay: str
    metric: str
    layer: int | None
    distance: int | None
    budget: int | None
    value: float
    low: float | None
    high: float | None
    n: int
    coverage: float | None
    top_k: int
    how: str = "measured"
    self_check: float | None = None
    confidence: float | None = None


@dataclass(eq=False)
class Tally:
    """Sums by prompt and layer for one predictor at one distance.

    sums, cells  metric name -> [prompts, L] sum of the metric, and number of cells it was defined on
    bins         [prompts, L, BINS, 3] confidence, hits and count of the top-k guesses, by confidence
    """

    prompts: tuple[str, ...]
    layers: int
    sums: dict[str, Float64] = field(default_factory=dict)
    cells: dict[str, Float64] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.bins: Float64 = np.zeros((len(self.prompts), self.layers, BINS, 3))

    def add(self, place: tuple[int, int], name: str, values: Float | Bool) -> None:
        """Add a metric's values [N] at (prompt, layer)."""
        for table, amount in ((self.sums, values.sum()), (self.cells, len(values))):
            table.setdefault(name, np.zeros((len(self.prompts), self.layers)))[place] += amount

    def mean(self, name: str) -> Float64:
        """[L] mean of each layer, NaN where a layer has no cell."""
        return layer_means(self.sums[name].sum(axis=0), self.cells[name].sum(axis=0))

    def count(self, name: str) -> Int64:
        """[L] cells behind each layer's mean."""
        return np.asarray(self.cells[name].sum(axis=0), dtype=np.int64)


def metric_names(budgets: Sequence[int]) -> list[str]:
    """The metrics of a tally: recall carries its budget as "recall@4"."""
    return ["top1", "top2", *(f"recall@{b}" for b in budgets), "exact_set", "log_loss", "coverage"]


@njit(cache=True)  # type: ignore[untyped-decorator]
def ranks(scores: Float32, experts: Int) -> Int:
    """[N, k] place of each expert in the order of its row's scores [N, E]; -1 for absent ones."""
    places = np.full(experts.shape, -1, dtype=np.int32)
    for n in range(experts.shape[0]):
        for i in range(experts.shape[1]):
            wanted = experts[n, i]
            if wanted < 0:
                continue
            place = 0
            for e in range(scores.shape[1]):
                if scores[n, e] > scores[n, wanted] or (scores[n, e] == scores[n, wanted] and e < wanted):
                    place += 1
            places[n, i] = place
    return places


def evaluate(
    predictor: Predictor,
    trace: Trace,
    *,
    distance: int = 1,
    budgets: Sequence[int] = (),
    as_decode: bool = False,
    earliest: int = 0,
    advance: Callable[[int], None] = lambda tokens: None,
) -> Tally:
    """Ask a fitted predictor for every layer of every token of a test trace, `distance` layers ahead.

    Cells without an answer (absent experts, or masked by `trace.answers`) do not count.

    earliest  the first routed layer to ask from; -1 = also before the forward pass, when none is
    """
    L = trace.spec.num_layers
    tally = Tally(prompts=tuple(p.name for p in trace.prompts), layers=L)
    for rows in trace.sequences():
        sequence = trace.take(rows)
        replay = Replay(sequence, as_decode)
        for target in range(distance + earliest, L):
            answers = sequence.answers_at(target)
            asked = np.flatnonzero((answers >= 0).any(axis=1))
            if len(asked) == 0:
                continue
            query = replay.query(target - distance, target, asked if len(asked) < len(sequence) else slice(None))
            place = (int(trace.sequence[rows.start]), target)
            scores = predictor.predict(query)
            assert np.isfinite(scores).all(), f"{type(predictor).__name__} gave a score that is not a number"
            tally.add(place, "coverage", predictor.covers(query))
            _add_ranks(tally, place, ranks(scores, answers[asked]), budgets)
            if sequence.primary is not None:
                first = ranks(scores, sequence.primary[asked, target, None])[:, 0]
                tally.add(place, "top1", first == 0)
                tally.add(place, "top2", first < 2)
            if predictor.probabilities:
                tally.add(place, "log_loss", log_loss(scores, answers[asked]))
                tally.bins[place] += confidence_bins(scores, answers[asked])
        advance(len(sequence))
    return tally


def _add_ranks(tally: Tally, place: tuple[int, int], places: Int, budgets: Sequence[int]) -> None:
    size = (places >= 0).sum(axis=1)
    for budget in budgets:
        tally.add(place, f"recall@{budget}", ((places >= 0) & (places < budget)).sum(axis=1) / size)
    tally.add(place, "exact_set", (places < size[:, None]).all(axis=1))


def log_loss(scores: Float32, answers: Int) -> Float64:
    """[N] cross entropy of the routed set under scores [N, E], over log E: 1 is chance, log k / log E the floor."""
    present = answers >= 0
    chosen = np.take_along_axis(scores, np.maximum(answers, 0).astype(np.int64), axis=1)
    surprise = np.where(present, -np.log(np.maximum(chosen, 1e-9, dtype=np.float64)), 0.0)
    loss: Float64 = surprise.sum(axis=1) / present.sum(axis=1) / math.log(scores.shape[1])
    return loss


def confidence_bins(scores: Float32, answers: Int) -> Float64:
    """[BINS, 3] confidence, hits, count of the k first guesses; confidence = min(1, k * score) = P(it is routed to)."""
    k = answers.shape[1]
    guesses = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    size = (answers >= 0).sum(axis=1, keepdims=True)
    confidence = np.minimum(1.0, np.take_along_axis(scores, guesses, axis=1) * size).reshape(-1)
    hits = (guesses[:, :, None] == answers[:, None, :]).any(axis=2).reshape(-1)
    which = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    columns = (confidence, hits, np.ones(len(which)))
    return np.stack([np.bincount(which, weights=c, minlength=BINS) for c in columns], axis=1)


def merge(tallies: Sequence[Tally]) -> Tally:
    """Sum tallies of several folds or seeds; a prompt that was tested twice counts as one prompt."""
    names = tuple(dict.fromkeys(name for t in tallies for name in t.prompts))
    index = {name: i for i, name in enumerate(names)}
    whole = Tally(prompts=names, layers=tallies[0].layers)
    for tally in tallies:
        places = np.array([index[p] for p in tally.prompts], dtype=np.int64)
        np.add.at(whole.bins, places, tally.bins)
        for into, table in ((whole.sums, tally.sums), (whole.cells, tally.cells)):
            for name, values in table.items():
                np.add.at(into.setdefault(name, np.zeros((len(names), tally.layers))), places, values)
    return whole


def resamples(prompts: int, seed: int = 0) -> Float64:
    """[RESAMPLES, prompts] how often each prompt was drawn, with replacement; [0, 1] of a single one, whose draws would
    all be alike and make an interval without width.
    """
    if prompts == 1:
        return np.empty((0, 1))
    draws = np.random.default_rng(seed).multinomial(prompts, np.full(prompts, 1 / prompts), size=RESAMPLES)
    return draws.astype(np.float64)


def interval(samples: Float64) -> tuple[float, float] | None:
    """The middle 95 % of bootstrap samples; None where they were not defined."""
    usable = samples[np.isfinite(samples)]
    if len(usable) == 0:
        return None
    low, high = np.percentile(usable, [2.5, 97.5])
    return float(low), float(high)


def layer_means(sums: Float64, cells: Float64) -> Float64:
    """[..., L] mean of each layer, NaN where a layer has no cell."""
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Float64 = sums / cells
    return means


def calibration_error(bins: Float64) -> Float64:
    """[...] expected calibration error of bins [..., BINS, 3]: mean |confidence - hit rate|, weighted by count."""
    total = bins[..., 2].sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        error: Float64 = np.abs(bins[..., 0] - bins[..., 1]).sum(axis=-1) / total
    return error


def predict_us(predictor: Predictor, trace: Trace, *, distance: int, as_decode: bool, samples: int = 100) -> float:
    """Median microseconds for one prediction as a runtime asks it: one token, one layer, where the token before was
    asked about, too.
    """
    rng = np.random.default_rng(0)
    sequences = list(trace.sequences())
    times = []
    for chosen in rng.integers(len(sequences), size=samples).tolist():
        rows = sequences[chosen]
        replay = Replay(trace.take(rows), as_decode)
        row = int(rng.integers(rows.stop - rows.start))
        target = int(rng.integers(distance, trace.spec.num_layers))
        if row:
            predictor.predict(replay.query(target - distance, target, slice(row - 1, row)))
        query = replay.query(target - distance, target, slice(row, row + 1))
        started = time.perf_counter_ns()
        predictor.predict(query)
        times.append(time.perf_counter_ns() - started)
    return float(np.median(times) / 1e3)
