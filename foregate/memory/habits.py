"""What a layer's past passes say about its next ones: numbers kept up pass by pass. No judgement: `predicted` weighs
them.

Memory: 16 bytes * E^2 a layer (Mixtral 33 kB in all, DeepSeek-V2-Lite 1.7 MB, a model of 48 x 512 experts 200 MB).
"""

from typing import NamedTuple

import numpy as np

from foregate.arrays import Float32, Int, Int32
from foregate.memory.compiled import inner, pasted

HALF_LIVES = (1.0, 2.0, 4.0, 8.0, 16.0, 64.0, 256.0)
"""In passes, of the moving averages of use."""

FADING = len(HALF_LIVES)
POPULAR, RECENT, AGE, OWN, NEXT, AFTER_NEXT, SINCE, NEXT_LATELY, AFTER_NEXT_LATELY = range(FADING, FADING + 9)
"""Rows of `describe`, all as log2 of a share or a number of passes:

0..6          moving average of use, for each half-life
POPULAR       share of all passes that used it
RECENT        passes since its last use
AGE           passes of this sequence
OWN           share of this sequence's passes that used it
NEXT          how often one of the set just routed was followed by it a pass later
AFTER_NEXT    two passes later
SINCE         how often one of the set before was followed by it two passes later: now a pass from here
*_LATELY      the same as NEXT and AFTER_NEXT, but the latest occasions count most
"""

FEATURES = FADING + 9
LATELY = np.float32(0.8)  # weight of the past where only the latest occasions count
SMOOTH = np.float32(6)  # occasions that popularity counts for, beside those seen
OWN_SMOOTH = np.float32(4)
SMALLEST = np.float32(0.004)  # keeps logarithms of shares finite
OCCASIONS = 1024  # after so many, all count half
SEQUENCE = 512
MEMORY = 100_000
LONG_AGO = np.float32(1000)
ONE = np.float32(1)  # compiled code computes in float64 as soon as one plain number is among its terms


class Habits(NamedTuple):
    """All that is remembered.

    keep     [7]          weights of the past in the moving averages
    average  [L, 7, E]    moving averages of use
    uses     [L, E]       in how many passes
    passes   [L]          of how many
    total    [L]          the sum of uses; all three halve at MEMORY
    own      [L, E]       in how many passes of this sequence
    age      [L]          of how many; both halve at SEQUENCE
    since    [L, E]       passes since its last use
    sets     [L, 2, E]    the sets of the last pass and the one before
    sizes    [L, 2]       how many experts they had; 0 where there was none, or it was too large to say anything
    asked    [L, 2, E]    occasions of an expert that were followed by a pass, one and two later
    follows  [L, 2, E, E] how many of them used each expert
    lately   [L, 2, E, E] the same as a share in which the latest occasions count most
    used     [E]          1 = in the set routed last, by whichever layer
    """

    keep: Float32
    average: Float32
    uses: Float32
    passes: Float32
    total: Float32
    own: Float32
    age: Float32
    since: Float32
    sets: Int32
    sizes: Int32
    asked: Float32
    follows: Float32
    lately: Float32
    used: Float32


def make_habits(num_layers: int, num_experts: int) -> Habits:
    """Nothing seen yet."""
    L, E = num_layers, num_experts
    return Habits(
        keep=np.array([0.5 ** (1 / h) for h in HALF_LIVES], np.float32),
        average=np.zeros((L, FADING, E), np.float32),
        uses=np.zeros((L, E), np.float32),
        passes=np.zeros(L, np.float32),
        total=np.zeros(L, np.float32),
        own=np.zeros((L, E), np.float32),
        age=np.zeros(L, np.float32),
        since=np.full((L, E), LONG_AGO, np.float32),
        sets=np.zeros((L, 2, E), np.int32),
        sizes=np.zeros((L, 2), np.int32),
        asked=np.zeros((L, 2, E), np.float32),
        follows=np.zeros((L, 2, E, E), np.float32),
        lately=np.zeros((L, 2, E, E), np.float32),
        used=np.zeros(E, np.float32),
    )


@pasted
def forget_sequence(habits: Habits) -> None:
    """What comes next follows from nothing that came before; how often experts were used stays of interest."""
    habits.own[:] = 0
    habits.age[:] = 0
    habits.sizes[:] = 0


@pasted
def remember(habits: Habits, layer: int, experts: Int) -> None:
    """`layer` routed to `experts` [m] in the pass that runs."""
    # Arrays are handed on whole: making a view costs compiled code more than what it computes on 64 numbers.
    used = habits.used
    for e in range(len(used)):
        used[e] = 0
    for e in experts:
        used[e] = ONE
    _follow((habits.asked, habits.follows, habits.lately), (habits.sets, habits.sizes), layer, used)
    _shift(habits.sets, habits.sizes, layer, experts)
    _count((habits.uses, habits.own, habits.since), (habits.passes, habits.total, habits.age), layer, used)
    habits.total[layer] += len(experts)
    _average(habits.average, habits.keep, layer, used)


@inner
def _shift(sets: Int32, sizes: Int32, layer: int, experts: Int) -> None:
    """The last set becomes the one before."""
    E, m = sets.shape[2], len(experts)
    sizes[layer, 1] = sizes[layer, 0]
    for i in range(sizes[layer, 1]):
        sets[layer, 1, i] = sets[layer, 0, i]
    # Of a set that holds most experts everything follows: a prefill's union says nothing of its tokens.
    sizes[layer, 0] = m if 2 * m <= E else 0
    for i in range(sizes[layer, 0]):
        sets[layer, 0, i] = experts[i]


@inner
def _count(
    uses: tuple[Float32, Float32, Float32], passes: tuple[Float32, Float32, Float32], layer: int, used: Float32
) -> None:
    """Uses, those of this sequence, and passes since the last one, a pass later; and how many passes that is."""
    ever, own, since = uses
    turns, total, age = passes
    if turns[layer] >= MEMORY:
        turns[layer] /= 2
        total[layer] /= 2
        for e in range(len(used)):
            ever[layer, e] /= 2
    if age[layer] >= SEQUENCE:
        age[layer] /= 2
        for e in range(len(used)):
            own[layer, e] /= 2
    turns[layer] += ONE
    age[layer] += ONE
    for e in range(len(used)):
        ever[layer, e] += used[e]
        own[layer, e] += used[e]
        later = since[layer, e] + ONE if since[layer, e] < LONG_AGO else LONG_AGO
        since[layer, e] = later * (ONE - used[e])


@inner
def _average(average: Float32, keep: Float32, layer: int, used: Float32) -> None:
    """The layer's moving averages [7, E], a pass later."""
    for fading in range(FADING):
        for e in range(len(used)):
            average[layer, fading, e] = keep[fading] * average[layer, fading, e] + (ONE - keep[fading]) * used[e]


@inner
def _follow(tables: tuple[Float32, Float32, Float32], before: tuple[Int32, Int32], layer: int, used: Float32) -> None:
    """One more occasion for each member of the last two sets: it was followed by those that are `used`."""
    asked, follows, lately = tables
    sets, sizes = before
    for back in range(2):
        for i in range(sizes[layer, back]):
            p = sets[layer, back, i]
            if asked[layer, back, p] >= OCCASIONS:
                asked[layer, back, p] /= 2
                for e in range(len(used)):
                    follows[layer, back, p, e] /= 2
            asked[layer, back, p] += ONE
            for e in range(len(used)):
                follows[layer, back, p, e] += used[e]
                lately[layer, back, p, e] = LATELY * lately[layer, back, p, e] + (ONE - LATELY) * used[e]


@pasted
def describe(habits: Habits, layer: int, experts: Int, into: Float32) -> None:
    """Write what is known of each expert's next use [FEATURES, E] once `layer` routed to `experts` (see `remember`)."""
    E = into.shape[1]
    average, uses, own, since = habits.average, habits.uses, habits.own, habits.since
    for fading in range(FADING):
        for e in range(E):
            into[fading, e] = average[layer, fading, e] + SMALLEST
    age, total = habits.age[layer], habits.total[layer] + ONE
    scale = ONE / (habits.passes[layer] * (ONE + np.float32(E) / total))
    per_pass = ONE / (age + OWN_SMOOTH)
    for e in range(E):
        popular = (uses[layer, e] + ONE) * scale
        into[POPULAR, e] = popular
        into[RECENT, e] = since[layer, e] + ONE
        into[AGE, e] = age
        into[OWN, e] = (own[layer, e] + OWN_SMOOTH * popular) * per_pass
    tables = (habits.asked, habits.follows, habits.lately)
    before = habits.sets[layer, 1, : habits.sizes[layer, 1]]
    _followers(tables, (layer, 0), experts, into, (NEXT, NEXT_LATELY))
    _followers(tables, (layer, 1), experts, into, (AFTER_NEXT, AFTER_NEXT_LATELY))
    _followers(tables, (layer, 1), before, into, (SINCE, -1))
    _logarithm(into)


@inner
def _followers(
    tables: tuple[Float32, Float32, Float32],
    place: tuple[int, int],
    experts: Int,
    into: Float32,
    rows: tuple[int, int],
) -> None:
    """Write the mean over `experts` of the shares of those that followed them, smoothed by popularity, into one row and
    that of the late shares into another (-1 = nowhere).
    """
    asked, follows, lately = tables
    layer, back = place
    row, late = rows
    E, m = into.shape[1], np.float32(max(len(experts), 1))
    for e in range(E):
        into[row, e] = 0
    by_popularity = ONE if len(experts) == 0 else np.float32(0)
    for p in experts:
        weight = ONE / (m * (asked[layer, back, p] + SMOOTH))
        by_popularity += weight * SMOOTH
        for e in range(E):
            into[row, e] += weight * follows[layer, back, p, e]
    for e in range(E):
        into[row, e] += by_popularity * into[POPULAR, e] + SMALLEST
    if late < 0:
        return
    for e in range(E):
        into[late, e] = SMALLEST
    for p in experts:
        for e in range(E):
            into[late, e] += lately[layer, back, p, e] / m


@inner
def _logarithm(values: Float32) -> None:
    """Replace positive numbers by their log2, straight lines between powers of two: good to 0.09.

    One multiplication each: a float's bits are its exponent followed by its fraction.
    """
    bits = values.view(np.int32)
    for row in range(values.shape[0]):
        for e in range(values.shape[1]):
            values[row, e] = np.float32(bits[row, e]) * np.float32(2.0**-23) - np.float32(127)
