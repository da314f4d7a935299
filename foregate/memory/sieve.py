"""SIEVE: one queue, a hand that walks from its oldest key to its newest and spares who was used since it came by.

Source: Zhang et al., "SIEVE is Simpler than LRU: an Efficient Turn-Key Eviction Algorithm for Web Caches", NSDI 2024.
"""

from numba import njit

from foregate.memory.lists import drop, is_key, newer, oldest
from foregate.memory.state import FLOOR, HAND, YOUNG, State


@njit(cache=True)  # type: ignore[untyped-decorator]
def victim(state: State) -> int:
    """The first key from the hand on that was not used since; locked keys are passed over as they are."""
    lists, now = state.lists, state.now
    key = now[HAND] if now[HAND] >= 0 else oldest(lists, YOUNG)
    while state.lock[key] >= now[FLOOR] or state.mark[key] > 0:
        if state.lock[key] < now[FLOOR]:
            state.mark[key] = 0
        key = newer(lists, key)
        if not is_key(lists, key):
            key = oldest(lists, YOUNG)
    after = newer(lists, key)
    now[HAND] = after if is_key(lists, after) else -1
    drop(lists, key)
    return key  # type: ignore[no-any-return]
