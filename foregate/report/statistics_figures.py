"""Figures of the original project's analysis: use per layer, layers compared, sequences, use over time. All derived.

Its heat map of transitions is `expert_pairs.transition`.
"""

import numpy as np

from foregate.arrays import Float64, Int
from foregate.report.figures import COLOURS, DASHES, Data, Figure, axes, choices
from foregate.traces.schema import Trace
from foregate.usage import Usage
from foregate.usagefiles import sample_paths

LAYERS = "statistics-layers"
"""Figures that show one layer at a time change together."""
BINS = 60  # of the time axis
PANELS = 6  # of expert sequences
USES_A_CELL = 4  # fewer would show chance
ROOM = 300_000  # numbers in all views of use over time
SHAPES = ("circle", "square", "diamond", "cross", "x", "triangle-up")
HEAT = {"colorscale": "Cividis", "zmin": 0}
COLOUR_BAR = {"r": 92}  # margin in pixels


def use(usage: Usage, name: str) -> Figure:
    """How often a chosen layer used each expert."""
    views: dict[str, Data] = {}
    texts: dict[str, str] = {}
    for layer, label in enumerate(_labels(usage.layer_ids)):
        counts, even = usage.counts[layer], float(usage.counts[layer].mean())
        expert = int(counts.argmax())
        views[label] = [
            {
                "type": "bar",
                "y": counts.tolist(),
                "customdata": np.round(usage.shares[layer], 5).tolist(),
                "marker": {"color": COLOURS[0]},
                "hovertemplate": "expert %{x}<br>%{y:,} uses, %{customdata:.2%}<extra></extra>",
            },
            {
                "type": "scatter",
                "mode": "lines",
                "x": [-0.5, usage.num_experts - 0.5],
                "y": [even, even],
                "line": {"color": COLOURS[1], "dash": "dash", "width": 2},
                "hovertemplate": "even load: %{y:,.1f} uses<extra></extra>",
                "showlegend": False,
            },
        ]
        texts[label] = (
            f"Bars, one for each of {usage.num_experts} experts. Expert {expert} has most uses, {counts.max():,}; an "
            f"even load is {even:,.1f}; {len(usage.never_used(layer))} have none."
        )
    return Figure(
        name=name,
        title="How often each expert is used",
        caption="Uses of each expert of the chosen layer; the dashed line is an even load. Derived by counting the "
        "recorded routing.",
        layout=axes("expert", "uses", height=340),
        **choices("Layer", views, texts, follows=LAYERS),
        wide=True,
    )


def comparison(usage: Usage, name: str) -> Figure:
    """How much of each layer's work its most used experts do."""
    E = usage.num_experts
    kept = sorted({n for n in (1, E // 8, E // 4, E // 2) if n})
    carried = np.cumsum(-np.sort(-usage.shares, axis=1), axis=1)
    quarter = carried[:, max(1, E // 4) - 1]
    low, high = int(quarter.argmin()), int(quarter.argmax())
    lines: Data = [
        {
            "type": "scatter",
            "mode": "lines+markers",
            "name": f"{n} of {E}, even load {n / E:.1%}",
            "x": [str(i) for i in usage.layer_ids],
            "y": np.round(carried[:, n - 1], 4).tolist(),
            "line": {"color": COLOURS[i], "dash": DASHES[i], "width": 2},
            "marker": {"symbol": SHAPES[i], "size": 7},
            "hovertemplate": "layer %{x}: %{y:.1%}<extra>" + f"the {n} most used</extra>",
        }
        for i, n in enumerate(kept)
    ]
    return Figure(
        name=name,
        title="Layers compared",
        caption="Share of a layer's uses that its most used experts have together: what keeping those in fast memory "
        "would hit if routing stayed as it is. Derived by counting the recorded routing.",
        text=f"{len(kept)} lines over {usage.num_layers} layers. The {max(1, E // 4)} most used of {E} experts have "
        f"{quarter[low]:.1%} of the uses of layer {usage.layer_ids[low]}, the least, and {quarter[high]:.1%} of those "
        f"of layer {usage.layer_ids[high]}, the most.",
        data=lines,
        layout=axes("layer", "share of the layer's uses", percent=True, category=True, height=360),
        wide=True,
    )


def sequences(trace: Trace, samples: int, name: str) -> Figure:
    """Which expert each token of some prompts used, in a chosen layer: what `sample_trace_paths.json` holds."""
    chosen = dict(list(sample_paths(trace, samples).items())[:PANELS])
    views: dict[str, Data] = {}
    texts: dict[str, str] = {}
    for layer, label in enumerate(_labels(trace.spec.layer_ids)):
        views[label] = [
            drawn
            for i, (index, path) in enumerate(chosen.items())
            for drawn in _sequence(trace.prompts[index].name, path[:, layer], i, ranked=trace.primary is not None)
        ]
        different = [len(np.unique(path[:, layer])) for path in chosen.values()]
        texts[label] = (
            f"A panel for each of {len(chosen)} prompts over its first tokens; they use {min(different)} to "
            f"{max(different)} different experts."
        )
    k = trace.spec.top_k
    shown = "The expert" if k == 1 else f"All {k} experts (filled and joined by the line: the primary)"
    if trace.primary is None:
        shown = f"All {k} experts (the source does not rank them)"
    left_out = f" The first {PANELS} of {samples} samples." if samples > PANELS else ""
    return Figure(
        name=name,
        title="Expert sequences",
        caption=f"{shown} of each of the first tokens of a prompt, a panel a prompt, in the chosen layer. A gap is a "
        f"token without one. Measured: as recorded.{left_out}",
        layout=_panels(len(chosen), trace.spec.num_experts),
        **choices("Layer", views, texts, follows=LAYERS),
        wide=True,
    )


def over_time(trace: Trace, name: str) -> Figure:
    """How the use of a chosen layer's experts changes as the trace runs."""
    relative, edges = _by_time(trace)
    middle = ((edges[:-1] + edges[1:]) / 2).tolist()
    top = float(np.quantile(relative, 0.995))
    views: dict[str, Data] = {}
    texts: dict[str, str] = {}
    for layer, label in enumerate(_labels(trace.spec.layer_ids)):
        views[label] = [
            {
                "type": "heatmap",
                "x": middle,
                "z": np.round(relative[layer], 2).tolist(),
                **HEAT,
                "zmax": round(max(top, 1.0), 2),
                "colorbar": {"title": {"text": "\u00d7 even"}, "thickness": 12},
                "hovertemplate": "expert %{y}, around token %{x:,.0f}<br>%{z:.2f} \u00d7 even<extra></extra>",
            }
        ]
        spread = relative[layer].std(axis=1)
        texts[label] = (
            f"Heat map, {trace.spec.num_experts} experts by {len(middle)} stretches of the trace. Expert "
            f"{int(spread.argmax())} changes most, from {relative[layer, spread.argmax()].min():.1f} to "
            f"{relative[layer, spread.argmax()].max():.1f} times the even load."
        )
    return Figure(
        name=name,
        title="Use over time",
        caption=f"Uses of each expert of the chosen layer in {len(middle)} stretches of equally many tokens, in "
        "execution order, relative to an even load; the brightest shade stands for all above. Stripes along the time "
        "are popularity, edges across it are prompts that differ. Derived by counting the recorded routing.",
        layout={
            "height": 400,
            "margin": COLOUR_BAR,
            "xaxis": {"title": {"text": "tokens run before"}, "showgrid": False},
            "yaxis": {"title": {"text": "expert"}, "showgrid": False},
        },
        **choices("Layer", views, texts, follows=LAYERS),
        wide=True,
    )


def _by_time(trace: Trace) -> tuple[Float64, Float64]:
    """[L, E, B] use relative to an even load in B stretches of the trace, and their edges [B + 1] in tokens."""
    L, E, k = trace.spec.num_layers, trace.spec.num_experts, trace.spec.top_k
    bins = min(BINS, max(len(trace) * k // (USES_A_CELL * E), min(8, len(trace))), max(2, ROOM // (L * E)))
    edges = np.linspace(0, len(trace), max(bins, 1) + 1).round()
    stretch = np.searchsorted(edges, np.arange(len(trace)), side="right") - 1
    experts: Int = trace.experts[np.argsort(trace.step, kind="stable")]
    counts = np.zeros((L, E, len(edges) - 1))
    for layer in range(L):
        rows, places = np.nonzero(experts[:, layer] >= 0)
        np.add.at(counts[layer], (experts[rows, layer, places], stretch[rows]), 1)
    relative: Float64 = counts * E / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return relative, edges


def _sequence(prompt: str, path: Int, number: int, *, ranked: bool) -> Data:
    """path: [tokens, k]. A line through the primaries, markers for the others; markers alone where none is ranked."""
    colour, shape, axis = COLOURS[number], SHAPES[number], f"y{number + 1}"
    drawn: Data = [
        {
            "type": "scatter",
            "mode": "lines+markers" if ranked else "markers",
            "name": prompt,
            "yaxis": axis,
            "y": _gaps(path[:, 0]),
            "line": {"color": colour, "width": 1, "dash": DASHES[number % len(DASHES)]},
            "marker": {"size": 6, "symbol": shape, "color": colour},
            "hovertemplate": "token %{x}: expert %{y}<extra>" + prompt + "</extra>",
        }
    ]
    if path.shape[1] > 1:
        tokens = np.tile(np.arange(len(path)), path.shape[1] - 1)
        drawn.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": f"{prompt}, others",
                "yaxis": axis,
                "x": tokens.tolist(),
                "y": _gaps(path[:, 1:].T.ravel()),
                "marker": {"size": 4 if ranked else 6, "symbol": f"{shape}-open" if ranked else shape, "color": colour},
                "hovertemplate": "token %{x}: expert %{y}<extra>" + prompt + "</extra>",
                "showlegend": False,
            }
        )
    return drawn


def _panels(count: int, experts: int) -> dict[str, object]:
    """A layout of panels above each other, the first on top."""
    gap = 0.08 / count if count > 1 else 0.0
    yaxes = {
        f"yaxis{i + 1}": {
            "title": {"text": "expert"},
            "range": [-0.05 * experts, 1.05 * experts - 1],  # markers stand whole at both ends
            "domain": [max(0.0, 1 - (i + 1) / count + gap), 1 - i / count],
        }
        for i in range(count)
    }
    xaxis = {"title": {"text": "token of the prompt"}, "anchor": f"y{count}"}
    return {"height": 180 + 140 * count, "xaxis": xaxis, **yaxes}


def _gaps(experts: Int) -> list[int | None]:
    return [int(e) if e >= 0 else None for e in experts]


def _labels(layer_ids: tuple[int, ...]) -> list[str]:
    return [f"layer {i}" for i in layer_ids]
