"""`predicted` eviction: the expert whose next use is expected furthest away leaves. Expectations, no page table.

What an expert is worth is the expectation of exp(-wait / HORIZON), the wait counted in passes: 1 if it is used when its
layer runs next, near 0 if not for long. Expected waits would be ruled by the long ones, which make no difference. A
small network, the same for all layers and models, reads it from the layer's `habits`. As its logarithm minus the time
of the layer's next run over HORIZON, a value stays right while time passes, so that only the layer that runs has to be
valued anew.

Source: the idea of learning the next use from past ones is Song et al., "Learning Relaxed Belady for Content
Distribution Network Caching", NSDI 2020; features, target and network are our own.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple, final

import numpy as np
import numpy.typing as npt

from foregate.arrays import Float32, Float64, Int, Int32, Int64
from foregate.memory.compiled import inner, inner_fused, pasted
from foregate.memory.experience import load
from foregate.memory.habits import FEATURES, Habits, describe, forget_sequence, make_habits, remember
from foregate.memory.interface import PREDICTED, Eviction
from foregate.memory.logarithm import logarithm
from foregate.memory.network import HIDDEN, HORIZON, weights
from foregate.memory.ordered import HIGHEST, ordered

UInt16 = npt.NDArray[np.uint16]
STEPS = np.float32(64)  # levels of a logit, per unit
REACH = np.float32(16)  # they go from -REACH to REACH
UNKNOWN = 2 * int(REACH * STEPS) + 1
"""The level of an expert whose layer has not run yet: above all others, though its value is not."""

NOTHING_KNOWN = -2.0  # the value of that level
PASS, LAYER = range(2)
NOBODY = np.int32(2**31 - 1)
UNASKED = np.int32(-1)
HALF, LOWER_HALF = np.int64(32), np.int64(2**32 - 1)
ZERO = np.float32(0)


@final
@dataclass(frozen=True)
class Predicted(Eviction):
    """Evict the least worth, learned as the run goes on.

    file  what an earlier run has learned (see `experience`); empty = starts from nothing
    """

    file: str = ""
    code: ClassVar[int] = PREDICTED


class Network(NamedTuple):
    """What makes a number out of features: logit = last . relu(first . features + offset) + bias.

    first [HIDDEN, FEATURES], offset [HIDDEN], last [HIDDEN], bias [1]
    """

    first: Float32
    offset: Float32
    last: Float32
    bias: Float32


class Forecast(NamedTuple):
    """What is known about each key's next use.

    habits    of each layer
    level     [L, E]        the network's logits in steps: where in the tables a value is
    foreseen  [S, E]        the levels of sets to come, one after another, where they have been computed already (see
                            `foregate.simulation.foresight`); empty where not
    worth     [UNKNOWN + 1] logarithm of what an expert is worth that is known to be used again, by its level
    later     [UNKNOWN + 1] what one is worth a pass later that is not used in the next one, by its level
    own       [L, E]        values by the network, see above; `ordered`
    value     [L, E]        the same, or by what `expect` was told
    time      [2]           PASS: passes so far, LAYER: the layer that runs
    sets      [1]           how many have been observed
    lowest    [L]           the least value among those of a layer that may leave
    leaver    [L]           in which slot; UNASKED: something has changed since, NOBODY: none may leave
    unasked   [L + 1]       which layers these are; the last number is how many
    features  [FEATURES, E] room to work in
    logit     [E]           room to work in
    unused    [E]           room to work in
    """

    habits: Habits
    network: Network
    level: UInt16
    foreseen: UInt16
    worth: Float32
    later: Float64
    own: Int64
    value: Int64
    time: Int64
    sets: Int64
    lowest: Int64
    leaver: Int32
    unasked: Int32
    features: Float32
    logit: Float32
    unused: Float64


def make_forecast(
    num_layers: int, num_experts: int, options: Predicted | None, foreseen: UInt16 | None = None
) -> Forecast:
    """Before the first pass; empty where another eviction runs (`options` None).

    Raises: SourceError for a file that is broken, ChoiceError for one of a model of another shape.
    """
    L, E = (num_layers, num_experts) if options else (0, 0)
    file = options.file if options else ""
    logits = np.arange(-REACH * STEPS, REACH * STEPS + 1) / STEPS
    worth = np.r_[-np.log1p(np.exp(-logits)), NOTHING_KNOWN].astype(np.float32)
    # As wide as what the network says of it later; -2 and less: the smaller bits are the larger number.
    values = NOTHING_KNOWN - np.tile(np.arange(L)[:, None] / max(L, 1) / HORIZON, E)
    start: Int64 = values.view(np.int64) ^ HIGHEST
    return Forecast(
        habits=load(Path(file), L, E) if file else make_habits(L, E),
        network=Network(*weights()),
        level=np.full((L, E), UNKNOWN, np.uint16),
        foreseen=np.zeros((0, E), np.uint16) if foreseen is None else foreseen,
        worth=worth,
        later=np.exp(-1 / HORIZON) * np.exp(worth.astype(np.float64)),
        own=start,
        value=start.copy(),
        time=np.array([0, L], np.int64),
        sets=np.zeros(1, np.int64),
        lowest=np.zeros(L, np.int64),
        leaver=np.full(L, UNASKED, np.int32),
        unasked=np.arange(L + 1, dtype=np.int32),
        features=np.zeros((FEATURES, E), np.float32),
        logit=np.zeros(E, np.float32),
        unused=np.zeros(E, np.float64),
    )


@pasted
def restart(forecast: Forecast) -> None:
    """A new sequence or batch starts."""
    forget_sequence(forecast.habits)
    for layer in range(len(forecast.own)):
        for e in range(forecast.own.shape[1]):
            forecast.value[layer, e] = forecast.own[layer, e]
    changed(forecast, 0, len(forecast.own) - 1)


@pasted
def observe(forecast: Forecast, layer: int, experts: Int) -> None:
    """`layer` runs and routed to `experts` [m], unique."""
    time, sets, level = forecast.time, forecast.sets, forecast.level
    if layer <= time[LAYER]:
        time[PASS] += 1
    time[LAYER] = layer
    if sets[0] < len(forecast.foreseen):
        _copy(forecast.foreseen, sets[0], level, layer)
    else:
        remember(forecast.habits, layer, experts)
        describe(forecast.habits, layer, experts, forecast.features)
        _run(forecast.network, forecast.features, forecast.logit)
        _step(forecast.logit, level, layer)
    sets[0] += 1
    _value(forecast.worth, level, forecast.own, forecast.value, layer, _turn(time, layer, len(level)))
    _ask(forecast.leaver, forecast.unasked, layer)


@pasted
def expect(forecast: Forecast, layer: int, chance: Float32) -> None:
    """`chance` [E]: the probability that each expert is used when `layer` runs next.

    If it is not, it is worth one pass later what the network says of it now.
    """
    turn = _turn(forecast.time, layer, len(forecast.value))
    _blend(chance, forecast.level, forecast.later, forecast.value, layer, turn, forecast.unused)
    _ask(forecast.leaver, forecast.unasked, layer)


@pasted
def changed(forecast: Forecast, first: int, last: int) -> None:
    """Which experts of these layers are there, or may leave, has changed."""
    for layer in range(first, last + 1):
        _ask(forecast.leaver, forecast.unasked, layer)


@pasted
def held(forecast: Forecast, layer: int, slot: int) -> None:
    """What is in a slot (-1 = in none) may leave no longer: it matters where it was the first to."""
    if slot >= 0 and forecast.leaver[layer] == slot:
        _ask(forecast.leaver, forecast.unasked, layer)


@pasted
def victim(forecast: Forecast, slot_of: Int32, lock: Int64, floor: int) -> int:
    """The slot to empty: of the least worth with lock[key] < floor; of equals the lowest slot. NOBODY if there is none.

    Only layers of which something has changed are searched, and the one whose expert leaves is one of them afterwards.
    """
    known = (forecast.lowest, forecast.leaver, forecast.unasked)
    return _leaver(known, forecast.value, slot_of, lock, floor)


@inner
def _leaver(known: tuple[Int64, Int32, Int32], value: Int64, slot_of: Int32, lock: Int64, floor: int) -> int:
    lowest, leaver, unasked = known
    L = len(leaver)
    for i in range(unasked[L]):
        _search(value, slot_of, lock, floor, unasked[i], lowest, leaver)
    unasked[L] = 0
    least, first = HIGHEST, HIGHEST
    for layer in range(L):
        least = min(least, lowest[layer])
    for layer in range(L):  # the lowest slot and whose it is, as one number
        first = min(first, (np.int64(leaver[layer]) << HALF) | layer if lowest[layer] == least else HIGHEST)
    _ask(leaver, unasked, int(first & LOWER_HALF))
    return int(first >> HALF)


@pasted
def _ask(leaver: Int32, unasked: Int32, layer: int) -> None:
    """The layer is to be searched before anybody leaves."""
    if leaver[layer] != UNASKED:
        leaver[layer] = UNASKED
        unasked[unasked[-1]] = layer
        unasked[-1] += 1


@pasted
def _search(  # noqa: PLR0917
    value: Int64, slot_of: Int32, lock: Int64, floor: int, layer: int, lowest: Int64, leaver: Int32
) -> None:
    """Without branches, so that eight experts are looked at at once."""
    E = value.shape[1]
    least, first = HIGHEST, NOBODY
    for e in range(E):
        key = np.uint32(layer * E + e)
        least = min(least, value[layer, e] if (slot_of[key] >= 0) & (lock[key] < floor) else HIGHEST)
    for e in range(E):
        key = np.uint32(layer * E + e)
        may = (value[layer, e] == least) & (slot_of[key] >= 0) & (lock[key] < floor)
        first = min(first, slot_of[key] if may else NOBODY)
    lowest[layer], leaver[layer] = least, first


@pasted
def _turn(time: Int64, layer: int, layers: int) -> float:
    """When `layer` runs next, in horizons."""
    turn = time[PASS] if layer > time[LAYER] else time[PASS] + 1
    return float((turn + layer / layers) / HORIZON)


@inner
def _copy(rows: UInt16, row: int, level: UInt16, layer: int) -> None:
    for e in range(level.shape[1]):
        level[layer, e] = rows[row, e]


@inner
def _step(logit: Float32, level: UInt16, layer: int) -> None:
    """Logits as levels."""
    for e in range(len(logit)):
        within = logit[e] if logit[e] < REACH else REACH
        within = within if within > -REACH else -REACH
        level[layer, e] = np.uint16(np.uint32((within + REACH) * STEPS))


@inner
def _value(worth: Float32, level: UInt16, own: Int64, value: Int64, layer: int, turn: float) -> None:  # noqa: PLR0917
    for e in range(level.shape[1]):
        own[layer, e] = value[layer, e] = ordered(worth[level[layer, e]] - turn)


@inner
def _blend(  # noqa: PLR0917
    chance: Float32, level: UInt16, later: Float64, value: Int64, layer: int, turn: float, unused: Float64
) -> None:
    """Used with this chance when the layer runs next; if not, worth what it is worth a pass later."""
    for e in range(len(chance)):  # a loop that looks up and computes would do both one by one
        unused[e] = later[level[layer, e]]
    for e in range(len(chance)):
        used = min(max(float(chance[e]), 0.0), 1.0)
        value[layer, e] = ordered(logarithm(used + (1 - used) * unused[e]) - turn)


@inner_fused
def _run(network: Network, features: Float32, logit: Float32) -> None:
    """Write the logits [E]."""
    first, offset, last = network.first, network.offset, network.last
    for e in range(len(logit)):
        logit[e] = network.bias[0]
    for h in range(HIDDEN):
        for e in range(len(logit)):
            unit = offset[h]
            for f in range(FEATURES):
                unit += first[h, f] * features[f, e]
            logit[e] += last[h] * (unit if unit > 0 else ZERO)
