"""Which expected experts are worth reading ahead: the prefetches by name, and the compiled rule that they share."""

import math
import re
from dataclasses import dataclass
from typing import ClassVar, final

from numba import njit

from foregate.components import build
from foregate.errors import ChoiceError
from foregate.memory.interface import Prefetch
from foregate.memory.state import (
    AMOUNT,
    LAYER,
    PASS,
    READ_SECONDS,
    READS,
    RESIDENT_HITS,
    RULE,
    WINDOW_SECONDS,
    State,
)

NONE, TOP, THRESHOLD, BUDGET = range(4)
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


@final
@dataclass(frozen=True)
class Nothing(Prefetch):
    """Everything is read on demand."""

    code: ClassVar[int] = NONE


@final
@dataclass(frozen=True)
class Top(Prefetch):
    """The `n` likeliest experts of each layer that is looked at."""

    n: int = 2
    code: ClassVar[int] = TOP

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ChoiceError(f"n is {self.n}; prefetch top needs at least 1 expert, or choose none")


@final
@dataclass(frozen=True)
class Threshold(Prefetch):
    """Every expert that is used with a probability of at least `p`."""

    p: float = 0.5
    code: ClassVar[int] = THRESHOLD

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise ChoiceError(f"p is {self.p}; prefetch threshold needs a probability above 0 and up to 1")


@final
@dataclass(frozen=True)
class Budget(Prefetch):
    """Reads whose expected benefit exceeds their expected cost, up to `bytes` for a layer at a time.

    A read that ends `hidden` seconds into the time until its layer runs saves these with the chance that it is used;
    otherwise the rest of it delays the layer, and it may have pushed out an expert that is used in the next pass.
    """

    bytes: str
    code: ClassVar[int] = BUDGET

    def __post_init__(self) -> None:
        _size(self.bytes)

    @property
    def limit(self) -> int:
        """`bytes` as a number."""
        return _size(self.bytes)


PREFETCH: dict[str, type[Prefetch]] = {"none": Nothing, "top": Top, "threshold": Threshold, "budget": Budget}
SHORT = {"top": "n", "threshold": "p", "budget": "bytes"}
"""The option that a bare value stands for: "top:2" is "top:n=2"."""


def prefetch(text: str) -> Prefetch:
    """From "none", "top:n=2" or "top:2", "threshold:0.6", "budget:200MiB". Raises: ChoiceError."""
    name, _, value = text.partition(":")
    if name in SHORT and value and "=" not in value:
        return build(PREFETCH, f"{name}:{SHORT[name]}={value}")
    if name == "budget" and not value:
        raise ChoiceError("prefetch budget needs its bytes, such as budget:200MiB")
    return build(PREFETCH, text)


@njit(cache=True)  # type: ignore[untyped-decorator]
def wanted(state: State, distance: int, chance: float, rank: int, issued: int) -> bool:
    """Whether to have an expert there for the layer `distance` layers on.

    chance  that it is used    rank  among the layer's experts, from 0    issued  reads ahead for it, so far
    """
    rule, dials = state.now[RULE], state.dials
    if rule == TOP:
        return rank < dials[AMOUNT]  # type: ignore[no-any-return]
    if rule == THRESHOLD:
        return chance >= dials[AMOUNT]  # type: ignore[no-any-return]
    if rule == BUDGET:
        read = dials[READ_SECONDS]
        left = distance * dials[WINDOW_SECONDS] - state.now[READS] * read
        hidden = min(max(left, 0.0), read)
        late = read - hidden
        return issued < dials[AMOUNT] and chance * hidden > (1 - chance) * (late + read * _reuse(state))  # type: ignore[no-any-return]
    return False


@njit(cache=True)  # type: ignore[untyped-decorator]
def _reuse(state: State) -> float:
    """How likely a resident is used in a pass, so far: what pushing one out costs, in reads."""
    hits = 0
    for layer in range(len(state.known)):
        hits += state.counts[layer, RESIDENT_HITS]
    runs = state.now[PASS] * len(state.known) + state.now[LAYER] + 1
    return hits * len(state.known) / (max(runs, 1) * len(state.key_of))  # type: ignore[no-any-return]


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9.]+)\s*([a-zA-Z]*)", text.strip())
    unit = UNITS.get(found[2].upper()) if found else None
    try:
        size = math.floor(float(found[1]) * unit) if found and unit else 0
    except ValueError:
        size = 0
    if size < 1:
        raise ChoiceError(f"{text!r} is not a size in bytes; write it as 200MiB or 1.5GB")
    return size
