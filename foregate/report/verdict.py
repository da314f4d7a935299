"""What was found, in a sentence or two for each result: the page's first lines. No HTML, no figures."""

from foregate.description import Description
from foregate.evaluation import Measure
from foregate.report import numbers
from foregate.report.board import Board
from foregate.report.names import short
from foregate.report.ran import Ran
from foregate.report.simulated import FLOOR, Simulated
from foregate.simulation.planfile import Plan
from foregate.simulation.rows import Row


def of_board(board: Board) -> str:
    """The best predictor beside the best baseline."""
    place = f"{board.trace}, split by {board.rows[0].split}, replayed as {board.rows[0].replay}"
    if board.leaks:
        return f"On {place}: this split leaks, so no predictor can be called best from it."
    distance = board.distances[0] if board.distances else None
    best, baseline = board.best(distance, baseline=False), board.best(distance, baseline=True)
    metric = numbers.metric_name(*board.main)
    ahead = "" if distance is None else f" {distance} layer{'s' if distance > 1 else ''} ahead"
    if best is None or baseline is None:
        alone = best or baseline
        if alone is None:
            return f"On {place}: nothing was measured by {metric}."
        return f"On {place}: {_scored(alone)} at {metric}{ahead}; there is nothing to compare it with."
    if best.value <= baseline.value:
        return f"On {place}: no predictor beats the best baseline, {_scored(baseline)} at {metric}{ahead}."
    return (
        f"On {place}: the best predictor{ahead} is {_scored(best)} at {metric}, {_gain(best, baseline)} over the best "
        f"baseline, {_scored(baseline)}.{_overlap(best, baseline)}"
    )


def of_simulation(found: Simulated) -> str:
    """Whether reading ahead pays in the memory in the middle of the sweep: the fastest strategy that does beside the
    fastest that does not.
    """
    memory, batch = found.middle, found.batches[0]
    able = [row for row in found.at(memory, batch) if not row.knows_future]
    ahead = max((row for row in able if row.prefetch != "none"), key=_speed, default=None)
    waiting = max((row for row in able if row.prefetch == "none"), key=_speed, default=None)
    place = f"Simulated: {short(found.trace)} on {found.profile} ({found.basis}) with {memory} of memory"
    leaks = " Predictors had seen these prompts: what they reach holds nowhere else." if found.leaks else ""
    if ahead is None or waiting is None:
        alone = ahead or waiting
        return f"{place}: nothing was compared." if alone is None else f"{place}: {_paced(alone)}.{leaks}"
    gain = ahead.tokens_per_second / waiting.tokens_per_second - 1
    pays = f"reading ahead pays {gain:.0%}" if gain > 0 else "reading ahead does not pay"
    floor = found.find(FLOOR, memory, batch)
    below = "" if floor is None or floor is waiting else f" Plain LRU on demand: {_pace(floor)}."
    return (
        f"{place}: {pays}. The best that does gives {_paced(ahead)}, the best that does not {_paced(waiting)}."
        f"{_overlapping(ahead, waiting)}{below}{leaks}"
    )


def of_plan(plan: Plan) -> str:
    """What it recommends, and what that is expected to give."""
    expected = plan.expected
    wish = "do not read ahead" if plan.wish is None else f"read ahead with {plan.wish}"
    gain = expected.tokens_per_second / expected.on_demand - 1
    return (
        f"The plan for {short(plan.model)} with {plan.memory} of memory: {wish}, evict by {plan.evict}; "
        f"{numbers.rate(expected.tokens_per_second)} tokens/s{numbers.rates(expected.low, expected.high)} expected "
        f"from simulation, {gain:+.0%} against plain LRU on demand."
    )


def of_run(ran: Ran) -> str:
    """How fast it was, what was there when it was asked for, and how long it waited; of decoding, if there was any."""
    what, phase = list(ran.phases.items())[-1]
    speed = "" if phase.tokens_per_second is None else f"{numbers.rate(phase.tokens_per_second)} tokens/s; "
    ahead = f", {numbers.percent(phase.in_time_share)} had been read ahead in time" if phase.in_time_share else ""
    waited = "" if phase.stall_share is None else f"; {numbers.percent(phase.stall_share)} of the time went on waiting"
    return (
        f"Measured: {ran.name}, {what}: {speed}{numbers.percent(phase.resident_share or 0.0)} of the experts were "
        f"there already{ahead}{waited}."
    )


def of_routing(described: Description) -> str:
    """What a trace holds, where nothing was compared on it."""
    spec = described.spec
    return (
        f"{short(spec.model)}: {described.tokens:,} tokens through {spec.num_layers} mixture layers, {spec.top_k} of "
        f"{spec.num_experts} experts each; nothing was compared."
    )


def doubts(described: Description) -> list[str]:
    """What must be known before any of it is believed."""
    if not described.doubtful:
        return []
    return [f"{described.spec.model}: {described.trust()}; re-running the routers gave other experts."]


def _scored(measure: Measure) -> str:
    return (
        f"{measure.predictor} with {numbers.value(measure.metric, measure.value)} {numbers.interval(measure)}".rstrip()
    )


def _gain(best: Measure, baseline: Measure) -> str:
    gain = best.value - baseline.value
    return f"{gain * 100:.1f} points" if best.metric in numbers.PERCENT else f"{gain:.3f}"


def _overlap(best: Measure, baseline: Measure) -> str:
    if best.low is None or baseline.high is None or best.low > baseline.high:
        return ""
    return " Their 95 % intervals overlap."


def _speed(row: Row) -> float:
    return row.tokens_per_second


def _paced(row: Row) -> str:
    return f"{_pace(row)} ({row.strategy})"


def _pace(row: Row) -> str:
    return f"{numbers.rate(row.tokens_per_second)} tokens/s{numbers.rates(row.low, row.high)}"


def _overlapping(one: Row, other: Row) -> str:
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return ""
    return " Their 95 % intervals overlap." if max(one.low, other.low) <= min(one.high, other.high) else ""
