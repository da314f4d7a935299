"""Make foregate/data/predicted_eviction.json, the network behind `predicted` eviction, from traces' training prompts.

python recipes/predicted_eviction.py deepseek.parquet tiny.parquet qwen15.parquet gemma.parquet

Tokens are replayed one after another as decoding, so that habits are learned as in a run that starts from nothing. What
is learned is exp(-(wait - 1) / HORIZON) of each expert of the layer that ran, the wait to its next use in passes.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from foregate.arrays import Bool, Float32, Int, Int32
from foregate.memory.habits import FEATURES, Habits, describe, forget_sequence, make_habits, remember
from foregate.memory.network import FILE, HIDDEN, HORIZON
from foregate.splits import split
from foregate.traces.schema import Trace
from foregate.traces.storage import read_trace, replacing

LONGEST = 300  # tokens of a prompt
BATCH = 4096
RATE = 4e-3
NEVER = 1 << 30
SPLITTABLE = 3  # prompts; a trace of fewer is learned from whole, and must not be reported on


def main() -> None:
    """Read the command line, learn, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("traces", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=40_000, help="of each trace at most")
    parser.add_argument("--samples", type=int, default=1_500_000, help="of each trace at most")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=FILE)
    options = parser.parse_args()
    parts = [_examples(path, options) for path in options.traces]
    features, wait = (np.concatenate(part) for part in zip(*parts, strict=True))
    numbers = _learn(features, np.exp(-(wait - 1) / HORIZON).astype(np.float32), options.epochs, options.seed)
    with replacing(options.output) as temporary:
        temporary.write_text(json.dumps(numbers) + "\n")


def stream(trace: Trace) -> tuple[Int32, Bool]:
    """Experts [T, L, k] of the first tokens of each prompt, and the rows where a prompt starts."""
    rows = [np.arange(r.start, min(r.stop, r.start + LONGEST)) for r in trace.sequences()]
    starts = np.concatenate([np.arange(len(r)) == 0 for r in rows])
    return np.ascontiguousarray(trace.experts[np.concatenate(rows)], dtype=np.int32), starts


def _examples(path: Path, options: Any) -> tuple[Float32, Int]:
    """Features [N, FEATURES] and waits [N] of experts drawn at random."""
    trace = read_trace(path, hidden=False)
    train = next(split(trace, "prompt", seed=0)).train if len(trace.prompts) >= SPLITTABLE else trace
    experts, starts = stream(train)
    experts, starts = experts[: options.tokens], starts[: options.tokens]
    cells = experts.shape[0] * experts.shape[1] * train.spec.num_experts
    share = min(1.0, options.samples / cells)
    waits = _waits(experts, train.spec.num_experts)
    habits = make_habits(train.spec.num_layers, train.spec.num_experts)
    room = (
        np.zeros((int(cells * share * 1.01) + 1000, FEATURES), np.float32),
        np.zeros(int(cells * share * 1.01) + 1000),
    )
    count = _collect(habits, (experts, starts), waits, (share, options.seed), room)
    return room[0][:count], room[1][:count].astype(np.int64)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _waits(experts: Int32, num_experts: int) -> Int32:
    """[T, L, E] passes until the next use, 1 = in the next pass."""
    T, L, k = experts.shape
    waits = np.empty((T, L, num_experts), dtype=np.int32)
    following = np.full((L, num_experts), NEVER)
    for t in range(T - 1, -1, -1):
        for layer in range(L):
            for e in range(num_experts):
                waits[t, layer, e] = following[layer, e] - t
            for i in range(k):
                if experts[t, layer, i] >= 0:
                    following[layer, experts[t, layer, i]] = t
    return waits


@njit(cache=True)  # type: ignore[untyped-decorator]
def _collect(
    habits: Habits, tokens: tuple[Int32, Bool], waits: Int32, draw: tuple[float, int], into: tuple[Float32, Any]
) -> int:
    """Replay, and write features and wait of a share of all cells. Returns: how many."""
    experts, starts = tokens
    share, seed = draw
    np.random.seed(seed)  # numba's own generator
    into_features, into_wait = into
    E = waits.shape[2]
    features = np.zeros((FEATURES, E), dtype=np.float32)
    count = 0
    for t in range(len(experts)):
        if starts[t]:
            forget_sequence(habits)
        for layer in range(experts.shape[1]):
            routed = experts[t, layer][experts[t, layer] >= 0]
            remember(habits, layer, routed)
            describe(habits, layer, routed, features)
            for e in range(E):
                if np.random.random() < share and count < len(into_wait):
                    into_features[count] = features[:, e]
                    into_wait[count] = waits[t, layer, e]
                    count += 1
    return count


def _learn(features: Float32, target: Float32, epochs: int, seed: int) -> dict[str, Any]:
    """Adam on the cross entropy; the scaling of the features ends up in the weights."""
    import torch

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    mean, spread = features.mean(0), features.std(0) + 1e-6
    inputs, targets = torch.tensor((features - mean) / spread), torch.tensor(target)
    network = torch.nn.Sequential(torch.nn.Linear(FEATURES, HIDDEN), torch.nn.ReLU(), torch.nn.Linear(HIDDEN, 1))
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    steps = epochs * (len(targets) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    total = 0.0
    for step in range(steps):
        if step % (steps // epochs) == 0:
            order = torch.randperm(len(targets))
            total = 0.0
        rows = order[step % (steps // epochs) * BATCH :][:BATCH]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(network(inputs[rows])[:, 0], targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        total += float(loss.detach())
    print(f"{len(targets)} samples, loss {total / (steps // epochs):.4f}")
    first = network[0].weight.detach().numpy() / spread
    offset = network[0].bias.detach().numpy() - first @ mean
    last, bias = network[2].weight.detach().numpy()[0], network[2].bias.detach().numpy()
    rounded = {"first": first, "offset": offset, "last": last, "bias": bias}
    return {name: np.round(np.asarray(value, dtype=np.float64), 5).tolist() for name, value in rounded.items()}


if __name__ == "__main__":
    main()
