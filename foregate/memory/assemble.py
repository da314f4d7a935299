"""From options, as a user gives them, to a State. No decision here."""

import math
from typing import Any

import numpy as np

from foregate.arrays import Int
from foregate.errors import ChoiceError
from foregate.memory.eviction import Fading, Static, eviction
from foregate.memory.heap import SCORE
from foregate.memory.interface import Eviction, Prefetch
from foregate.memory.predicted import Forecast, Predicted, UInt16, make_forecast
from foregate.memory.prefetch import Budget, Threshold, Top, prefetch
from foregate.memory.state import AMOUNT, LOOK_SECONDS, RATE, READ_SECONDS, RULE, WINDOW_SECONDS, State, make_state

LEAST_SLOTS = 2
"""One expert in use, and one being read: what a set larger than the slots is served with."""


def assemble(
    num_layers: int,
    num_experts: int,
    slots: int,
    evict: Eviction | str = "lru",
    ahead: Prefetch | str = "none",
    *,
    top_k: int = 1,
    least: int = LEAST_SLOTS,
    horizon: int = 0,
    foreseen: UInt16 | None = None,
    profile: Int | None = None,
    expert_bytes: int | None = None,
    read_seconds: float | None = None,
    window_seconds: float | None = None,
    look_seconds: float = 0.0,
) -> tuple[State, Forecast | None]:
    """Empty slots and their policies; the arguments are `Planner`'s.

    horizon   the sets that a replay has, by whose numbers it tells belady the next uses
    foreseen  predicted's levels of all sets, where they have been computed (see `Forecast`)

    Raises: ChoiceError.
    """
    evict = eviction(evict) if isinstance(evict, str) else evict
    ahead = prefetch(ahead) if isinstance(ahead, str) else ahead
    if num_layers < 1 or num_experts < 1:
        raise ChoiceError(
            f"{num_layers} layers of {num_experts} experts are nothing to plan for; give at least 1 of each"
        )
    room = max(least, top_k)
    if slots < room:
        raise ChoiceError(f"{slots} slots are too few; a layer that routes to {top_k} experts needs at least {room}")
    # More slots than experts would only stay empty.
    slots = min(slots, max(room, num_layers * num_experts))
    predicted = evict if isinstance(evict, Predicted) else None
    state = make_state(num_layers, num_experts, slots, policy=evict.code, room=room, horizon=horizon)
    state.now[RULE] = ahead.code
    if isinstance(evict, Fading):
        state.dials[RATE] = evict.half_life
    if isinstance(evict, Static):
        state.rank[:, SCORE] = _profile(profile, num_layers, num_experts)
    if isinstance(ahead, Top):
        state.dials[AMOUNT] = ahead.n
    if isinstance(ahead, Threshold):
        state.dials[AMOUNT] = ahead.p
    if isinstance(ahead, Budget):
        size = _positive("expert_bytes", expert_bytes, "the size of one expert")
        state.dials[AMOUNT] = ahead.limit // size
        state.dials[READ_SECONDS] = _positive("read_seconds", read_seconds, "the time to read one expert")
        state.dials[WINDOW_SECONDS] = _positive("window_seconds", window_seconds, "the time a layer takes")
        if not (math.isfinite(look_seconds) and look_seconds >= 0):
            raise ChoiceError(f"look_seconds is {look_seconds}; a predictor's answer takes 0 seconds or more")
        state.dials[LOOK_SECONDS] = look_seconds
    return state, make_forecast(num_layers, num_experts, predicted, foreseen) if predicted else None


def _profile(profile: Int | None, num_layers: int, num_experts: int) -> Any:
    """[L * E] counts."""
    if profile is None:
        raise ChoiceError("eviction static needs a profile: how often each expert of each layer was used")
    counts = np.asarray(profile)
    if counts.shape != (num_layers, num_experts) or not np.isfinite(counts).all() or (counts < 0).any():
        raise ChoiceError(
            f"the profile of eviction static has shape {counts.shape}; it must be {num_layers} x {num_experts} counts,"
            " none negative"
        )
    return counts.reshape(-1)


def _positive(name: str, value: float | None, meaning: str) -> float:
    if value is None:
        raise ChoiceError(f"prefetch budget needs {name}, {meaning}; foregate profile measures this machine")
    if not (math.isfinite(value) and value > 0):
        raise ChoiceError(f"{name} is {value}; {meaning} must be a number above 0")
    return value
