"""What a predictor would have said in a recorded run: by pass, layer and distance, as `expect` is told.

Rows of a pass are put together as foregate/runtime/forecast.py does: where a predictor answers for many tokens at once
as it does for one, the numbers are the same to the last bit. Fits nobody.
"""

import hashlib
from pathlib import Path

import numpy as np
from numba import njit

from foregate.arrays import Float32, Int32, Int64
from foregate.errors import ChoiceError
from foregate.history import Replay
from foregate.predictors.base import Predictor
from foregate.predictors.chances import used_blindly
from foregate.predictors.storage import to_bytes
from foregate.simulation.passes import Passes
from foregate.traces.schema import Trace

MANY = 32
"""Tokens of a pass: with more, nearly every expert is used, and no predictor is asked (as in the runtime)."""


def oracle_chances(passes: Passes, distance: int = 1) -> Float32:
    """Float32[P, L, H, E]: 1 for what will be used, 0 for all else, from every distance. Raises: ChoiceError."""
    found = _nothing(passes, distance)
    _write_future(passes.starts, passes.experts, found)
    return found


def chances_of(
    predictor: Predictor, trace: Trace, passes: Passes, distance: int = 1, *, cache: Path | None = None
) -> Float32:
    """Float32[P, L, H, E]: what a fitted predictor says of layer l in pass p, asked h + 1 layers before; 0 where nobody
    can be asked so early.

    passes  made of this trace
    cache   a folder that keeps what was computed; None: it is computed

    Raises: ChoiceError for an impossible distance, and what the predictor raises on a trace that lacks what it needs.
    """
    if cache is None:
        return _asked(predictor, trace, passes, distance)
    file = cache / f"chances-{digest(predictor, trace, passes, distance)}.npy"
    if not file.exists():
        from foregate.traces.storage import replacing

        cache.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary, temporary.open("wb") as out:
            np.save(out, _asked(predictor, trace, passes, distance), allow_pickle=False)
    kept: Float32 = np.load(file, mmap_mode="c", allow_pickle=False)
    return kept


def digest(predictor: Predictor, trace: Trace, passes: Passes, distance: int) -> str:
    """Names what `chances_of` computes from: other predictors, traces, passes and distances have others."""
    found = hashlib.sha256(f"{distance} {passes.as_decode} {len(passes)}".encode())
    found.update(to_bytes(predictor))
    parts = (trace.token_id, trace.experts, trace.weights, trace.hidden, trace.residual)
    for part in (*parts, trace.step, trace.sequence, passes.row_of, passes.firsts):
        found.update(b"none" if part is None else np.ascontiguousarray(part).tobytes())
    return found.hexdigest()[:32]


def _nothing(passes: Passes, distance: int) -> Float32:
    if distance < 1:
        raise ChoiceError(f"distance is {distance}; guesses look at least 1 layer ahead")
    return np.zeros((len(passes), passes.layers, min(distance, passes.layers), passes.num_experts), np.float32)


def _asked(predictor: Predictor, trace: Trace, passes: Passes, distance: int) -> Float32:
    found = _nothing(passes, distance)
    E, k = passes.num_experts, passes.top_k
    run_of = np.full(len(trace), -1, np.int64)  # the pass of each row; -1 = not run, or too many to ask
    run_of[passes.row_of] = np.repeat(np.arange(len(passes)), passes.rows)
    crowded = passes.rows > MANY
    run_of[np.isin(run_of, np.flatnonzero(crowded))] = -1
    replays = []
    for rows in trace.sequences():
        asked = np.flatnonzero(run_of[rows] >= 0)
        if len(asked):
            replays.append((Replay(trace.take(rows), passes.as_decode), asked, run_of[rows][asked]))
    for target in range(passes.layers):
        for h in range(min(found.shape[2], target + 1)):
            if predictor.probabilities:
                found[:, target, h] = 1  # of being spared, so far
            for replay, asked, runs in replays:
                scores = predictor.predict(replay.query(target - h - 1, target, asked))
                if predictor.probabilities:
                    _spare(np.asarray(scores, np.float32), k, runs, found, target, h)
                else:
                    order = np.argsort(-scores, axis=1, kind="stable")
                    _rank(order, runs, found, target, h)
            if predictor.probabilities:
                found[:, target, h] = 1 - found[:, target, h]
            for p in np.flatnonzero(crowded):
                found[p, target, h] = used_blindly(int(passes.rows[p]), k, E)
    return found


@njit(cache=True)  # type: ignore[untyped-decorator]
def _write_future(starts: Int64, experts: Int32, found: Float32) -> None:
    P, L, H, _ = found.shape
    for p in range(P):
        for layer in range(L):
            for h in range(min(H, layer + 1)):
                for i in range(starts[p * L + layer], starts[p * L + layer + 1]):
                    found[p, layer, h, experts[i]] = 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _spare(shares: Float32, k: int, runs: Int64, found: Float32, target: int, h: int) -> None:  # noqa: PLR0917
    """Multiply in the chances that rows [N, E] do not use an expert, as `foregate.predictors.chances.used` does."""
    one, zero = np.float32(1), np.float32(0)
    for n in range(len(runs)):
        spared = found[runs[n], target, h]
        for e in range(len(spared)):
            spared[e] *= one - min(max(np.float32(k) * shares[n, e], zero), one)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _rank(order: Int64, runs: Int64, found: Float32, target: int, h: int) -> None:
    """Keep the best rank of each expert, as `foregate.predictors.chances.first_come` does."""
    for n in range(len(runs)):
        worth = found[runs[n], target, h]
        for rank in range(order.shape[1]):
            worth[order[n, rank]] = max(worth[order[n, rank]], np.float32(1 / (1 + rank)))
