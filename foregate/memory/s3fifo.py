"""S3-FIFO: a small queue for newcomers, a main queue for those used again, and ghosts of who left the small one.

Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1: the small queue holds a
tenth of the slots, the ghosts as many keys as the main queue can.
"""

from foregate.arrays import Int32, Int64
from foregate.memory.compiled import inner
from foregate.memory.lists import HOME, NEWER, drop, is_key, oldest, push, size
from foregate.memory.state import MAIN, MARK, YOUNG, YOUNG_GHOSTS

MOST_USES = 3
"""Uses are counted up to here."""

MOVES_AT = 2
"""Uses in the small queue that earn a place in the main one."""


@inner
def admit(keys: Int32, key: int) -> None:
    """A newcomer enters the small queue, one that was remembered the main queue."""
    remembered = keys[key, HOME] == YOUNG_GHOSTS
    if remembered:
        drop(keys, key)
    keys[key, MARK] = 0
    push(keys, MAIN if remembered else YOUNG, key)


@inner
def touch(keys: Int32, key: int) -> None:
    """Count a use."""
    if keys[key, MARK] < MOST_USES:
        keys[key, MARK] += 1


@inner
def victim(keys: Int32, lock: Int64, floor: int, slots: int) -> int:
    """From the small queue where it is over its share, else from the main one; locked keys keep their places."""
    small = max(1, slots // 10)
    if size(keys, YOUNG) >= small:
        key = _from_young(keys, lock, floor, slots - small)
        if key >= 0:
            return key
    key = _from_main(keys, lock, floor)
    return key if key >= 0 else _any_young(keys, lock, floor, slots - small)


@inner
def _from_young(keys: Int32, lock: Int64, floor: int, ghosts: int) -> int:
    key = oldest(keys, YOUNG)
    while is_key(keys, key):
        after = keys[key, NEWER]
        if lock[key] < floor:
            drop(keys, key)
            if keys[key, MARK] < MOVES_AT:
                _remember(keys, key, ghosts)
                return key
            keys[key, MARK] = 0
            push(keys, MAIN, key)
        key = after
    return -1


@inner
def _from_main(keys: Int32, lock: Int64, floor: int) -> int:
    for _ in range(MOST_USES + 1):  # each round takes a use from every key that may leave
        key = oldest(keys, MAIN)
        for _ in range(size(keys, MAIN)):
            after = keys[key, NEWER]
            if lock[key] < floor:
                drop(keys, key)
                if keys[key, MARK] == 0:
                    return key
                keys[key, MARK] -= 1
                push(keys, MAIN, key)
            key = after
    return -1


@inner
def _any_young(keys: Int32, lock: Int64, floor: int, ghosts: int) -> int:
    """The main queue is locked: the oldest of the small one that is not."""
    key = oldest(keys, YOUNG)
    while lock[key] >= floor:
        key = keys[key, NEWER]
    drop(keys, key)
    _remember(keys, key, ghosts)
    return key


@inner
def _remember(keys: Int32, key: int, ghosts: int) -> None:
    push(keys, YOUNG_GHOSTS, key)
    if size(keys, YOUNG_GHOSTS) > ghosts:
        drop(keys, oldest(keys, YOUNG_GHOSTS))
