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

from foregate.arrays import Float32, Float64, Int, Int32, Int64
from foregate.memory.compiled import inner, inner_fused, pasted
from foregate.memory.experience import load
from foregate.memory.habits import FEATURES, Habits, describe, forget_sequence, make_habits, remember
from foregate.memory.interface import PREDICTED, Eviction
from foregate.memory.network import HIDDEN, HORIZON, weights

STEPS = np.float32(64)  # of the table of logarithms of the sigmoid, per unit
REACH = np.float32(16)  # it goes from -REACH to REACH
PASS, LAYER = 0, 1
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

    first [HIDDEN, FEATURES], offset [HIDDEN], last [HIDDEN], bias [1], log_sigmoid [2 * REACH * STEPS + 1]
    """

    first: Float32
    offset: Float32
    last: Float32
    bias: Float32
    log_sigmoid: Float32


class Forecast(NamedTuple):
    """What is known about each key's next use.

    habits    of each layer
    own       [L, E]        values by the network, see above
    value     [L, E]        the same, or by what `expect` was told
    time      [2]           PASS: passes so far, LAYER: the layer that runs
    features  [FEATURES, E] room to work in
    logit     [E]           room to work in
    lowest    [E]           room to work in
    """

    habits: Habits
    network: Network
    own: Float64
    value: Float64
    time: Int64
    features: Float32
    logit: Float32
    lowest: Float64


def make_forecast(num_layers: int, num_experts: int, options: Predicted | None) -> Forecast:
    """Before the first pass; empty where another eviction runs (`options` None).

    Raises: SourceError for a file that is broken, ChoiceError for one of a model of another shape.
    """
    L, E = (num_layers, num_experts) if options else (0, 0)
    file = options.file if options else ""
    logits = np.arange(-REACH * STEPS, REACH * STEPS + 1) / STEPS
    return Forecast(
        habits=load(Path(file), L, E) if file else make_habits(L, E),
        network=Network(*weights(), log_sigmoid=(-np.log1p(np.exp(-logits))).astype(np.float32)),
        own=np.full((L, E), -2.0) - np.arange(L)[:, None] / max(L, 1) / HORIZON,
        value=np.full((L, E), -2.0) - np.arange(L)[:, None] / max(L, 1) / HORIZON,
        time=np.array([0, L], np.int64),
        features=np.zeros((FEATURES, E), np.float32),
        logit=np.zeros(E, np.float32),
        lowest=np.zeros(E, np.float64),
    )


@pasted
def restart(forecast: Forecast) -> None:
    """A new sequence or batch starts."""
    forget_sequence(forecast.habits)
    for layer in range(len(forecast.own)):
        for e in range(forecast.own.shape[1]):
            forecast.value[layer, e] = forecast.own[layer, e]


@pasted
def observe(forecast: Forecast, layer: int, experts: Int) -> None:
    """`layer` runs and routed to `experts` [m], unique."""
    if layer <= forecast.time[LAYER]:
        forecast.time[PASS] += 1
    forecast.time[LAYER] = layer
    remember(forecast.habits, layer, experts)
    describe(forecast.habits, layer, experts, forecast.features)
    logit, table = forecast.logit, forecast.network.log_sigmoid
    _run(forecast.network, forecast.features, logit)
    turn = _turn(forecast.time, layer, len(forecast.value))
    own, value = forecast.own[layer], forecast.value[layer]
    for e in range(len(logit)):
        within = logit[e] if logit[e] < REACH else REACH
        within = within if within > -REACH else -REACH
        logit[e] = (within + REACH) * STEPS
    for e in range(len(logit)):
        own[e] = value[e] = table[np.uint32(logit[e])] - turn


@pasted
def expect(forecast: Forecast, layer: int, chance: Float32) -> None:
    """`chance` [E]: the probability that each expert is used when `layer` runs next.

    If it is not, it is worth one pass later what the network says of it now.
    """
    stay = np.exp(-1 / HORIZON)
    turn = _turn(forecast.time, layer, len(forecast.value))
    for e in range(len(chance)):
        later = stay * np.exp(forecast.own[layer, e] + turn)
        used = min(max(chance[e], 0.0), 1.0)
        forecast.value[layer, e] = np.log(used + (1 - used) * later) - turn


@inner
def victims(  # noqa: PLR0917
    forecast: Forecast, layer: int, key_of: Int32, lock: Int64, floor: int, chosen: Int32
) -> None:
    """Fill `chosen` [n] with the slots to empty, the least worth first; only slots with lock[key] < floor."""
    values = forecast.value.reshape(-1)
    last = len(chosen) - 1
    lowest = forecast.lowest
    for i in range(last + 1):
        lowest[i] = np.inf
    for slot in range(len(key_of)):
        key = key_of[slot]
        value = values[key]
        if value < lowest[last] and lock[key] < floor:
            at = last
            while at > 0 and lowest[at - 1] > value:
                lowest[at], chosen[at] = lowest[at - 1], chosen[at - 1]
                at -= 1
            lowest[at], chosen[at] = value, slot


@pasted
def _turn(time: Int64, layer: int, layers: int) -> float:
    """When `layer` runs next, in horizons."""
    turn = time[PASS] if layer > time[LAYER] else time[PASS] + 1
    return float((turn + layer / layers) / HORIZON)


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
