"""Doubly linked lists of keys in one table: queues from newest to oldest that cost the same at any length.

A key is in one list at most. No policy here.
"""

import numpy as np

from foregate.arrays import Int32
from foregate.memory.compiled import inner

LISTS = 5
NEWER, OLDER, HOME = range(3)
"""Columns: a key's newer and older neighbour, and the list it is in (-1 = none). A table may have more.

The last LISTS rows are the heads of the lists, newer than their newest and older than their oldest key; their third
column is how many keys the list holds.
"""


def make_lists(keys: int, columns: int = 3) -> Int32:
    """Empty lists over keys 0..K-1, [K + LISTS, columns]; what the lists do not use is 0."""
    table = np.zeros((keys + LISTS, columns), np.int32)
    table[:, [NEWER, OLDER]] = np.arange(keys + LISTS)[:, None]
    table[:keys, HOME] = -1
    return table


@inner
def size(lists: Int32, which: int) -> int:
    """How many keys a list holds."""
    return lists[len(lists) - LISTS + which, HOME]  # type: ignore[no-any-return]


@inner
def oldest(lists: Int32, which: int) -> int:
    """The oldest key of a list; not a key (see `is_key`) where it is empty."""
    return int(lists[len(lists) - LISTS + which, NEWER])


@inner
def is_key(lists: Int32, node: int) -> bool:
    """Whether a neighbour is a key, or the head of its list."""
    return node < len(lists) - LISTS


@inner
def push(lists: Int32, which: int, key: int) -> None:
    """Enter a key that is in no list, as the newest."""
    head = np.uint32(len(lists) - LISTS + which)
    _link(lists, head, np.uint32(key))
    lists[np.uint32(key), HOME] = which
    lists[head, HOME] += 1


@inner
def drop(lists: Int32, key: int) -> None:
    """Take a key out of its list."""
    node = np.uint32(key)
    _unlink(lists, node)
    lists[len(lists) - LISTS + lists[node, HOME], HOME] -= 1
    lists[node, HOME] = -1


@inner
def renew(lists: Int32, key: int) -> None:
    """Make a key the newest of its list."""
    node = np.uint32(key)
    _unlink(lists, node)
    _link(lists, np.uint32(len(lists) - LISTS + lists[node, HOME]), node)


@inner
def _link(lists: Int32, head: np.uint32, key: np.uint32) -> None:
    first = np.uint32(lists[head, OLDER])  # compiled code asks of every signed index whether it counts from the end
    lists[key, NEWER] = head
    lists[key, OLDER] = first
    lists[first, NEWER] = key
    lists[head, OLDER] = key


@inner
def _unlink(lists: Int32, key: np.uint32) -> None:
    before = np.uint32(lists[key, NEWER])
    after = np.uint32(lists[key, OLDER])
    lists[before, OLDER] = after
    lists[after, NEWER] = before
