"""The kernel of `bank`: what makes an earlier token's vote count, and how votes become a distribution. Compiled, with
its gradient; what the parameters are is learned in `bank_fit`.

A candidate's vote counts exp(sum over terms of theta * term), an overlap being as in `likeness`:

    0..7     overlaps of the routed layers, added up 1, 1, 1, 1, 2, 3, 7 layers a term from the last one back, then all
    MEAN     4 * mean overlap over the routed layers
    BEFORE   mean overlap of the two tokens before, over all layers; then BEFORE + 1 to + 5: their overlaps in the
             target layer, the 2 after it, the 2 before it, the 4 after those and the 4 before those
    AGE      -log(tokens ago), in this sequence
    BANK     1 for a training token
    SAME     1 where it is the same token; then SAME + 1, SAME + 2: and the one, the two before it

With v = (votes + exp(PRIOR) * frequency) / total, an expert's score is softmax(POWER * log v + FREQUENCY * log
frequency + COUNTS * log(lift) + LATELY * log(lift of late)), where lift is how much oftener than `frequency` the
sequence's latest tokens used it, and that of late forgets half of it in 20 tokens. Where training prompts are few,
FREQUENCY and COUNTS come out below zero: a vote for an expert that everybody uses says less.
"""

import numpy as np
from numba import njit

from foregate.arrays import Float32, Float64, Int, Int64
from foregate.predictors.memory.likeness import likeness

EDGES = (0, 1, 2, 3, 4, 6, 9, 16)  # layers back at which a term begins
AROUND = ((0, 0), (1, 2), (-2, -1), (3, 6), (-6, -3))  # layers from the target's on, first and last of each term
MEAN, BEFORE, AGE, BANK, SAME = 8, 9, 15, 16, 17
TERMS = 20
PRIOR, POWER, FREQUENCY, COUNTS, LATELY = 20, 21, 22, 23, 24
START = np.zeros(25)
START[:MEAN] = 2, 1.5, 1, 0.6, 0.2, 0.1, 0, 0
START[MEAN], START[BEFORE], START[AGE], START[BANK] = 0.5, 2.5, 0.3, -2.5
START[SAME:TERMS] = 0.5
START[PRIOR], START[POWER] = 3, 0.8
"""Where fitting starts."""
TINY = 1e-30  # keeps every expert's vote above zero
SMOOTH = np.array([4.0, 1.0])  # pseudo-tokens of `frequency` in the lift, and in that of late
FADE = 0.5 ** (1 / 20)  # what a token later is left of a count of late


def basis(layer: int) -> Float32:
    """[9, layer + 1] which layers up to `layer` the terms of the path add up."""
    back = np.arange(layer, -1, -1)
    rows = np.zeros((MEAN + 1, layer + 1), dtype=np.float32)
    rows[np.searchsorted(EDGES, back, side="right") - 1, np.arange(layer + 1)] = 1
    rows[MEAN] = 4 / max(layer + 1, 1)
    return rows


def surroundings(target: int, layers: int) -> Float32:
    """[6, layers] which layers the terms of the token before add up: all, then those around the target."""
    rows = np.full((len(AROUND) + 1, layers), 1 / layers, dtype=np.float32)
    away = np.arange(layers) - target
    for row, (first, last) in enumerate(AROUND, start=1):
        rows[row] = (first <= away) & (away <= last)
    return rows


@njit(cache=True)  # type: ignore[untyped-decorator]
def weigh(
    spreads: tuple[Float32, Float32],
    source: tuple[Int, Float32],
    candidate: tuple[int, bool, int, int],
    worths: tuple[Float32, Float32],
    theta: Float64,
) -> float:
    """The exponent of one candidate's vote.

    spreads    the asking token, and the one before it (all zero if there is none)
    source     experts [., L, k] and weights of tokens
    candidate  its row in them; whether the row before is of its sequence; its age, 0 = a training token; how many
               tokens it shares
    worths     of the layers up to the last routed one, and of all layers
    """
    now, before = spreads
    experts, weights = source
    row, follows, age, same = candidate
    worth, context = worths
    total: float = likeness(now, experts, weights, row, worth)
    if follows:
        total += likeness(before, experts, weights, row - 1, context)
    total += theta[BANK] if age == 0 else -theta[AGE] * np.log(age)
    for tokens in range(same):
        total += theta[SAME + tokens]
    return total


@njit(cache=True)  # type: ignore[untyped-decorator]
def distribution(votes: Float64, lifts: Float64, frequency: Float32, theta: Float64, into: Float32) -> None:
    """Write the scores [E]: votes hold exp(PRIOR) * frequency already, and any common factor; lifts are [2, E]."""
    best = -np.inf
    for e in range(len(votes)):
        score = theta[POWER] * np.log(votes[e]) + theta[FREQUENCY] * np.log(frequency[e])
        score += theta[COUNTS] * lifts[0, e] + theta[LATELY] * lifts[1, e]
        into[e] = score
        best = max(best, score)
    total = 0.0
    for e in range(len(votes)):
        into[e] = np.exp(into[e] - np.float32(best))
        total += into[e]
    into /= np.float32(total)


@njit(cache=True)  # type: ignore[untyped-decorator]
def count_set(experts: Int, late: float, counts: Float64) -> None:
    """Add a routed set, its experts in equal parts, to the counts [2, E]: of all, and of late."""
    size = (experts >= 0).sum()
    for expert in experts:
        if expert >= 0:
            counts[0, expert] += 1 / size
            counts[1, expert] += late / size


@njit(cache=True)  # type: ignore[untyped-decorator]
def log_lifts(counts: Float64, frequency: Float32, into: Float64) -> None:
    """Write log((counts + SMOOTH * frequency) / (total + SMOOTH) / frequency) of both counts [2, E]."""
    for which in range(2):
        total = counts[which].sum() + SMOOTH[which]
        for e in range(counts.shape[1]):
            into[which, e] = np.log((counts[which, e] + SMOOTH[which] * frequency[e]) / total / frequency[e])


@njit(cache=True)  # type: ignore[untyped-decorator]
def loss_and_gradient(
    candidates: tuple[Int64, Float32, Int, Float32],
    rows: tuple[Float32, Float64, Int, Float64],
    both: Float64,
    gradients: Float64,
) -> float:
    """Mean cross entropy of the routed sets in nats; writes its gradient by both [2, 25]. A row's theta is
    both[0] + depth * both[1].

    candidates  starts [R + 1], terms [C, TERMS], experts [C, k] and shares [C, k] of their votes
    rows        frequency [R, E], log lifts [R, 2, E], answers [R, k], depth [R]
    """
    starts, terms, experts, parts = candidates
    frequency, lifts, answers, depth = rows
    E = frequency.shape[1]
    votes, pull, gradient = np.zeros(E), np.zeros(E), np.zeros(both.shape[1])
    scores = np.zeros(E, dtype=np.float32)
    loss = 0.0
    gradients[:] = 0
    for r in range(len(answers)):
        theta = both[0] + depth[r] * both[1]
        span = slice(starts[r], starts[r + 1])
        cast = (terms[span], experts[span], parts[span])
        worth = np.empty(starts[r + 1] - starts[r])
        own = _count(cast, frequency[r], theta, worth, votes)
        distribution(votes, lifts[r], frequency[r], theta, scores)
        loss += _surprise(scores, answers[r], pull)
        gradient[:] = 0
        for e in range(E):
            gradient[POWER] += pull[e] * np.log(votes[e])
            gradient[FREQUENCY] += pull[e] * np.log(frequency[r, e])
            gradient[COUNTS] += pull[e] * lifts[r, 0, e]
            gradient[LATELY] += pull[e] * lifts[r, 1, e]
            pull[e] *= theta[POWER] / votes[e]  # from here on by the votes
            gradient[PRIOR] += pull[e] * own * frequency[r, e]
        _trace_back(cast, worth, pull, gradient)
        gradients[0] += gradient
        gradients[1] += depth[r] * gradient
    gradients /= len(answers)
    return loss / len(answers)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _count(
    cast: tuple[Float32, Int, Float32], frequency: Float32, theta: Float64, worth: Float64, votes: Float64
) -> float:
    """Write what each candidate's vote counts and the votes [E], both up to one factor; gives what the prior counts."""
    terms, experts, parts = cast
    best: float = theta[PRIOR]
    for c in range(len(worth)):
        worth[c] = 0
        for f in range(terms.shape[1]):
            worth[c] += theta[f] * terms[c, f]
        best = max(best, worth[c])
    own = max(np.exp(theta[PRIOR] - best), TINY)
    for e in range(len(votes)):
        votes[e] = own * frequency[e]
    for c in range(len(worth)):
        worth[c] = np.exp(worth[c] - best)
        for slot in range(parts.shape[1]):
            if parts[c, slot] > 0:
                votes[experts[c, slot]] += worth[c] * parts[c, slot]
    return float(own)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _surprise(scores: Float32, answers: Int, pull: Float64) -> float:
    """Cross entropy of the routed set, and its slope [E] by the scores' logarithms before softmax."""
    size = (answers >= 0).sum()
    loss = 0.0
    for e in range(len(scores)):
        pull[e] = scores[e]
    for slot in range(len(answers)):
        if answers[slot] >= 0:
            pull[answers[slot]] -= 1 / size
            loss -= np.log(max(scores[answers[slot]], 1e-9)) / size
    return float(loss)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _trace_back(cast: tuple[Float32, Int, Float32], worth: Float64, pull: Float64, gradient: Float64) -> None:
    """Add the gradient of the terms' parameters, given the slope [E] by the votes."""
    terms, experts, parts = cast
    for c in range(len(worth)):
        push = 0.0
        for slot in range(parts.shape[1]):
            if parts[c, slot] > 0:
                push += pull[experts[c, slot]] * parts[c, slot]
        push *= worth[c]
        if push != 0:
            for f in range(terms.shape[1]):
                gradient[f] += push * terms[c, f]
