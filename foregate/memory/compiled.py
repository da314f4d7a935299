"""How this package's functions are compiled, so that a first run does not wait long for them. No decision here.

A compiled function carries the code of all that it calls, so depth costs more than length: what one caller uses is
pasted into it (`pasted`), what many use takes few arrays (`inner`) or is put there without a call (`melted`), and only
what Python calls can be called from there (`entry`).
"""

from collections.abc import Callable
from typing import Any, TypeVar

from numba import njit

F = TypeVar("F", bound=Callable[..., Any])
OPTIONS = {"error_model": "numpy", "_nrt": False}
BARE = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, **OPTIONS}


def entry(function: F) -> F:
    """Python calls it; compiled code may."""
    return njit(**OPTIONS, cache=True, no_cfunc_wrapper=True)(function)  # type: ignore[no-any-return]


def inner(function: F) -> F:
    """Only compiled code calls it."""
    return njit(**BARE)(function)  # type: ignore[no-any-return]


def melted(function: F) -> F:
    """As `inner`, but its code is put where it is called: handing on a hundred arrays takes longer than what it does.

    Not for loops over experts: in the middle of so much code they are compiled to slower ones.
    """
    return njit(**BARE, forceinline=True)(function)  # type: ignore[no-any-return]


def pasted(function: F) -> F:
    """Only compiled code calls it, and takes it in wherever it does."""
    return njit(**BARE, inline="always")(function)  # type: ignore[no-any-return]


def paste(function: F) -> F:
    """An `entry` as `pasted`: to hand on a hundred arrays takes longer than most decisions do."""
    return pasted(function.py_func)  # type: ignore[attr-defined, no-any-return]


def inner_fused(function: F) -> F:
    """Only compiled code calls it; products and sums may be rounded once instead of twice."""
    return njit(**BARE, fastmath={"contract"})(function)  # type: ignore[no-any-return]


def allocating(function: F) -> F:
    """Python calls it, compiled code may; it makes arrays."""
    return njit(cache=True, error_model="numpy", _nrt=True)(function)  # type: ignore[no-any-return]
