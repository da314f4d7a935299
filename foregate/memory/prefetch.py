"""Which expected experts are worth reading ahead: the prefetches by name, and the compiled rule that they share."""

from dataclasses import dataclass
from typing import ClassVar, final

from foregate.arrays import Float64, Int64
from foregate.components import build
from foregate.errors import ChoiceError
from foregate.memory.compiled import inner, pasted
from foregate.memory.interface import Prefetch
from foregate.memory.state import (
    AMOUNT,
    CAME,
    CLAIMED,
    GAIN,
    LAYER,
    PASS,
    READ_SECONDS,
    READS,
    RESIDENT_HITS,
    RESTING,
    RULE,
    TRIED,
    WINDOW_SECONDS,
    WON,
)
from foregate.sizes import parse_bytes

NONE, TOP, THRESHOLD, BUDGET = range(4)
TRIAL, REST = 8, 56
"""Passes after which `budget` judges whether asking pays, and passes for which it does not ask where it did not."""
BELIEF = 8
"""Guesses whose worth of belief a predictor has from the start: so many that came as they were said to."""


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
    otherwise the rest of it delays the layer, and it may have pushed out an expert that is used in the next pass. A
    predictor whose guesses came less often than it said is believed as much less. Where what a pass is expected to gain
    does not pay for the predictor's answers, it is not asked for a while.
    """

    bytes: str
    code: ClassVar[int] = BUDGET

    def __post_init__(self) -> None:
        parse_bytes(self.bytes)

    @property
    def limit(self) -> int:
        """`bytes` as a number."""
        return parse_bytes(self.bytes)


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


@pasted
def most(now: Int64, dials: Float64, experts: int) -> int:
    """How many of a layer's experts, the likeliest first, are worth asking about."""
    return min(int(dials[AMOUNT]), experts) if now[RULE] == TOP else experts


@pasted
def wanted(now: Int64, dials: Float64, chance: float, rank: int, issued: int, gain: float) -> bool:  # noqa: PLR0917
    """Whether to have an expert there.

    chance  that it is used                  rank  among the layer's experts, from 0
    issued  reads ahead for it, so far       gain  see `worth`; counts only for `budget`
    """
    rule, amount = now[RULE], dials[AMOUNT]
    if rule == TOP:
        want = rank < amount
    elif rule == THRESHOLD:
        want = chance >= amount
    else:
        want = rule == BUDGET and issued < amount and gain > 0
    return want  # type: ignore[no-any-return]


@inner
def worth(now: Int64, dials: Float64, counts: Int64, slots: int, distance: int, chance: float) -> float:  # noqa: PLR0917
    """Seconds that reading one more expert ahead is expected to save, less those that it is expected to cost, for the
    layer `distance` layers on, in a `State` of so many slots.
    """
    read = dials[READ_SECONDS]
    left = distance * dials[WINDOW_SECONDS] - now[READS] * read
    hidden = min(max(left, 0.0), read)
    late = read - hidden
    chance *= min((dials[CAME] + BELIEF) / (dials[CLAIMED] + BELIEF), 1.0)
    return chance * hidden - (1 - chance) * (late + read * _reuse(now, counts, slots))  # type: ignore[no-any-return]


@inner
def review(now: Int64, dials: Float64) -> None:
    """A pass is over: whether asking about it paid; after some that were asked about, whether to go on."""
    if now[RESTING] > 0:
        now[RESTING] -= 1
    elif dials[GAIN] != 0:
        now[TRIED] += 1
        now[WON] += dials[GAIN] > 0
        if now[TRIED] == TRIAL:
            now[RESTING] = REST if 2 * now[WON] < TRIAL else 0
            now[TRIED] = now[WON] = 0
    dials[GAIN] = 0


@inner
def _reuse(now: Int64, counts: Int64, slots: int) -> float:
    """How likely a resident is used in a pass, so far: what pushing one out costs, in reads."""
    hits = 0
    for layer in range(len(counts)):
        hits += counts[layer, RESIDENT_HITS]
    runs = now[PASS] * len(counts) + now[LAYER] + 1
    return hits * len(counts) / (max(runs, 1) * slots)  # type: ignore[no-any-return]
