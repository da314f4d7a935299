"""One row of a comparison: what a strategy's simulated run comes to, with intervals over prompts. Simulates nothing."""

from dataclasses import dataclass
from typing import final

import numpy as np

from foregate.arrays import Bool, Float64
from foregate.evaluation import interval, resamples
from foregate.simulation.shapes import ModelShape
from foregate.simulation.timeline import Timeline
from foregate.simulation.window import Window


@final
@dataclass(frozen=True)
class Row:
    """A strategy in so much memory. Numbers are of decoding passes, where there are any, else of prefills; the cold
    precision is of the whole run.

    strategy           as it was asked for; the next four are what it came to
    memory             as it was asked for; slots and bytes are what it came to
    batch              sequences at a time; None: as recorded
    tokens_per_second  with its 95 % interval, bootstrapped over prompts (None of a single one)
    hit_rate           share of demanded experts that were there when they were asked for, guessed or not
    stall_share        share of the time in which computing waited for bytes
    bytes_per_token    read into fast memory, guesses included
    cold_precision     share of the guesses read that were used before they left; None where nothing was guessed
    p50, p95, p99      seconds of a pass: the time that a token takes
    look_seconds       of a predictor's answer about one layer, as charged
    expert_share, dense_share, predictor_share
                       of the time, beside the stalls: in experts, in the rest of the mixture layers, in answers of the
                       predictor; what is left is beside the layers (embedding, output)
    layer_hits         [L] the hit rate by layer; layer_stalls [L] seconds waited for its experts, per token. Both of
                       the whole run, prefills included
    window             some passes moment by moment, where they were asked for
    how                simulated
    """

    strategy: str
    evict: str
    predictor: str | None
    prefetch: str
    distance: int
    memory: str
    slots: int
    bytes: int
    batch: int | None
    tokens_per_second: float
    low: float | None
    high: float | None
    hit_rate: float
    stall_share: float
    bytes_per_token: float
    cold_precision: float | None
    p50: float
    p95: float
    p99: float
    tokens: int
    prompts: int
    look_seconds: float
    knows_future: bool
    expert_share: float
    dense_share: float
    predictor_share: float
    layer_hits: tuple[float, ...]
    layer_stalls: tuple[float, ...]
    window: Window | None = None
    how: str = "simulated"


@final
@dataclass(frozen=True)
class Sums:
    """Of the passes that count."""

    tokens_per_second: float
    low: float | None
    high: float | None
    hit_rate: float
    stall_share: float
    bytes_per_token: float
    cold_precision: float | None
    p50: float
    p95: float
    p99: float
    tokens: int
    prompts: int
    expert_share: float
    dense_share: float
    predictor_share: float
    layer_hits: tuple[float, ...]
    layer_stalls: tuple[float, ...]


def counted(timeline: Timeline) -> Bool:
    """[P] the passes whose speed is told: those that decode, or all if none does."""
    decoding: Bool = ~timeline.prefill
    return decoding if decoding.any() else np.ones_like(decoding)


def sums(timeline: Timeline, shape: ModelShape, batch: int | None = None) -> Sums:
    """What a row says of a run, so many sequences at a time."""
    mask = counted(timeline)
    seconds, tokens = timeline.pass_seconds[mask], timeline.pass_tokens[mask]
    demanded = timeline.of_pass("demanded")[mask].sum()
    there = timeline.of_pass("resident")[mask].sum() + timeline.of_pass("in_time")[mask].sum()
    of_layer = (timeline.of_layer("resident") + timeline.of_layer("in_time")) / np.maximum(
        timeline.of_layer("demanded"), 1
    )
    # Reads are counted by layer over the whole run, where layers' experts differ; by pass they are of the mean size.
    whole = timeline.of_layer("read")
    size = float(whole @ np.array(shape.expert_bytes) / max(whole.sum(), 1))
    low, high = speed_interval(timeline, batch) or (None, None)
    p50, p95, p99 = np.percentile(seconds, (50, 95, 99)).tolist()
    return Sums(
        tokens_per_second=float(tokens.sum() / seconds.sum()),
        low=low,
        high=high,
        hit_rate=float(there / max(demanded, 1)),
        stall_share=_share(timeline, "stall", mask),
        bytes_per_token=float(timeline.of_pass("read")[mask].sum() * size / tokens.sum()),
        cold_precision=timeline.cold_precision,
        p50=p50,
        p95=p95,
        p99=p99,
        tokens=int(tokens.sum()),
        prompts=len(np.unique(timeline.prompt)),
        expert_share=_share(timeline, "compute", mask),
        dense_share=_share(timeline, "dense", mask),
        predictor_share=_share(timeline, "predictor", mask),
        layer_hits=tuple(of_layer.tolist()),
        layer_stalls=tuple((timeline.of_layer("stall") / timeline.pass_tokens.sum()).tolist()),
    )


def _share(timeline: Timeline, field: str, mask: Bool) -> float:
    """Of the seconds of some passes."""
    return float(timeline.of_pass(field)[mask].sum() / timeline.pass_seconds[mask].sum())


def speed_interval(timeline: Timeline, batch: int | None) -> tuple[float, float] | None:
    """The 95 % interval of tokens per second, prompts (or the batches that they ran in) drawn with replacement."""
    tokens, seconds = by_prompt(timeline, batch)
    draws = resamples(len(tokens))
    return interval((draws @ tokens) / (draws @ seconds)) if len(draws) else None


def by_prompt(timeline: Timeline, batch: int | None) -> tuple[Float64, Float64]:
    """Tokens and seconds of each prompt, or of each batch that prompts ran in."""
    mask = counted(timeline)
    _, place = np.unique(timeline.prompt[mask] // (batch or 1), return_inverse=True)
    tokens: Float64 = np.bincount(place, weights=timeline.pass_tokens[mask]).astype(np.float64)
    seconds: Float64 = np.bincount(place, weights=timeline.pass_seconds[mask]).astype(np.float64)
    return tokens, seconds
