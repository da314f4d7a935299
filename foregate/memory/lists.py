"""Doubly linked lists of keys in one array: queues from newest to oldest that cost the same at any length.

A key is in one list at most. No policy here.
"""

import numpy as np
from numba import njit

from foregate.arrays import Int32

LISTS = 5
NEWER, OLDER, HOME = range(3)
"""Columns: a key's newer and older neighbour, and the list it is in (-1 = none).

The last LISTS rows are the heads of the lists, newer than their newest and older than their oldest key; their third
column is how many keys the list holds.
"""


def make_lists(keys: int) -> Int32:
    """Empty lists over keys 0..K-1, [K + LISTS, 3]."""
    lists = np.repeat(np.arange(keys + LISTS, dtype=np.int32)[:, None], 3, axis=1).copy()
    lists[:keys, HOME] = -1
    lists[keys:, HOME] = 0
    return lists


@njit(cache=True)  # type: ignore[untyped-decorator]
def size(lists: Int32, which: int) -> int:
    """How many keys a list holds."""
    return lists[len(lists) - LISTS + which, HOME]  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def home(lists: Int32, key: int) -> int:
    """The list a key is in, -1 = none."""
    return lists[key, HOME]  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def oldest(lists: Int32, which: int) -> int:
    """The oldest key of a list; not a key (see `is_key`) where it is empty."""
    return lists[len(lists) - LISTS + which, NEWER]  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def newer(lists: Int32, key: int) -> int:
    """The next newer key of the same list; not a key after the newest."""
    return lists[key, NEWER]  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def is_key(lists: Int32, node: int) -> bool:
    """Whether a neighbour is a key, or the head of its list."""
    return node < len(lists) - LISTS


@njit(cache=True)  # type: ignore[untyped-decorator]
def push(lists: Int32, which: int, key: int) -> None:
    """Enter a key that is in no list, as the newest."""
    head = len(lists) - LISTS + which
    _link(lists, head, key)
    lists[key, HOME] = which
    lists[head, HOME] += 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def drop(lists: Int32, key: int) -> None:
    """Take a key out of its list."""
    _unlink(lists, key)
    lists[len(lists) - LISTS + lists[key, HOME], HOME] -= 1
    lists[key, HOME] = -1


@njit(cache=True)  # type: ignore[untyped-decorator]
def renew(lists: Int32, key: int) -> None:
    """Make a key the newest of its list."""
    _unlink(lists, key)
    _link(lists, len(lists) - LISTS + lists[key, HOME], key)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _link(lists: Int32, head: int, key: int) -> None:
    first = lists[head, OLDER]
    lists[key, NEWER] = head
    lists[key, OLDER] = first
    lists[first, NEWER] = key
    lists[head, OLDER] = key


@njit(cache=True)  # type: ignore[untyped-decorator]
def _unlink(lists: Int32, key: int) -> None:
    before = lists[key, NEWER]
    after = lists[key, OLDER]
    lists[before, OLDER] = after
    lists[after, NEWER] = before
