"""Changed copies of training batches, so that a network learns not to lean on one cell. Never for what judges it.

Layer dropout puts the mask token where a context layer was; noise puts another expert of the layer where one was; mixup
blends each asked token with another of its run, cells and answers alike. Sub-sequences are cut where runs are made.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.predictors.interlayer.batches import SPAN, Grid

Batch = dict[str, Any]


@dataclass(frozen=True)
class Augmentation:
    """How much of each.

    layers   share of context cells that become the mask token
    noise    share of experts that become another of the same layer
    mixup    of Beta(mixup, mixup), the first one's share; 0 = no mixup
    """

    layers: float = 0.1
    noise: float = 0.05
    mixup: float = 0.2


def augmented(batch: Batch, grid: Grid, amount: Augmentation, rng: np.random.Generator) -> Batch:
    """The batch with some cells hidden or wrong, and `blend` [B] and `partner` [B, SPAN] for mixup."""
    cells = batch["cells"].copy()
    wrong = (rng.random(cells.shape) < amount.noise) & (cells < grid.absent)
    cells[wrong] += rng.integers(grid.experts, size=int(wrong.sum())) - cells[wrong] % grid.experts
    cells[rng.random(cells.shape[:3]) < amount.layers] = grid.mask
    changed = {**batch, "cells": cells}
    if amount.mixup:
        B = len(cells)
        share = rng.beta(amount.mixup, amount.mixup, B).astype(np.float32)
        changed["blend"] = np.maximum(share, 1 - share)
        changed["partner"] = _partners(batch, B, rng)
    return changed


def _partners(batch: Batch, count: int, rng: np.random.Generator) -> Any:
    """[B, SPAN] another asked token with an answer, or the same one where its run has none."""
    draw = rng.random((count, SPAN))
    draw[~(batch["answers"] >= 0).any(axis=2)] = 2  # without an answer: last
    order = draw.argsort(axis=1)
    known = (draw < 2).sum(axis=1, keepdims=True)
    chosen = np.take_along_axis(order, rng.integers(0, np.maximum(known, 1), (count, SPAN)), axis=1)
    return np.where(known > 0, chosen, np.arange(SPAN))
