"""Token journeys: the experts that single tokens went through, as a figure with menus for the prompt and the token.

Takes some prompts of a trace, as many tokens as there is room for. assets/journeys.js draws whichever is chosen; what
is drawn here is the first. Files of journeys, as the Mixtral study keeps them, are foregate.journeys' business.
"""

import base64
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from typing import Any, final

import numpy as np

from foregate.arrays import Float, Float64, Int, Int64
from foregate.report.figures import COLOURS, Figure
from foregate.report.token_texts import Texts, quoted
from foregate.traces.schema import Trace

PROMPTS = 16
START = 1  # the token that is shown first: many models begin every prompt with the same one
ABSENT = 65_535
TOP = 65_535  # what the largest weight is written as
LARGEST, SMALLEST = 22, 6  # pixels of a point


@final
@dataclass(frozen=True, eq=False)
class Journey:
    """Tokens of one prompt: the first ones.

    labels   position and text, or id, of each
    prefill  how many of them were carried by prefill
    experts  [n, L, k], -1 = absent; the primary first where the trace ranks
    weights  [n, L, k] or None
    """

    prompt: str
    labels: tuple[str, ...]
    prefill: int
    experts: Int
    weights: Float64 | None


@final
@dataclass(frozen=True, eq=False)
class Journeys:
    """Some of a trace's prompts. `named`: labels hold the tokens' text."""

    layer_ids: tuple[int, ...]
    num_experts: int
    ranked: bool
    named: bool
    prompts: tuple[Journey, ...]
    all_prompts: int

    @property
    def weighted(self) -> bool:
        """Whether gate weights are known."""
        return all(p.weights is not None for p in self.prompts)

    @property
    def tokens(self) -> int:
        """In all."""
        return sum(len(p.labels) for p in self.prompts)

    @property
    def top(self) -> float:
        """The largest weight; 1 where there is none."""
        return max((float(p.weights.max()) for p in self.prompts if p.weights is not None), default=0.0) or 1.0


def journeys_of(trace: Trace, texts: Texts | None, room: int) -> Journeys:
    """The first tokens of some prompts of each data set, as many as `room` bytes of the page hold."""
    trace = trace if trace.weights is None else _by_weight(trace)
    bounds = list(trace.sequences())
    chosen = _spread(trace, [int(trace.sequence[rows.start]) for rows in bounds])[:PROMPTS]
    _, L, k = trace.experts.shape
    each = max(1, room // len(chosen) // (L * k * 2 * (1 if trace.weights is None else 2) * 4 // 3 + 40))
    found = []
    for index in chosen:
        whole = bounds[index]
        rows = slice(whole.start, min(whole.stop, whole.start + each))
        ids = zip(trace.position[rows].tolist(), trace.token_id[rows].tolist(), strict=True)
        prompt = trace.prompts[int(trace.sequence[rows.start])]
        found.append(
            Journey(
                prompt.name,
                tuple(f"{place}: {_label(token, texts)}" for place, token in ids),
                int(trace.prefill[rows].sum()),
                trace.experts[rows],
                None if trace.weights is None else _known(trace.weights[rows]),
            )
        )
    return Journeys(
        trace.spec.layer_ids,
        trace.spec.num_experts,
        trace.weights is not None or trace.provenance.ranked,
        texts is not None,
        tuple(found),
        len(trace.prompts),
    )


def token_journeys(journeys: Journeys, name: str) -> Figure:
    """One token's path."""
    first = journeys.prompts[0]
    start = min(START, len(first.labels) - 1)
    named = "" if journeys.named else " Tokens are named by their ids: the trace has no text, and no tokenizer is here."
    points = (
        "Points: the experts that the token was routed to at each layer; their size: the gate weight. "
        if journeys.weighted
        else "Points: the experts that the token was routed to at each layer; the source holds no gate weights. "
    )
    line = "The line joins the experts of the largest weight. " if journeys.ranked else ""
    return Figure(
        name=name,
        title="Journey of a token",
        caption=f"{points}{line}Measured: as recorded. The menus hold the first tokens of {len(journeys.prompts)} of "
        f"{journeys.all_prompts:,} prompts.{named}",
        text=f"Prompt {first.prompt}, token {first.labels[start]}. {_path_text(journeys, first, start)}",
        data=_traces(journeys, first, start),
        layout={
            "height": 440,
            "xaxis": {"title": {"text": "layer"}, "type": "category", "range": [-0.5, len(journeys.layer_ids) - 0.5]},
            "yaxis": {"title": {"text": "expert"}, "range": [-0.8, journeys.num_experts - 0.2], "zeroline": False},
            "hovermode": "closest",
            "showlegend": False,
        },
        wide=True,
        script={**_packed(journeys), "first": f"prompt {first.prompt}, token {first.labels[start]}"},
    )


def rows(packed: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All that such a figure's menus hold, from its `script`: a row for each expert of each token and layer."""
    layers, k = packed["layers"], packed["k"]
    for prompt in packed["prompts"]:
        shape = (len(prompt["tokens"]), len(layers), k)
        experts = _decoded(prompt["experts"]).reshape(shape)
        weights = (
            None if prompt["weights"] is None else _decoded(prompt["weights"]).reshape(shape) / TOP * packed["top"]
        )
        for at in map(tuple, np.argwhere(experts != ABSENT).tolist()):
            yield {
                "prompt": prompt["name"],
                "token": prompt["tokens"][at[0]],
                "layer": layers[at[1]],
                "expert": int(experts[at]),
                "weight": None if weights is None else round(float(weights[at]), 5),
            }


def _path_text(journeys: Journeys, prompt: Journey, token: int) -> str:
    """In words; assets/journeys.js says it alike of any other."""
    parts = []
    for place, layer in enumerate(journeys.layer_ids):
        experts = [
            f"{e}{_percent(prompt, token, place, i)}"
            for i, e in enumerate(prompt.experts[token, place].tolist())
            if e >= 0
        ]
        parts.append(f"layer {layer}: {', '.join(experts) or 'none'}")
    return "Experts by layer: " + "; ".join(parts) + "."


def _percent(prompt: Journey, token: int, layer: int, place: int) -> str:
    return "" if prompt.weights is None else f" ({prompt.weights[token, layer, place]:.2f})"


def _traces(journeys: Journeys, prompt: Journey, token: int) -> list[dict[str, Any]]:
    """The line through the primaries where they are known, and the points."""
    experts, layers = prompt.experts[token], [str(i) for i in journeys.layer_ids]
    weights = None if prompt.weights is None else prompt.weights[token]
    at = [(layer, place) for layer, place in np.argwhere(experts >= 0).tolist()]
    size: Any = 11
    if weights is not None:
        size = [round(SMALLEST + (LARGEST - SMALLEST) * float(weights[p]) / journeys.top, 1) for p in at]
    points: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "name": "routed",
        "x": [layers[layer] for layer, _ in at],
        "y": [int(experts[p]) for p in at],
        "customdata": [f", weight {weights[p]:.3f}" if weights is not None else "" for p in at],
        "marker": {"color": COLOURS[0], "opacity": 0.85, "size": size, "line": {"width": 1}},
        "hovertemplate": "layer %{x}: expert %{y}%{customdata}<extra></extra>",
    }
    line = {
        "type": "scatter",
        "mode": "lines",
        "name": "largest weight",
        "x": layers,
        "y": [int(e) if e >= 0 else None for e in experts[:, 0]],
        "line": {"color": COLOURS[1], "width": 2},
        "hoverinfo": "skip",
    }
    return [line, points] if journeys.ranked else [points]


def _packed(journeys: Journeys) -> dict[str, Any]:
    """For assets/journeys.js: numbers as base64 of little-endian uint16."""
    return {
        "layers": [str(i) for i in journeys.layer_ids],
        "k": int(journeys.prompts[0].experts.shape[2]),
        "top": journeys.top,
        "start": START,
        "sizes": [SMALLEST, LARGEST],
        "prompts": [
            {
                "name": p.prompt,
                "prefill": p.prefill,
                "tokens": list(p.labels),
                "experts": _encoded(np.where(p.experts < 0, ABSENT, p.experts.astype(np.int64))),
                "weights": None if p.weights is None else _encoded(np.round(p.weights / journeys.top * TOP)),
            }
            for p in journeys.prompts
        ],
    }


def _encoded(values: Int64 | Float64) -> str:
    return base64.b64encode(values.astype("<u2").tobytes()).decode()


def _decoded(text: str) -> Int:
    return np.frombuffer(base64.b64decode(text), dtype="<u2")


def _known(weights: Float) -> Float64:
    """Weights of absent experts may be anything."""
    return np.clip(np.nan_to_num(weights.astype(np.float64)), 0, None)


def _by_weight(trace: Trace) -> Trace:
    """Each routed set in the order of its weights."""
    assert trace.weights is not None
    order = np.argsort(np.where(trace.experts >= 0, -trace.weights, np.inf), axis=2, kind="stable")
    experts: Int = np.take_along_axis(trace.experts, order, axis=2)
    weights: Float = np.take_along_axis(trace.weights, order, axis=2)
    return replace(trace, experts=experts, weights=weights)


def _spread(trace: Trace, sequences: list[int]) -> list[int]:
    """Places in `sequences`, a prompt of each data set in turn."""
    sets: dict[str, list[int]] = {}
    for place, sequence in enumerate(sequences):
        sets.setdefault(trace.prompts[sequence].dataset, []).append(place)
    return [place for place in chain.from_iterable(zip_longest(*sets.values())) if place is not None]


def _label(token: int, texts: Texts | None) -> str:
    if token < 0:
        return "unknown token"
    return f"token {token}" if texts is None else quoted(texts(token))
