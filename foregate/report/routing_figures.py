"""Figures of one trace: its loads, what follows what, what a cache gets. All derived from the recorded routing."""

import numpy as np

from foregate.arrays import Float64
from foregate.description import Description
from foregate.report.figures import BASELINE, COLOURS, DASHES, Figure, axes

COLOUR_BAR = {"r": 76}  # margins in pixels; the page adds those that are not named


def load(described: Description, name: str) -> Figure:
    """Heat map of expert use by layer."""
    experts = described.spec.num_experts
    counts = described.counts
    relative = counts * experts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    layer, expert = np.unravel_index(relative.argmax(), relative.shape)
    unused = int((counts == 0).sum())
    return Figure(
        name=name,
        title="Which experts each layer uses",
        caption="Uses of each expert, relative to an even load (1 = used as often as all experts would be if the "
        "router spread its choices evenly). Derived by counting the recorded routing.",
        text=f"Heat map, {described.spec.num_layers} layers by {experts} experts. The most loaded is expert {expert} "
        f"of layer {described.spec.layer_ids[layer]}, with {relative.max():.1f} times the even load. {unused} experts "
        "are never used.",
        data=[
            {
                "type": "heatmap",
                "z": np.round(relative, 3).tolist(),
                "y": _layers(described),
                "customdata": counts.tolist(),
                "colorscale": "Cividis",
                "zmin": 0,
                "colorbar": {"title": {"text": "\u00d7 even"}, "thickness": 12},
                "hovertemplate": "layer %{y}, expert %{x}<br>%{z:.2f} \u00d7 even, %{customdata:,} uses<extra></extra>",
            }
        ],
        layout={
            "height": max(260, min(900, 120 + 16 * described.spec.num_layers)),
            "margin": COLOUR_BAR,
            "xaxis": {"title": {"text": "expert"}, "showgrid": False},
            "yaxis": {"title": {"text": "layer"}, "type": "category", "autorange": "reversed", "showgrid": False},
        },
    )


def entropy(described: Description, name: str) -> Figure:
    """How evenly each layer spreads its load."""
    share = described.entropy_share
    return Figure(
        name=name,
        title="How even the load is",
        caption=f"Entropy of each layer's load as a share of its most, log2({described.spec.num_experts}) = "
        f"{np.log2(described.spec.num_experts):.2f} bits. Low entropy: few experts do most of the work, and keeping "
        "those in fast memory pays. Derived by counting the recorded routing.",
        text=f"Bars, one a layer, from {share.min():.1%} to {share.max():.1%} of the most.",
        data=[
            {
                "type": "bar",
                "x": _layers(described),
                "y": np.round(share, 4).tolist(),
                "customdata": np.round(described.entropy, 3).tolist(),
                "marker": {"color": COLOURS[0]},
                "hovertemplate": "layer %{x}<br>%{y:.1%}, %{customdata:.2f} bits<extra></extra>",
            }
        ],
        layout=axes("layer", "share of log2 E", percent=True, category=True, height=300),
    )


def information(described: Description, name: str) -> Figure:
    """What a layer tells about the next, and what chance alone would show."""
    pairs = [f"{a}\u2192{b}" for a, b in zip(described.spec.layer_ids, described.spec.layer_ids[1:], strict=False)]
    bits, chance = described.information, described.chance
    return Figure(
        name=name,
        title="What a layer tells about the next",
        caption="Mutual information between an expert and the next mixture layer's, in bits, over (expert, expert) "
        "pairs of one token. Derived from the recorded routing. By chance: the same estimate after shuffling the "
        "later layer's tokens; what does not rise above it is only the size of the sample.",
        text=f"Bars for {len(pairs)} pairs of neighbouring layers, from {bits.min():.3f} to {bits.max():.3f} bits; by "
        f"chance at most {chance.max():.3f}.",
        data=[
            {"type": "bar", "name": "this trace", "x": pairs, "y": _rounded(bits), "marker": {"color": COLOURS[0]}},
            {"type": "bar", "name": "by chance", "x": pairs, "y": _rounded(chance), "marker": {"color": COLOURS[1]}},
        ],
        layout={**axes("layers", "bits", category=True, height=300), "barmode": "group", "margin": {"b": 76}},
        wide=True,
    )


def reuse(described: Description, name: str) -> Figure:
    """LRU hit rate against slots, over all layers."""
    slots = list(range(1, described.spec.num_experts + 1))
    rates = described.hit_rates(slots)
    lines = (("lowest layer", rates.min(axis=0)), ("mean", rates.mean(axis=0)), ("highest layer", rates.max(axis=0)))
    quoted = ", ".join(f"{c} slots {rates[:, c - 1].mean():.1%}" for c in described.slots)
    return Figure(
        name=name,
        title="How far a cache without prediction gets",
        caption="Hit rate of an LRU cache with so many slots for each layer, starting empty. Derived from reuse "
        "distances: how many other experts of the layer were used since the last use, in execution order (forward "
        "pass, sequence, position, order within the token).",
        text=f"Rising lines; mean over layers: {quoted}.",
        data=[
            {
                "type": "scatter",
                "mode": "lines",
                "name": label,
                "x": slots,
                "y": _rounded(values),
                "line": {"color": COLOURS[i] if label == "mean" else BASELINE, "dash": DASHES[(i + 3) % 4]},
                "hovertemplate": "%{x} slots: %{y:.1%}<extra>" + label + "</extra>",
            }
            for i, (label, values) in enumerate(lines)
        ],
        layout=axes("slots per layer", "LRU hit rate", percent=True, height=340),
    )


def _layers(described: Description) -> list[str]:
    return [str(i) for i in described.spec.layer_ids]


def _rounded(values: Float64) -> list[float]:
    rounded: list[float] = np.round(values, 4).tolist()
    return rounded
