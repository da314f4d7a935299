"""What a vote of `bank` is worth, learned: training tokens are asked, each with the other prompts as its bank, and the
parameters of `terms` follow the gradient of the log-loss of their routed sets. No prompt is asked about itself beyond
its own past, so nothing has to be held out.
"""

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Float64, Int, Int32, Int64
from foregate.predictors.memory.candidates import WHOLE, gather, room
from foregate.predictors.memory.likeness import likeness, shares, spread
from foregate.predictors.memory.terms import (
    AGE,
    BANK,
    BEFORE,
    FADE,
    MEAN,
    SAME,
    START,
    TERMS,
    basis,
    count_set,
    log_lifts,
    loss_and_gradient,
    surroundings,
)

STEPS = 200
RATE = 0.1
HOLD = 1e-4  # how firmly START keeps what the samples do not decide; 1e-3 and 80 steps were worse on Qwen1.5

Bank = tuple[tuple[Int, Float32], tuple[Int64, Int32, Bool]]


def learn(
    bank: Bank,
    sequences: tuple[Int32, Int64],
    num_experts: int,
    limits: tuple[int, int, int],
    question: tuple[int, int],
) -> Float64:
    """[2, 25] parameters for one distance: those of the middle layer, and how they change from the first to the last.

    bank       experts and weights; the index (see `candidates.gather`)
    sequences  token_id [T], and the first row of each sequence
    limits     window, neighbours, samples
    question   distance, and the seed of the samples
    """
    experts = bank[0][0]
    token_id, starts = sequences
    window, most, samples = limits
    distance, seed = question
    layers = experts.shape[1] - distance + 1
    if layers < 1:
        return np.stack([START, np.zeros_like(START)])
    cells = np.flatnonzero((experts[:, distance - 1 :] >= 0).any(axis=2))
    cells = np.random.default_rng(seed).permutation(cells)[:samples]
    token, target = cells // layers, cells % layers + distance - 1
    which = np.searchsorted(starts, token, side="right") - 1
    first, last = starts[which], np.append(starts[1:], len(token_id))[which]
    size = int(np.minimum(token - first, window).sum()) + len(token) * (
        len(token_id) if len(token_id) <= WHOLE else most
    )
    found = (
        np.zeros(len(token) + 1, dtype=np.int64),
        np.empty((size, TERMS), dtype=np.float32),
        np.empty((size, experts.shape[2]), dtype=experts.dtype),
        np.empty((size, experts.shape[2]), dtype=np.float32),
    )
    frequency = np.empty((len(token), num_experts), dtype=np.float32)
    lifts = np.empty((len(token), 2, num_experts))
    bases = np.zeros((layers + 1, MEAN + 1, experts.shape[1]), dtype=np.float32)  # by how many layers are routed
    for layer in range(layers):
        bases[layer + 1, :, : layer + 1] = basis(layer)
    around = np.stack([surroundings(layer, experts.shape[1]) for layer in range(experts.shape[1])])
    asked = (token, target, first, last)
    _others_frequency(experts, asked, frequency)
    _examples(bank, (token_id, asked), (window, most, distance), (bases, around, frequency), (found, lifts))
    return _descend(found, (frequency, lifts, experts[token, target], target / experts.shape[1] - 0.5))


def _descend(candidates: tuple[Int64, Float32, Int, Float32], rows: tuple[Float32, Float64, Int, Float64]) -> Float64:
    """Adam on all samples at once, the rate falling to zero."""
    start = np.stack([START, np.zeros_like(START)])
    theta, slope, mean, square = start.copy(), np.zeros_like(start), np.zeros_like(start), np.zeros_like(start)
    for step in range(STEPS):
        loss_and_gradient(candidates, rows, theta, slope)
        slope += HOLD * (theta - start)
        mean = 0.9 * mean + 0.1 * slope
        square = 0.99 * square + 0.01 * slope**2
        rate = RATE * (1 - step / STEPS)
        theta = theta - rate * (mean / (1 - 0.9 ** (step + 1))) / (np.sqrt(square / (1 - 0.99 ** (step + 1))) + 1e-8)
    return theta


@njit(cache=True)  # type: ignore[untyped-decorator]
def _others_frequency(experts: Int, asked: tuple[Int64, Int64, Int64, Int64], frequency: Float32) -> None:
    """Write how often the target layer's experts are used in all prompts but the sample's own [R, E], add-one smoothed:
    with its own, a small trace would be trusted too much.
    """
    token, target, first, last = asked
    T, L, k = experts.shape
    E = frequency.shape[1]
    totals = np.ones((L, E), dtype=np.float32)
    for t in range(T):
        for layer in range(L):
            for slot in range(k):
                if experts[t, layer, slot] >= 0:
                    totals[layer, experts[t, layer, slot]] += 1
    for r in range(len(token)):
        frequency[r] = totals[target[r]]
        for t in range(first[r], last[r]):
            for slot in range(k):
                if experts[t, target[r], slot] >= 0:
                    frequency[r, experts[t, target[r], slot]] -= 1
        frequency[r] /= frequency[r].sum()


@njit(cache=True)  # type: ignore[untyped-decorator]
def _examples(
    bank: Bank,
    samples: tuple[Int32, tuple[Int64, Int64, Int64, Int64]],
    limits: tuple[int, int, int],
    tables: tuple[Float32, Float32, Float32],
    written: tuple[tuple[Int64, Float32, Int, Float32], Float64],
) -> None:
    """Write the candidates of each sample, as `loss_and_gradient` takes them, and the log lifts [R, 2, E]; tables hold
    `terms.basis` by routed layers, `terms.surroundings` by target and the frequency [R, E].
    """
    (experts, weights), index = bank
    token_id, (token, target, first, last) = samples
    window, most, distance = limits
    bases, around, frequency = tables
    (starts, terms, voted, parts), lifts = written
    L, E = experts.shape[1], frequency.shape[1]
    now, before = np.zeros((L, E + 1), dtype=np.float32), np.zeros((L, E + 1), dtype=np.float32)
    part = np.zeros(experts.shape[2], dtype=np.float32)
    counts = np.zeros((2, E))
    candidates = room(window, most)
    row, follows, age, same = candidates
    place = 0
    for r in range(len(token)):
        t, routed = token[r], target[r] - distance + 1
        spread(experts, weights, t, routed, now)
        before[:] = 0
        if t > first[r]:
            spread(experts, weights, t - 1, L, before)
        since = max(t - first[r] - window, 0)
        asking = (token_id[first[r] : t], token_id[t], t - first[r], since)
        counts[:] = 0
        for c in range(gather(asking, index, (most, first[r], last[r]), candidates)):
            other = row[c] + first[r] if age[c] > 0 else row[c]
            if not shares(experts, weights, other, target[r], part):
                continue
            terms[place] = 0
            for term in range(MEAN + 1):
                terms[place, term] = likeness(now, experts, weights, other, bases[routed, term, :routed])
            if follows[c]:
                for term in range(around.shape[1]):
                    terms[place, BEFORE + term] = likeness(before, experts, weights, other - 1, around[target[r], term])
            if age[c] > 0:
                terms[place, AGE] = -np.log(age[c])
                count_set(experts[other, target[r]], FADE ** age[c], counts)
            else:
                terms[place, BANK] = 1
            for tokens in range(same[c]):
                terms[place, SAME + tokens] = 1
            voted[place], parts[place] = experts[other, target[r]], part
            place += 1
        starts[r + 1] = place
        log_lifts(counts, frequency[r], lifts[r])
