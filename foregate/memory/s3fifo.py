"""S3-FIFO: a small queue for newcomers, a main queue for those used again, and ghosts of who left the small one.

Source: Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023, algorithm 1: the small queue holds a
tenth of the slots, the ghosts as many keys as the main queue can.
"""

from numba import njit

from foregate.memory.lists import drop, home, is_key, newer, oldest, push, size
from foregate.memory.state import FLOOR, MAIN, YOUNG, YOUNG_GHOSTS, State

MOST_USES = 3
"""Uses are counted up to here."""

MOVES_AT = 2
"""Uses in the small queue that earn a place in the main one."""


@njit(cache=True)  # type: ignore[untyped-decorator]
def admit(state: State, key: int) -> None:
    """A newcomer enters the small queue, one that was remembered the main queue."""
    lists = state.lists
    remembered = home(lists, key) == YOUNG_GHOSTS
    if remembered:
        drop(lists, key)
    state.mark[key] = 0
    push(lists, MAIN if remembered else YOUNG, key)


@njit(cache=True)  # type: ignore[untyped-decorator]
def touch(state: State, key: int) -> None:
    """Count a use."""
    state.mark[key] = min(state.mark[key] + 1, MOST_USES)


@njit(cache=True)  # type: ignore[untyped-decorator]
def victim(state: State) -> int:
    """From the small queue where it is over its share, else from the main one; locked keys keep their places."""
    small = max(1, len(state.key_of) // 10)
    if size(state.lists, YOUNG) >= small:
        key = _from_young(state)
        if key >= 0:
            return key  # type: ignore[no-any-return]
    key = _from_main(state)
    return key if key >= 0 else _any_young(state)  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _from_young(state: State) -> int:
    lists = state.lists
    key = oldest(lists, YOUNG)
    while is_key(lists, key):
        after = newer(lists, key)
        if state.lock[key] < state.now[FLOOR]:
            drop(lists, key)
            if state.mark[key] < MOVES_AT:
                _remember(state, key)
                return key  # type: ignore[no-any-return]
            state.mark[key] = 0
            push(lists, MAIN, key)
        key = after
    return -1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _from_main(state: State) -> int:
    lists = state.lists
    for _ in range(MOST_USES + 1):  # each round takes a use from every key that may leave
        key = oldest(lists, MAIN)
        for _ in range(size(lists, MAIN)):
            after = newer(lists, key)
            if state.lock[key] < state.now[FLOOR]:
                drop(lists, key)
                if state.mark[key] == 0:
                    return key  # type: ignore[no-any-return]
                state.mark[key] -= 1
                push(lists, MAIN, key)
            key = after
    return -1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _any_young(state: State) -> int:
    """The main queue is locked: the oldest of the small one that is not."""
    lists = state.lists
    key = oldest(lists, YOUNG)
    while state.lock[key] >= state.now[FLOOR]:
        key = newer(lists, key)
    drop(lists, key)
    _remember(state, key)
    return key  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _remember(state: State, key: int) -> None:
    lists = state.lists
    push(lists, YOUNG_GHOSTS, key)
    if size(lists, YOUNG_GHOSTS) > len(state.key_of) - max(1, len(state.key_of) // 10):
        drop(lists, oldest(lists, YOUNG_GHOSTS))
