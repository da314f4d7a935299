"""How the page writes numbers: one way for each metric. No HTML."""

from foregate.evaluation import Measure

PERCENT = frozenset({"top1", "top2", "recall", "exact_set", "coverage"})
LOWER_IS_BETTER = frozenset({"log_loss", "calibration_error", "predict_us", "fit_s", "bytes"})
NAMES = {
    "top1": "top-1",
    "top2": "top-2",
    "recall": "recall",
    "exact_set": "exact set",
    "log_loss": "log-loss",
    "calibration_error": "calib. error",
    "coverage": "coverage",
    "predict_us": "cost, \u00b5s",
    "fit_s": "fit, s",
    "bytes": "size",
}


def metric_name(metric: str, budget: int | None = None) -> str:
    """What the page calls a metric."""
    name = NAMES.get(metric, metric.replace("_", " "))
    return name if budget is None else f"{name}@{budget}"


def percent(share: float) -> str:
    """0.6234 -> "62.3 %"."""
    return f"{share * 100:.1f}\u00a0%"


def size(count: float) -> str:
    """Bytes in powers of 1000, three digits."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g}\u00a0{unit}"
        count /= 1000
    return f"{count:.3g}\u00a0GB"


def value(metric: str, number: float) -> str:
    """A metric's value with its unit."""
    if metric in PERCENT:
        return percent(number)
    if metric == "bytes":
        return size(number)
    if metric == "predict_us":
        return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"
    if metric == "fit_s":
        if number >= 100:
            return f"{number:,.0f}"
        return f"{number:.3g}" if number >= 0.001 else "<\u00a00.001"
    return f"{number:.3f}"


def interval(measure: Measure) -> str:
    """The 95 % interval as "[60.1, 64.9]"; empty where there is none."""
    if measure.low is None or measure.high is None:
        return ""
    low, high = (value(measure.metric, v).removesuffix("\u00a0%") for v in (measure.low, measure.high))
    return f"[{low}, {high}]"


def seconds(value: float) -> str:
    """Three digits with the unit that fits: "1.23 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("\u00b5s", 1e-6)):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}\u00a0{unit}"
    return f"{value * 1e9:.3g}\u00a0ns"


def ms(seconds: float) -> float:
    """Milliseconds, five digits: what a figure draws."""
    return float(f"{seconds * 1e3:.5g}")


def rate(value: float) -> str:
    """Tokens a second: three digits, or all before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def rates(low: float | None, high: float | None) -> str:
    """The interval after a rate, as " [10, 13]"; empty where there is none."""
    return "" if low is None or high is None else f" [{rate(low)}, {rate(high)}]"
