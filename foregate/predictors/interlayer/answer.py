"""The inter-layer network's answer in numpy: the same numbers as `interlayer_network` in eval mode. Nothing is learned.

A row's window is read from the query's past, never beyond `seen`; what past tokens say is computed once for all rows
of a block.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.arrays import Bool, Float, Float32, Int64
from foregate.history import Query
from foregate.predictors.chances import softmax
from foregate.predictors.interlayer.batches import Grid, scaled
from foregate.predictors.interlayer.network import PLACES, Sizes

BLOCK = 256  # rows answered at once
Weights = Mapping[str, Float32]


@dataclass(frozen=True, eq=False)
class Memory:
    """Earlier tokens' vectors [P, d]; each row's window into them [n, W], the nearest last, and where it is empty."""

    vectors: Float32
    index: Int64
    hidden: Bool


def answer(weights: Weights, sizes: Sizes, grid: Grid, query: Query) -> tuple[Float32, Float32]:
    """Logits [N, E] and the confidence head's [N]."""
    logits = np.empty((query.rows, grid.experts), dtype=np.float32)
    sure = np.empty(query.rows, dtype=np.float32)
    for begin in range(0, query.rows, BLOCK):
        rows = slice(begin, begin + BLOCK)
        found = _found(weights, sizes, grid, query, rows)
        head = _linear(weights, "head", found)
        logits[rows] = head @ weights["guess"][query.target].T + weights["bias"][query.target]
        sure[rows] = _linear(weights, "sure", found)[:, 0]
    return logits, sure


def _found(weights: Weights, sizes: Sizes, grid: Grid, query: Query, rows: slice) -> Float32:
    """[n, d] what the last layer heard, of some rows."""
    asked = weights["target.weight"][query.target] + weights["distance.weight"][query.distance]
    state = _norm(weights, "norm", _cells(weights, sizes, grid, query, rows) + asked)
    memory = _memory(weights, grid, query, query.seen[rows])
    for i in range(sizes.depth):
        name = f"encoder.{i}."
        heard = _attended(weights, name, sizes, _norm(weights, name + "norm1", state), memory)
        state = state + _linear(weights, name + "join", heard)
        up = np.maximum(_linear(weights, name + "up", _norm(weights, name + "norm2", state)), 0)
        state = state + _linear(weights, name + "down", up)
    return _concluded(weights, sizes, state, asked)


def _cells(weights: Weights, sizes: Sizes, grid: Grid, query: Query, rows: slice) -> Float32:
    """[n, c, d] each cell's set, layer, column, place and scale."""
    routed = query.routed[rows]
    gates = None if query.weights is None else query.weights[rows]
    sets = _sum(weights["expert.weight"], grid.cells(routed, query.layer), grid.shares(gates, query.layer, len(routed)))
    layers = np.maximum(query.layer + 1 - np.arange(grid.context - 1, -1, -1), 0)
    place = np.minimum(np.log2(1 + query.seen[rows]).astype(np.int64), PLACES - 1)
    sets += weights["layer.weight"][layers] + weights["column.weight"]
    sets += weights["place.weight"][place][:, None]
    cells: Float32 = sets[:, [column for _, column in sizes.cells]]
    return cells + weights["scale.weight"][[scale for scale, _ in sizes.cells]]


def _memory(weights: Weights, grid: Grid, query: Query, seen: Int64) -> Memory:
    """Earlier tokens' vectors, and each row's window into them."""
    W, past = grid.window, query.past
    low, high = max(0, int(seen.min()) - W), int(seen.max())
    window = seen[:, None] + np.arange(-W, 0)
    if W == 0 or high == low:
        return Memory(np.empty((0, 0), np.float32), window, window < 0)
    experts = past.experts[low:high]
    gates = None if past.weights is None else past.weights[low:high]
    sets = _sum(
        weights["expert.weight"], grid.cells(experts, query.layer), grid.shares(gates, query.layer, len(experts))
    )
    shares = np.ones((len(experts), grid.top_k), np.float32) if gates is None else scaled(gates[:, query.target])
    goals = _sum(weights["answer.weight"], grid.targets(experts[:, query.target], query.target), shares)
    vectors = _norm(weights, "past", sets.sum(axis=1) + goals)
    return Memory(vectors, np.maximum(window - low, 0), window < 0)


def _attended(weights: Weights, name: str, sizes: Sizes, x: Float32, memory: Memory) -> Float32:
    """[n, c, d] what each cell hears from the row's own cells and its window."""
    n, c, d = x.shape
    H, h = sizes.heads, d // sizes.heads
    q = _heads(_linear(weights, name + "query", x), H) * np.float32(h**-0.5)
    own = _linear(weights, name + "own", x)
    k, v = _heads(own[..., :d], H), _heads(own[..., d:], H)
    scores = q @ k.swapaxes(-1, -2)  # [n, H, c, c]
    _separate(scores, sizes, slice(None))
    if len(memory.vectors) == 0:
        return _joined(softmax(scores) @ v)
    told = _linear(weights, name + "memory", memory.vectors)[memory.index]  # [n, W, 2d]
    mk = told[..., :d].reshape(n, -1, H, h).transpose(0, 2, 3, 1)
    mv = told[..., d:].reshape(n, -1, H, h).transpose(0, 2, 1, 3)
    far = q @ mk + weights[name + "age"][:, None]  # [n, H, c, W]
    far[np.broadcast_to(memory.hidden[:, None, None], far.shape)] = -np.inf
    share = softmax(np.concatenate([scores, far], axis=-1))
    return _joined(share[..., :c] @ v + share[..., c:] @ mv)


def _concluded(weights: Weights, sizes: Sizes, state: Float32, asked: Float32) -> Float32:
    """[n, d] each scale's last layer asks its cells, and what they answer is fused."""
    heard = _norm(weights, "heard", state)
    d, H = heard.shape[2], sizes.heads
    last = np.cumsum(sizes.scales) - 1
    q = _heads(_linear(weights, "ask", heard[:, last] + asked), H) * np.float32((d // H) ** -0.5)
    told = _linear(weights, "told", heard)
    scores = q @ _heads(told[..., :d], H).swapaxes(-1, -2)
    _separate(scores, sizes, last)
    said = _joined(softmax(scores) @ _heads(told[..., d:], H)) + state[:, last]
    if len(last) > 1:
        said = said * softmax(_linear(weights, "fuse", said)[..., 0])[..., None]
    return _norm(weights, "last", said.sum(axis=1))


def _separate(scores: Float, sizes: Sizes, asking: Int64 | slice) -> None:
    """Cells of one scale do not hear another's: scores [..., asking cells, cells]."""
    if len(sizes.scales) > 1:
        scale = np.array([scale for scale, _ in sizes.cells])
        scores[..., scale[asking, None] != scale] = -np.inf


def _sum(table: Float32, ids: Int64, shares: Float32) -> Float32:
    """[..., d] sum of table rows `ids` [..., k], each `shares` [..., k] times."""
    found: Float32 = (shares[..., None, :] @ table[ids])[..., 0, :]
    return found


def _heads(x: Float32, heads: int) -> Float32:
    """[n, c, d] -> [n, H, c, h]."""
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def _joined(x: Float32) -> Float32:
    """[n, H, c, h] -> [n, c, d]."""
    return x.swapaxes(1, 2).reshape(len(x), x.shape[2], -1)


def _linear(weights: Weights, name: str, x: Any) -> Any:
    """One matrix product for all cells of all rows, which is what the processor likes."""
    flat = x.reshape(-1, x.shape[-1]) @ weights[name + ".weight"].T
    flat += weights[name + ".bias"]
    return flat.reshape(*x.shape[:-1], -1)


def _norm(weights: Weights, name: str, x: Float32) -> Float32:
    centred = x - x.mean(axis=-1, keepdims=True)
    centred /= np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.float32(1e-5))
    normed: Float32 = centred * weights[name + ".weight"] + weights[name + ".bias"]
    return normed
