"""How well a predictor knows: metrics as functions, results as Measure rows, intervals by bootstrap over prompts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One number of a leaderboard.

    predictor  as the user typed it, e.g. "rules:order=3"
    trace      the model whose routing was predicted
    split      prompt | dataset | token | sample; `leaks` marks those whose test rows are known from training
    replay     "recorded": tokens of one prefill cannot see each other; "decode": replayed token by token
    metric     top1 | top2 | recall | exact_set | log_loss | calibration_error | coverage | predict_us | fit_s | bytes
    layer      the target layer (counted from 0 over mixture layers); None = mean over layers
    distance   layers between the last routed layer and the target; None where it does not matter
    budget     experts that may be fetched per layer, for recall
    value      the number; low..high is its 95 % interval, bootstrapped over prompts (None where it has none)
    n          (token, layer) cells that it is a mean of
    coverage   share of those cells that the predictor's own mechanism answered, the rest being its back-off
    how        measured | simulated | derived
    self_check of the trace: below 1.0 the recording itself is in doubt; None where the source allows no check
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
    how: str = "measured"
    self_check: float | None = None
