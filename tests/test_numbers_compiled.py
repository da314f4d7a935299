"""What compiled loops compute with: the logarithm is the library's, order survives, the calendar knows who is last."""

import numpy as np
import pytest
from numba import njit

from foregate.arrays import Float64, Int64
from foregate.memory import calendar
from foregate.memory.calendar import Calendar, make_calendar
from foregate.memory.logarithm import logarithm
from foregate.memory.ordered import ordered


# Only compiled code calls these functions.
@njit
def logarithms(values: Float64, into: Float64) -> None:
    for i in range(len(values)):
        into[i] = logarithm(values[i])


@njit
def order(values: Float64, into: Int64) -> None:
    for i in range(len(values)):
        into[i] = ordered(values[i])


@njit
def enter(uses: Calendar, key: int, moment: int) -> None:
    calendar.enter(uses, key, moment)


@njit
def leave(uses: Calendar, key: int) -> None:
    calendar.leave(uses, key)


@njit
def latest(uses: Calendar, lock: Int64, floor: int) -> int:
    return calendar.latest(uses, lock, floor)


def test_the_logarithm_is_the_librarys_to_the_last_place() -> None:
    values = np.r_[1.0, np.random.default_rng(0).random(20_000) + 1e-12, np.logspace(-300, 300, 5000)]
    found = np.zeros_like(values)
    logarithms(values, found)
    right = np.log(values)
    assert found[0] == 0
    assert (np.abs(found - right) <= 1.01 * np.spacing(np.abs(right))).all()


def test_whole_numbers_are_in_the_order_of_their_floats() -> None:
    values = np.sort(np.r_[-np.inf, np.random.default_rng(0).normal(size=1000), 1e-300, -1e-300, 0.0, np.inf])
    found = np.zeros(len(values), np.int64)
    order(values, found)
    assert (np.diff(found) > 0).all()


@pytest.mark.parametrize("horizon", [1, 64, 65, 5000, 300_000])
def test_the_calendar_finds_who_is_due_last_and_may_leave(horizon: int) -> None:
    rng = np.random.default_rng(horizon)
    K, uses = 40, make_calendar(40, horizon)
    due: dict[int, int] = {}  # in the order in which they were entered
    for _ in range(600):
        key = int(rng.integers(K))
        if key in due:
            leave(uses, key)
            del due[key]
        else:
            moment = int(rng.integers(horizon) if rng.random() < 0.7 else min(rng.integers(5), horizon - 1))
            enter(uses, key, moment)
            due[key] = moment
        lock = (rng.random(K) < 0.4).astype(np.int64)
        free = [key for key in due if lock[key] < 1]
        assert latest(uses, lock, 1) == max(free, key=due.__getitem__, default=-1)
