"""ARC: keys used once, keys used again, ghosts of both, and a target size that moves to where ghosts are asked for.

Source: Megiddo and Modha, "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003, figure 4. A slot that costs
the policy nothing (a free one, or a stale guess's) moves no target.
"""

from foregate.arrays import Float64, Int32, Int64
from foregate.memory.compiled import inner
from foregate.memory.lists import HOME, NEWER, drop, is_key, oldest, push, renew, size
from foregate.memory.state import MAIN, MAIN_GHOSTS, SHARE, YOUNG, YOUNG_GHOSTS


@inner
def touch(keys: Int32, key: int) -> None:
    """A second use."""
    if keys[key, HOME] == MAIN:
        renew(keys, key)
    else:
        drop(keys, key)
        push(keys, MAIN, key)


@inner
def admit(keys: Int32, slots: int, key: int) -> None:
    """A remembered key counts as used again."""
    if keys[key, HOME] >= 0:
        drop(keys, key)
        push(keys, MAIN, key)
        return
    push(keys, YOUNG, key)
    if size(keys, YOUNG) + size(keys, YOUNG_GHOSTS) > slots:
        drop(keys, oldest(keys, YOUNG_GHOSTS))
    elif size(keys, YOUNG) + size(keys, MAIN) + size(keys, YOUNG_GHOSTS) + size(keys, MAIN_GHOSTS) > 2 * slots:
        drop(keys, oldest(keys, MAIN_GHOSTS))


@inner
def victim(keys: Int32, lock: Int64, floor: int, dials: Float64, slots: int, wanted: int) -> int:  # noqa: PLR0917
    """Make room for `wanted` (-1 = a guess, which teaches nothing): from the keys used once, or from the others."""
    ghost = keys[wanted, HOME] if wanted >= 0 else -1
    if ghost == YOUNG_GHOSTS:
        step = max(1.0, size(keys, MAIN_GHOSTS) / size(keys, YOUNG_GHOSTS))
        dials[SHARE] = min(dials[SHARE] + step, float(slots))
    elif ghost == MAIN_GHOSTS:
        step = max(1.0, size(keys, YOUNG_GHOSTS) / size(keys, MAIN_GHOSTS))
        dials[SHARE] = max(dials[SHARE] - step, 0.0)
    young = size(keys, YOUNG)
    first = YOUNG if young > dials[SHARE] or (ghost == MAIN_GHOSTS and young == dials[SHARE]) else MAIN
    key = _leave(keys, lock, floor, first)
    return key if key >= 0 else _leave(keys, lock, floor, YOUNG + MAIN - first)


@inner
def _leave(keys: Int32, lock: Int64, floor: int, which: int) -> int:
    """The oldest unlocked key of a list becomes its ghost; -1 = all are locked."""
    key = oldest(keys, which)
    while is_key(keys, key):
        if lock[key] < floor:
            drop(keys, key)
            push(keys, YOUNG_GHOSTS if which == YOUNG else MAIN_GHOSTS, key)
            return key
        key = keys[key, NEWER]
    return -1
