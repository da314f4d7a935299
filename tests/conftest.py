"""Traces that tests share. Small and random ones are for promises about shape and honesty, never for accuracy."""

from pathlib import Path

import numpy as np
import pytest

from foregate.spec import MoESpec
from foregate.traces.schema import Prompt, Provenance, Trace

SHARED = Path(__file__).parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("the published traces (../shared/data) are not here")
    return SHARED


def make_trace(
    *, prompts: int = 6, tokens: int = 12, layers: int = 5, experts: int = 8, k: int = 2, seed: int = 0, hidden: int = 0
) -> Trace:
    """Random routing with some structure: an expert follows from the token and the layer before, mostly."""
    rng = np.random.default_rng(seed)
    T = prompts * tokens
    token_id = rng.integers(0, 20, T)
    routed = np.zeros((T, layers, k), dtype=np.int8)
    for layer in range(layers):
        base = (token_id * (layer + 3) + (routed[:, layer - 1, 0] if layer else 0)) % experts
        noise = rng.random(T) < 0.3
        first = np.where(noise, rng.integers(0, experts, T), base)
        routed[:, layer] = (first[:, None] + np.arange(k) * 3) % experts
    weights = -np.sort(-rng.random((T, layers, k)).astype(np.float32), axis=2)
    position = np.tile(np.arange(tokens), prompts)
    prefill = tokens // 3
    # Each prompt is prefilled in one pass and then decoded a token a pass.
    step = np.repeat(np.arange(prompts) * tokens, tokens) + np.maximum(position - prefill + 1, 0)
    return Trace(
        spec=MoESpec("random", "decoder", tuple(range(layers)), experts, k),
        sequence=np.repeat(np.arange(prompts), tokens).astype(np.int32),
        position=position.astype(np.int32),
        step=step.astype(np.int32),
        token_id=token_id.astype(np.int32),
        experts=routed,
        weights=weights / weights.sum(axis=2, keepdims=True),
        hidden=rng.normal(size=(T, layers, hidden)).astype(np.float16) if hidden else None,
        residual=rng.normal(size=(T, layers, hidden)).astype(np.float16) if hidden else None,
        prompts=tuple(Prompt(f"set{i % 2}/{i}", f"set{i % 2}", prefill) for i in range(prompts)),
        provenance=Provenance(("random",), "test"),
    )
