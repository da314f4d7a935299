"""What a cache would come to if nothing were known but how often experts are used. Derived by formula; nothing is run.

Every token draws its experts anew by their shares, independent of all tokens and layers before. Real routing has
habits, which only a trace shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import comb, erf
from typing import final

import numpy as np

from foregate.arrays import Float64, Int64
from foregate.errors import ChoiceError
from foregate.hardware.profile import Profile
from foregate.simulation.clock import DISK, HOST
from foregate.simulation.costs import Costs
from foregate.simulation.shapes import ModelShape
from foregate.usage import Usage

HOW = "derived from popularity, independent draws"
GAPS = 300  # numbers of tokens between two draws that are looked at; all, where fewer
NEVER = 1e-6


@final
@dataclass(frozen=True)
class Expected:
    """A cache in so much memory, for tokens that come one by one, once it is full.

    cache              static: the most used experts of all layers stay; lru: the longest unused one leaves
    memory             as it was asked for; slots is what it came to
    hit_rate           share of demanded experts that are there
    reads_per_token    experts
    bytes, bytes_per_token, tokens_per_second, stall_share   None where the model's sizes are not known
    """

    cache: str
    memory: str
    slots: int
    hit_rate: float
    reads_per_token: float
    bytes: int | None = None
    bytes_per_token: float | None = None
    tokens_per_second: float | None = None
    stall_share: float | None = None
    how: str = HOW


@final
@dataclass(frozen=True, eq=False)
class Machine:
    """What times need beside popularity.

    in_host  all experts are in host memory, from where they are copied; else on the disk
    """

    shape: ModelShape
    profile: Profile
    in_host: bool


def expected(usage: Usage, top_k: int, memories: Mapping[str, int], machine: Machine | None = None) -> list[Expected]:
    """The rows: each cache in each memory.

    top_k     experts of a token; counts do not say
    memories  memory, as it was asked for -> slots

    Raises: ChoiceError for counts that no such routing gives, or a profile that lacks times.
    """
    chances = chances_of(usage, top_k)
    return [
        _row(cache, memory, slots, chances, hits(chances, slots), top_k, machine)
        for memory, slots in memories.items()
        for cache, hits in (("static", _static), ("lru", lru_hits))
    ]


def chances_of(usage: Usage, top_k: int) -> Float64:
    """[L, E] that a token uses an expert: top_k times its share of uses.

    Raises: ChoiceError where that would be more than always.
    """
    chances: Float64 = usage.shares * top_k
    layer, expert = np.unravel_index(int(chances.argmax()), chances.shape)
    if chances[layer, expert] > 1 + 1e-9:
        raise ChoiceError(
            f"expert {expert} of layer {usage.layer_ids[layer]} has {usage.shares[layer, expert]:.0%} of the uses in "
            f"{usage.source}; with {top_k} different experts a token none can have more than {1 / top_k:.0%}"
        )
    return chances


def lru_hits(chances: Float64, slots: int) -> Float64:
    """[L, E] that an expert is still there when it is drawn again.

    An expert drawn again g tokens later is there if those g tokens used no more different experts than there are slots.
    How many they use is taken as normal, with the mean and variance of independent draws of a fixed number a token.
    Layers take turns, so g is a whole number: fewer slots than one token uses in all layers hit nothing.

    Source: Che, Tung and Wang, "Hierarchical Web Caching Systems: Modeling, Design and Experimental Results", IEEE JSAC
    2002, with one fixed g for all; Fricker, Robert and Roberts, "A Versatile and Accurate Approximation for LRU Cache
    Performance", ITC 2012, for the normal distribution.
    """
    if slots >= (chances > 0).sum():
        return (chances > 0).astype(np.float64)
    longest = 2
    while _room_lasts(chances, slots, np.array([longest]))[0] > NEVER:
        longest *= 2
    tokens = np.unique(np.geomspace(1, longest, GAPS).astype(np.int64))
    lasts = _room_lasts(chances, slots, tokens)
    ends = lasts - np.append(lasts[1:], 0.0)  # chance that the room lasts for just so many tokens
    hits: Float64 = np.tensordot(ends, _used(chances, tokens), axes=1)
    return hits


def _room_lasts(chances: Float64, slots: int, tokens: Int64) -> Float64:
    """[G] chance that so many tokens use at most so many different experts; never more likely for more tokens."""
    used, often = _used(chances, tokens), tokens[:, None]
    alone = (chances * (1 - used)).sum(axis=2)
    freely = (chances * (1 - chances)).sum(axis=1)
    # Less what the total of draws explains, which is fixed: a token draws as many experts as any other.
    spread = (used * (1 - used)).sum(axis=2) - often * alone**2 / np.maximum(freely, 1e-12)
    deviation = np.sqrt(np.maximum(spread.sum(axis=1), 1e-9))
    over = (slots + 0.5 - used.sum(axis=(1, 2))) / deviation
    lasts = np.array([(1 + erf(x / 2**0.5)) / 2 for x in over])
    return np.minimum.accumulate(lasts)


def _used(chances: Float64, tokens: Int64) -> Float64:
    """[G, L, E] the chance that one of so many tokens uses an expert."""
    used: Float64 = -np.expm1(tokens[:, None, None] * np.log1p(-np.minimum(chances, 1 - 1e-15)))
    return used


def static_hits(chances: Float64, kept: int) -> Float64:
    """[L, E] 1 for the experts that stay: the most used ones of all layers."""
    hits = np.zeros(chances.size)
    hits[np.argsort(-chances, axis=None, kind="stable")[: max(kept, 0)]] = 1.0
    return hits.reshape(chances.shape) * (chances > 0)


def _static(chances: Float64, slots: int) -> Float64:
    """As many slots as a token has experts in a layer are left to those that pass through."""
    passing = 0 if slots >= chances.size else round(float(chances.sum(axis=1).max()))
    return static_hits(chances, slots - passing)


def _row(  # noqa: PLR0917
    cache: str, memory: str, slots: int, chances: Float64, hits: Float64, top_k: int, machine: Machine | None
) -> Expected:
    missed = (chances * (1 - hits)).sum(axis=1)
    row = Expected(cache, memory, slots, float(1 - missed.sum() / chances.sum()), float(missed.sum()))
    if machine is None:
        return row
    shape = machine.shape
    worked, waited = _seconds(missed, top_k, machine)
    return Expected(
        row.cache,
        row.memory,
        row.slots,
        row.hit_rate,
        row.reads_per_token,
        slots * shape.slot_bytes,
        float(missed @ np.array(shape.expert_bytes)),
        1 / (worked + waited),
        waited / (worked + waited),
    )


def _seconds(missed: Float64, top_k: int, machine: Machine) -> tuple[float, float]:
    """Of one token: computing, and waiting for experts. No read hides behind computing, so real ones wait less.

    missed  [L] experts
    """
    costs = Costs.of(machine.profile, machine.shape, look_seconds=0.0)
    layers = len(missed)
    compute = np.broadcast_to(costs.dense[:, 1] + top_k * costs.expert[:, 1], layers).sum() + costs.around[1]
    waited = 0.0
    for layer, one in enumerate(np.minimum(missed / top_k, 1.0)):
        paces = costs.read[HOST if machine.in_host else DISK, layer]
        for reads in range(1, top_k + 1):
            chance = comb(top_k, reads) * one**reads * (1 - one) ** (top_k - reads)
            waited += chance * _reading(paces, reads)
    return float(compute), float(waited)


def _reading(paces: Float64, reads: int) -> float:
    """Seconds of so many reads, as many at once as there are paces."""
    rounds, rest = divmod(reads, len(paces))
    return float(rounds * paces[-1] + (paces[rest - 1] if rest else 0.0))
