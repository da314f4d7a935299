"""What the inter-layer network reads: runs of tokens with their context layers and target sets as table rows. No torch.

A run is up to `SPAN` tokens of one sequence that are asked about one target layer, after up to `window` tokens before
them. Each token has a cell per context layer; a cell is the routed set, as rows of the table of (layer, expert).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foregate.arrays import Bool, Float, Float32, Int, Int64
from foregate.spec import MoESpec
from foregate.traces.schema import Trace

SPAN = 32


@dataclass(frozen=True)
class Grid:
    """Which cells a row sees.

    context  routed layers before the target, the last one among them (C)
    window   earlier tokens that a row sees, the last ones that it may (W)
    """

    layers: int
    experts: int
    top_k: int
    context: int
    window: int

    @classmethod
    def of(cls, spec: MoESpec, context: int, window: int) -> "Grid":
        """The grid on a model."""
        return cls(spec.num_layers, spec.num_experts, spec.top_k, context, window)

    @property
    def absent(self) -> int:
        """The row of an expert that is not there."""
        return self.layers * self.experts

    @property
    def mask(self) -> int:
        """The row of a layer that is not there: before the first, or hidden by augmentation."""
        return self.absent + 1

    @property
    def rows(self) -> int:
        """How many a table has."""
        return self.absent + 2

    def cells(self, experts: Int, layer: int) -> Int64:
        """[N, C, k] table rows of the context that ends with `layer`, of routed sets [N, >= layer + 1, k]."""
        found = np.full((len(experts), self.context, self.top_k), self.mask, dtype=np.int64)
        first = max(0, layer + 1 - self.context)
        if layer >= 0:
            shift = (np.arange(first, layer + 1) * self.experts)[:, None]
            routed = experts[:, first : layer + 1]
            found[:, self.context - (layer + 1 - first) :] = np.where(routed >= 0, routed + shift, self.absent)
        return found

    def shares(self, weights: Float | None, layer: int, count: int) -> Float32:
        """[N, C, k] how much each expert of a cell counts: its weight, or equally, so that a set's mean is one."""
        found = np.ones((count, self.context, self.top_k), dtype=np.float32)
        first = max(0, layer + 1 - self.context)
        if weights is not None and layer >= 0:
            found[:, self.context - (layer + 1 - first) :] = scaled(weights[:, first : layer + 1])
        return found

    def targets(self, experts: Int, target: int) -> Int64:
        """[N, k] table rows of a target layer's sets [N, k]."""
        return np.where(experts >= 0, experts.astype(np.int64) + target * self.experts, self.absent)


def scaled(weights: Float) -> Float32:
    """Weights [..., k] as multiples of their mean; equal ones where they say nothing."""
    total = weights.astype(np.float32).sum(axis=-1, keepdims=True)
    return np.where(total > 0, weights * weights.shape[-1] / np.where(total > 0, total, 1), 1).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Runs:
    """A trace cut into runs: the last `length` tokens of each are asked; rows before `start` are other sequences'."""

    trace: Trace
    start: Int64  # [R] first row that may be seen
    first: Int64  # [R] first row that is asked
    length: Int64  # [R] how many are

    @classmethod
    def of(cls, trace: Trace, phase: Int64 | None = None) -> "Runs":
        """Runs of SPAN tokens; the first of a sequence is shorter by `phase` [sequences]."""
        start, first, length = [], [], []
        for i, rows in enumerate(trace.sequences()):
            shorter = 0 if phase is None else int(phase[i])
            for begin in range(rows.start - shorter, rows.stop, SPAN):
                start.append(rows.start)
                first.append(max(begin, rows.start))
                length.append(min(begin + SPAN, rows.stop) - max(begin, rows.start))
        return cls(trace, *(np.array(a, dtype=np.int64) for a in (start, first, length)))

    def __len__(self) -> int:
        return len(self.first)

    def batch(self, grid: Grid, runs: Int64, layer: Int64, target: Int64) -> dict[str, Int64 | Float32 | Bool]:
        """Some runs [B], each asked about `target` after `layer`, of M = window + SPAN tokens each.

        cells, cell_shares [B, M, C, k]; targets, target_shares [B, M, k]; answers [B, SPAN, k] expert ids, -1 = none;
        layer, target [B]; there [B, M] whether the token may be seen as an earlier one; seen [B, SPAN]
        """
        trace, W = self.trace, grid.window
        rows = self.first[runs][:, None] + np.arange(-W, SPAN)
        asked = np.arange(-W, SPAN) < self.length[runs][:, None]
        there = (rows >= self.start[runs][:, None]) & asked
        rows = np.where(there, rows, 0)
        B, M, C, k = len(runs), W + SPAN, grid.context, grid.top_k
        cells, shares = np.empty((B, M, C, k), np.int64), np.empty((B, M, C, k), np.float32)
        sets, set_shares = np.empty((B, M, k), np.int64), np.ones((B, M, k), np.float32)
        answers = np.empty((B, SPAN, k), np.int64)
        for b in range(B):
            t, last, goal = rows[b], int(layer[b]), int(target[b])
            weights = None if trace.weights is None else trace.weights[t]
            cells[b] = grid.cells(trace.experts[t], last)
            shares[b] = grid.shares(weights, last, M)
            allowed = trace.experts[t, goal]
            if trace.answers is not None:
                allowed = np.where(trace.answers[t, goal, None], allowed, -1)
            sets[b] = grid.targets(allowed, goal)
            if weights is not None:
                set_shares[b] = scaled(weights[:, goal])
            answers[b] = np.where(there[b, W:, None], allowed[W:], -1)
        seen = np.maximum(0, self.first[runs] - self.start[runs])[:, None] + np.arange(SPAN)
        return {
            "cells": cells,
            "cell_shares": shares,
            "targets": sets,
            "target_shares": set_shares,
            "answers": answers,
            "layer": layer,
            "target": target,
            "there": there,
            "seen": seen,
        }


def questions(grid: Grid, horizon: int, count: int, rng: np.random.Generator) -> tuple[Int64, Int64]:
    """(last routed layer, target) [count] each: any target, any distance up to the horizon, alike."""
    target = rng.integers(0, grid.layers, count)
    distance = rng.integers(1, np.minimum(horizon, target + 1) + 1)
    return target - distance, target


def shuffled(runs: Runs, size: int, rng: np.random.Generator) -> Iterator[Int64]:
    """Batches of runs, those of an epoch in random order."""
    order = rng.permutation(len(runs))
    yield from np.array_split(order, max(1, round(len(runs) / size)))
