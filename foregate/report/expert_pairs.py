"""Figures of pairs of experts: those that one layer uses together, and those that follow each other through layers.

A menu chooses the layer, or the pair of neighbouring layers; what does not fit the page is left out, and said to be.
"""

from typing import Any

import numpy as np

from foregate.arrays import Float64, Int64
from foregate.description import Description
from foregate.report.figures import COLOURS, Data, Figure, choices, packed, packed_size

FLOWS = 30  # of a Sankey diagram: more cannot be told apart
OVERHEAD = 700  # characters of a view beside its matrix


def together(described: Description, counts: Int64, name: str, room: int) -> Figure:
    """Which experts of a layer a token uses at once. counts: [L, E, E] of foregate.cooccurrence.coactivation."""
    ids, E, k = described.spec.layer_ids, described.spec.num_experts, described.spec.top_k
    shares = [_together(layer) for layer in counts]
    strength = np.array([s.max() for s in shares])
    kept = _kept(strength, room, E)
    labels = {i: f"layer {ids[i]}" for i in kept}
    views = {labels[i]: _heat(shares[i], "expert %{y}, beside it %{x}: %{z:.1%}<extra></extra>") for i in kept}
    texts = {labels[i]: _strongest(shares[i], f"At layer {ids[i]}", "also used") for i in kept}
    even = (k - 1) / max(E - 1, 1)
    return Figure(
        name=name,
        title="Which experts work together",
        caption="Of the tokens that used the expert on the left, the share that used the expert below in the same "
        f"layer; an expert beside itself is left at 0. Even routing would give {even:.1%} everywhere. Derived by "
        f"counting the recorded routing.{_left_out(len(kept), len(ids), 'layers', 'strongest pairs')}",
        layout=_square("expert", "expert"),
        **choices("Layer", views, texts),
    )


def transition(described: Description, name: str, room: int) -> Figure:
    """Which experts follow which, for a chosen pair of neighbouring layers; its matrices take at most `room` bytes."""
    ids, E = described.spec.layer_ids, described.spec.num_experts
    kept = _kept_pairs(described, room)
    shares = {i: described.transitions[i] / np.maximum(described.counts[i], 1)[:, None] for i in kept}
    views = {_pair(ids, i): _heat(shares[i], "expert %{y}, then %{x}: %{z:.1%}<extra></extra>") for i in kept}
    texts = {_pair(ids, i): _strongest(shares[i], f"From layer {ids[i]} to {ids[i + 1]}", "went on to") for i in kept}
    left_out = _left_out(len(kept), len(ids) - 1, "pairs", "most mutual information")
    left_out += " foregate describe --json has all." if left_out else ""
    return Figure(
        name=name,
        title="Which experts follow which",
        caption="Of the tokens that used the expert on the left, the share that used the expert below at the next "
        f"mixture layer. Even routing would give {described.spec.top_k / E:.1%} everywhere. Derived by counting the "
        f"recorded routing.{left_out}",
        layout=_square("expert of the next layer", "expert"),
        **choices("Layers", views, texts),
    )


def flows(described: Description, name: str, room: int, follows: str) -> Figure:
    """The most common transitions as a Sankey diagram, with the menu of the `transition` that is named `follows`."""
    ids, k = described.spec.layer_ids, described.spec.top_k
    kept = _kept_pairs(described, room)
    views = {_pair(ids, i): _flows(described.transitions[i]) for i in kept}
    texts = {_pair(ids, i): _flows_text(described.transitions[i], ids[i], ids[i + 1]) for i in kept}
    return Figure(
        name=name,
        title="The strongest flows",
        caption=f"The {FLOWS} most common pairs of experts that one token used at a layer (left) and at the next "
        f"(right); width: tokens. A token gives {k} \u00d7 {k} pairs. Derived by counting the recorded routing.",
        layout={"height": 460, "margin": {"l": 8, "r": 8, "b": 16}},
        **choices("Layers", views, texts, follows=follows),
    )


def _kept_pairs(described: Description, room: int) -> list[int]:
    return _kept(described.information, room, described.spec.num_experts)


def _pair(ids: tuple[int, ...], layer: int) -> str:
    return f"layers {ids[layer]} \u2192 {ids[layer + 1]}"


def _kept(strength: Float64, room: int, side: int) -> list[int]:
    """Those of which `room` bytes hold a view, in their order; the strongest where not all fit."""
    fit = max(1, room // (packed_size(side) + OVERHEAD))
    kept: list[int] = sorted(np.argsort(-strength, kind="stable")[:fit].tolist())
    return kept


def _left_out(kept: int, of: int, what: str, strongest: str) -> str:
    if kept == of:
        return ""
    return f" To keep the page small, the menu holds the {kept} of {of} {what} with the {strongest}."


def _together(counts: Int64) -> Float64:
    """[E, E] share of a's tokens that used b as well; 0 on the diagonal."""
    shares: Float64 = counts / np.maximum(counts.diagonal(), 1)[:, None]
    np.fill_diagonal(shares, 0.0)
    return shares


def _heat(shares: Float64, hover: str) -> Data:
    return [
        {
            "type": "heatmap",
            "z": packed(shares),
            "colorscale": "Cividis",
            "zmin": 0,
            "colorbar": {"tickformat": ".0%", "thickness": 12},
            "hovertemplate": hover,
        }
    ]


def _flows(counts: Int64) -> Data:
    """A Sankey diagram of the most common pairs."""
    E = len(counts)
    most = [int(p) for p in np.argsort(-counts, axis=None, kind="stable")[:FLOWS] if counts.flat[p] > 0]
    left, right = sorted({p // E for p in most}), sorted({p % E for p in most})
    place = {("left", e): i for i, e in enumerate(left)} | {("right", e): len(left) + i for i, e in enumerate(right)}
    link: dict[str, Any] = {
        "source": [place["left", p // E] for p in most],
        "target": [place["right", p % E] for p in most],
        "value": [int(counts.flat[p]) for p in most],
        "color": "rgba(127,140,155,0.45)",
        "hovertemplate": "expert %{source.label}, then %{target.label}: %{value:,} tokens<extra></extra>",
    }
    node: dict[str, Any] = {
        "label": [str(e) for e in (*left, *right)],
        "color": [COLOURS[0]] * len(left) + [COLOURS[1]] * len(right),
        "thickness": 14,
        "pad": 8,
        "line": {"width": 0},
        "hovertemplate": "expert %{label}: %{value:,} tokens in these flows<extra></extra>",
    }
    return [{"type": "sankey", "arrangement": "snap", "node": node, "link": link}]


def _flows_text(counts: Int64, layer: int, following_layer: int) -> str:
    most = np.sort(counts, axis=None)[::-1][:FLOWS]
    a, b = np.unravel_index(int(counts.argmax()), counts.shape)
    share = most.sum() / max(int(counts.sum()), 1)
    return (
        f"{int((most > 0).sum())} flows from layer {layer} to layer {following_layer}, {share:.1%} of all pairs of "
        f"experts. The widest: from expert {a} to expert {b}, {int(most[0]):,} tokens."
    )


def _strongest(shares: Float64, where: str, then: str) -> str:
    """The largest shares in words."""
    E = len(shares)
    most = np.argsort(-shares, axis=None, kind="stable")[:3].tolist()
    named = [f"of the tokens of expert {p // E}, {shares.flat[p]:.1%} {then} {p % E}" for p in most]
    return f"Heat map, {E} by {E} experts. {where}: {'; '.join(named)}."


def _square(x: str, y: str) -> dict[str, Any]:
    return {
        "height": 460,
        "margin": {"r": 76},
        "xaxis": {"title": {"text": x}, "showgrid": False},
        "yaxis": {"title": {"text": y}, "autorange": "reversed", "showgrid": False},
    }
