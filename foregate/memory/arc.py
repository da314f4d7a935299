"""ARC: keys used once, keys used again, ghosts of both, and a target size that moves to where ghosts are asked for.

Source: Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003, figure 4. A slot that costs
the policy nothing (a free one, or a stale guess's) moves no target.
"""

from numba import njit

from foregate.memory.lists import drop, home, is_key, newer, oldest, push, renew, size
from foregate.memory.state import FLOOR, MAIN, MAIN_GHOSTS, SHARE, YOUNG, YOUNG_GHOSTS, State


@njit(cache=True)  # type: ignore[untyped-decorator]
def touch(state: State, key: int) -> None:
    """A second use."""
    if home(state.lists, key) == MAIN:
        renew(state.lists, key)
    else:
        drop(state.lists, key)
        push(state.lists, MAIN, key)


@njit(cache=True)  # type: ignore[untyped-decorator]
def admit(state: State, key: int) -> None:
    """A remembered key counts as used again."""
    lists, slots = state.lists, len(state.key_of)
    if home(lists, key) >= 0:
        drop(lists, key)
        push(lists, MAIN, key)
        return
    push(lists, YOUNG, key)
    if size(lists, YOUNG) + size(lists, YOUNG_GHOSTS) > slots:
        drop(lists, oldest(lists, YOUNG_GHOSTS))
    elif size(lists, YOUNG) + size(lists, MAIN) + size(lists, YOUNG_GHOSTS) + size(lists, MAIN_GHOSTS) > 2 * slots:
        drop(lists, oldest(lists, MAIN_GHOSTS))


@njit(cache=True)  # type: ignore[untyped-decorator]
def victim(state: State, wanted: int) -> int:
    """Make room for `wanted` (-1 = a guess, which teaches nothing): from the keys used once, or from the others."""
    lists, dials = state.lists, state.dials
    ghost = home(lists, wanted) if wanted >= 0 else -1
    if ghost == YOUNG_GHOSTS:
        step = max(1.0, size(lists, MAIN_GHOSTS) / size(lists, YOUNG_GHOSTS))
        dials[SHARE] = min(dials[SHARE] + step, float(len(state.key_of)))
    elif ghost == MAIN_GHOSTS:
        step = max(1.0, size(lists, YOUNG_GHOSTS) / size(lists, MAIN_GHOSTS))
        dials[SHARE] = max(dials[SHARE] - step, 0.0)
    young = size(lists, YOUNG)
    first = YOUNG if young > dials[SHARE] or (ghost == MAIN_GHOSTS and young == dials[SHARE]) else MAIN
    key = _leave(state, first)
    return key if key >= 0 else _leave(state, YOUNG + MAIN - first)  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _leave(state: State, which: int) -> int:
    """The oldest unlocked key of a list becomes its ghost; -1 = all are locked."""
    lists = state.lists
    key = oldest(lists, which)
    while is_key(lists, key):
        if state.lock[key] < state.now[FLOOR]:
            drop(lists, key)
            push(lists, YOUNG_GHOSTS if which == YOUNG else MAIN_GHOSTS, key)
            return key  # type: ignore[no-any-return]
        key = newer(lists, key)
    return -1
