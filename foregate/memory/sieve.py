"""SIEVE: one queue, a hand that walks from its oldest key to its newest and spares who was used since it came by.

Source: Zhang et al., "SIEVE is Simpler than LRU: an Efficient Turn-Key Eviction Algorithm for Web Caches", NSDI 2024.
"""

from foregate.arrays import Int32, Int64
from foregate.memory.compiled import inner
from foregate.memory.lists import NEWER, drop, is_key, oldest
from foregate.memory.state import FLOOR, HAND, MARK, YOUNG


@inner
def victim(keys: Int32, lock: Int64, now: Int64) -> int:
    """The first key from the hand on that was not used since; locked keys are passed over as they are."""
    key = int(now[HAND]) if now[HAND] >= 0 else oldest(keys, YOUNG)
    while lock[key] >= now[FLOOR] or keys[key, MARK] > 0:
        if lock[key] < now[FLOOR]:
            keys[key, MARK] = 0
        key = keys[key, NEWER]
        if not is_key(keys, key):
            key = oldest(keys, YOUNG)
    after = keys[key, NEWER]
    now[HAND] = after if is_key(keys, after) else -1
    drop(keys, key)
    return key
