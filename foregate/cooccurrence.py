"""Which experts follow which from one mixture layer to the next, and how much that tells. No predictor, no time.

The sample is a pair (expert at layer l, expert at layer l + 1) of one token: a token gives k x k of
them. Pairs of one token are not independent, so formulas for independent samples (Miller-Madow) would misjudge what
chance alone yields; it is found by shuffling the tokens of the later layer and counting again.
"""

import numba
import numpy as np

from foregate.arrays import Bool, Float64, Int, Int64

SHUFFLED_ROWS = 200_000  # tokens to shuffle in all; few tokens get more shuffles, for there chance varies most
MOST_SHUFFLES = 8


def transitions(experts: Int, num_experts: int) -> Int64:
    """[L-1, E, E] tokens that used expert a at a layer and expert b at the next. experts: [T, L, k], -1 = absent."""
    layered = np.ascontiguousarray(experts.swapaxes(0, 1))
    counts: Int64 = count_pairs(layered[:-1], layered[1:], num_experts)
    return counts


def coactivation(experts: Int, num_experts: int) -> Int64:
    """[L, E, E] tokens that used experts a and b at the same layer, and on the diagonal those that used a.
    experts: [T, L, k], -1 = absent.
    """
    layered = np.ascontiguousarray(experts.swapaxes(0, 1))
    counts: Int64 = count_pairs(layered, layered, num_experts)
    return counts


def mutual_information(counts: Int64) -> Float64:
    """[...] bits that the first axis of [..., A, B] counts tells about the second; the plain (plug-in) estimate."""
    total = np.maximum(counts.sum(axis=(-2, -1)), 1)
    joint = _plogp(counts / total[..., None, None]).sum(axis=(-2, -1))
    first = _plogp(counts.sum(axis=-1) / total[..., None]).sum(axis=-1)
    second = _plogp(counts.sum(axis=-2) / total[..., None]).sum(axis=-1)
    bits: Float64 = np.maximum(joint - first - second, 0.0)
    return bits


def chance_information(experts: Int, num_experts: int, *, seed: int = 0) -> Float64:
    """[L-1] bits that the plain estimate shows for so many tokens when neighbouring layers know nothing of each other.

    Each layer keeps its own loads; which token met which is shuffled. Tokens that lack either layer stay out.
    """
    random = np.random.default_rng(seed)
    shuffles = max(1, min(MOST_SHUFFLES, SHUFFLED_ROWS // max(len(experts), 1)))
    present: Bool = np.any(experts >= 0, axis=2)
    bits = np.zeros(experts.shape[1] - 1)
    for layer in range(len(bits)):
        both = present[:, layer] & present[:, layer + 1]
        earlier, later = experts[both, layer], experts[both, layer + 1]
        for _ in range(shuffles):
            shuffled = later[random.permutation(len(later))]
            bits[layer] += mutual_information(count_pairs(earlier[None], shuffled[None], num_experts))[0] / shuffles
    return bits


@numba.njit(cache=True, parallel=True)  # type: ignore[untyped-decorator]
def count_pairs(earlier: Int, later: Int, num_experts: int) -> Int64:
    """[P, E, E] tokens that used a in earlier [P, T, k] and b in later [P, T, k]; P pairs of layers, -1 = absent."""
    pairs, tokens, k = earlier.shape
    counts = np.zeros((pairs, num_experts, num_experts), dtype=np.int64)
    for pair in numba.prange(pairs):
        for token in range(tokens):
            for i in range(k):
                a = earlier[pair, token, i]
                for j in range(k):
                    b = later[pair, token, j]
                    if a >= 0 and b >= 0:
                        counts[pair, a, b] += 1
    return counts


def _plogp(shares: Float64) -> Float64:
    return shares * np.log2(np.where(shares > 0, shares, 1.0))
