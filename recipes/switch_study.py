"""Regenerate docs/switch-study.md: the published inter-layer predictor beside what its task is worth without leaks.

Records both stacks of a Switch Transformer (that of `train_switch.py`, or one by its hub name), compares predictors of
the next sparse layer on prompts they have not seen, and writes page and JSON. It trains no Switch Transformer.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foregate import __version__
from foregate.comparison import Comparison, compare
from foregate.evaluation import Measure
from foregate.models import load
from foregate.traces.prompts import read_prompts
from foregate.traces.record_transformers import Options, record
from foregate.traces.schema import Trace
from foregate.traces.storage import read_trace, replacing

ROOT = Path(__file__).resolve().parent.parent
STACKS = ("encoder", "decoder")
BUDGETS = (1, 3, 5, 10)  # of one routed expert, recall@b is top-b accuracy
# The original predicts two layers and does not say which. After a context of three, the fourth and fifth of six sparse
# layers are those whose published counts give the majority class of 8 % and the static top-10 of 44 %.
AS_PUBLISHED = (3, 4)
# Drawn, not the likeliest token: a small model's likeliest text is the same few tokens for most prompts.
OPTIONS = Options(max_new_tokens=32, batch_size=8, sample=True)

# An encoder row sees no earlier token when replayed as it ran: a window over them would train for what is
# never asked.
WINDOW = {"encoder": 0, "decoder": 16}
# An encoder reads four times as many tokens as its decoder writes: this makes about as many batches of both.
EPOCHS = {"encoder": 5, "decoder": 20}

# Row -> component; {window} and {epochs} are filled in by stack.
ROWS = {
    "chance": "chance",
    "popularity: majority class, static top-b": "popularity",
    "token table": "tokens",
    "co-occurrence with the last layer": "cooccur",
    "rules over three layers": "rules:order=3",
    "`memory` (foregate)": "memory",
    "`bank` (foregate)": "bank",
    "`fusion` (foregate)": "fusion",
    "MLP": "mlp",
    "`interlayer`, baseline": "interlayer:preset=baseline,contexts=3,window={window},epochs={epochs}",
    "`interlayer`, improved": "interlayer:preset=improved,contexts=3,window={window},epochs={epochs}",
    "`interlayer`, enhanced": "interlayer:preset=enhanced,contexts=3,window={window},epochs={epochs}",
}
PUBLISHED = {
    "published, baseline": "33.75 / - / - / -",
    "published, improved": "33.86 / 54.62 / 64.64 / 78.46",
    "published, enhanced": "33.84 / - / - / -",
}


@dataclass(frozen=True)
class Studied:
    """One stack: what it routed, and how well that was predicted."""

    trace: Trace
    found: Comparison

    def value(self, component: str, metric: str, layer: int | None = None, budget: int | None = None) -> Measure:
        """One row of the comparison; KeyError where it has none."""
        wanted = (filled(component, self.trace), metric, layer, budget)
        for m in self.found.measures:
            if (m.predictor, m.metric, m.layer, m.budget) == wanted:
                return m
        raise KeyError(wanted)

    def dropped(self) -> float:
        """Share of (token, layer) cells that no expert took."""
        return float((self.trace.experts < 0).mean())

    def entropy(self) -> list[float]:
        """Load entropy of each layer as a share of its maximum, log2(E)."""
        return [_entropy(self.trace.experts[:, layer], self.trace.spec.num_experts) for layer in self.layers]

    @property
    def budgets(self) -> list[int]:
        """Those that the layers have experts for."""
        return _budgets(self.trace)

    @property
    def layers(self) -> range:
        """All sparse layers."""
        return range(self.trace.spec.num_layers)


def _entropy(experts: Any, num_experts: int) -> float:
    shares = np.bincount(experts[experts >= 0], minlength=num_experts) / max((experts >= 0).sum(), 1)
    return float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum() / np.log(num_experts))


# --- recording and comparing ----------------------------------------------------------------------------------------


def traces(model: str, prompts: str, folder: Path, limit: int | None = None) -> dict[str, Trace]:
    """Each stack's trace; recorded into `folder` unless it holds both already, taken up where it was stopped."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {stack: folder / f"switch.{stack}.parquet" for stack in STACKS}
    if not all(file.exists() for file in files.values()):
        loaded, tokenizer = load(model, dtype="float32")
        texts = read_prompts(prompts, limit)
        path = folder / "switch.parquet"
        record(loaded, tokenizer, texts, path, OPTIONS, name=model, source=prompts, resume=True, progress=_told)
    found = {stack: read_trace(file) for stack, file in files.items()}
    for stack, trace in found.items():
        if trace.spec.model != model:
            raise SystemExit(f"{files[stack]} is of {trace.spec.model}, not of {model}; give another --traces folder")
    return found


def _told(prompts: int, tokens: int) -> None:
    print(f"recorded {prompts} prompts", flush=True)


def filled(component: str, trace: Trace) -> str:
    """The component for a stack."""
    stack = trace.spec.stack
    return component.replace("{window}", str(WINDOW[stack])).replace("{epochs}", str(EPOCHS[stack]))


def study(trace: Trace, components: Sequence[str], done: Path) -> Studied:
    """Split by prompt, one layer ahead, replayed as it ran: tokens of an encoder's pass cannot see each other.

    Each predictor's rows are kept in the folder `done`, so that a stopped study goes on where it was; delete
    it when a predictor has changed.
    """
    found: dict[str, Comparison] = {}
    for component in (filled(component, trace) for component in components):
        kept = done / f"{_fingerprint(trace, component)}.json"
        if not kept.exists():
            print(f"{trace.spec.stack}: {component}", flush=True)
            done.mkdir(parents=True, exist_ok=True)
            with replacing(kept) as temporary:
                temporary.write_text(json.dumps(asdict(_compared(trace, component))), encoding="utf-8")
        values = json.loads(kept.read_text(encoding="utf-8"))
        found[component] = Comparison(**{**values, "measures": [Measure(**m) for m in values["measures"]]})
    measures = [m for component, one in found.items() for m in one.measures if m.predictor == component]
    return Studied(trace, replace(next(iter(found.values())), measures=measures))


def _compared(trace: Trace, component: str) -> Comparison:
    return compare(trace, predictors=[component], budgets=_budgets(trace))


def _budgets(trace: Trace) -> list[int]:
    return [b for b in BUDGETS if b <= trace.spec.num_experts]


def _fingerprint(trace: Trace, component: str) -> str:
    digest = hashlib.sha256(f"{trace.spec}\0{component}\0{__version__}".encode())
    for values in (trace.experts, trace.token_id, trace.sequence):
        digest.update(np.ascontiguousarray(values).tobytes())
    return f"{trace.spec.stack}-{component.partition(':')[0]}-{digest.hexdigest()[:16]}"


# --- the page -------------------------------------------------------------------------------------------------------


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def static_shares(counts: Sequence[Sequence[int]]) -> list[float]:
    """Top-1/3/5/10 of always guessing the layer's most used experts, mean over layers."""
    shares = [np.sort(np.asarray(layer) / np.sum(layer))[::-1].cumsum() for layer in counts]
    return [float(np.mean([layer[b - 1] for layer in shares])) for b in BUDGETS]


def published_static(file: Path) -> str:
    """Static top-1/3/5/10 of the published expert counts, on the two layers that the original predicts."""
    usage = json.loads(file.read_text(encoding="utf-8"))["expert_usage_by_layer"]
    layers = [list(usage[name].values()) for name in sorted(usage, key=int)]
    return " / ".join(f"{share * 100:.2f}" for share in static_shares([layers[i] for i in AS_PUBLISHED]))


def as_published(studied: dict[str, Studied], rows: dict[str, str], static: str) -> str:
    """Top-1 / 3 / 5 / 10 on the original's two layers."""
    dash = ["-"] * len(studied)
    lines = [[title, numbers, *dash] for title, numbers in PUBLISHED.items()]
    for title, component in rows.items():
        cells = [" / ".join(f"{_two_layers(s, component, b) * 100:.2f}" for b in s.budgets) for s in studied.values()]
        lines.append([title, static if component == "popularity" else "-", *cells])
    return markdown(["", "published (128 experts)", *(f"here, {stack}" for stack in studied)], lines)


def _two_layers(studied: Studied, component: str, budget: int) -> float:
    layers = [layer for layer in AS_PUBLISHED if layer in studied.layers]
    return float(np.mean([studied.value(component, "recall", layer, budget).value for layer in layers]))


def ours(studied: Studied, rows: dict[str, str]) -> str:
    """All layers but the first, with intervals, coverage, calibration and cost."""
    header = ["", *(f"top-{b}" for b in studied.budgets), "coverage", "calibration error", "µs", "fit s", "kB"]
    lines = []
    for title, component in rows.items():
        recalls = [studied.value(component, "recall", budget=b) for b in studied.budgets]
        cost = [studied.value(component, metric).value for metric in ("predict_us", "fit_s", "bytes")]
        lines.append(
            [
                title,
                *(_with_interval(m) for m in recalls),
                f"{(recalls[0].coverage or 0.0) * 100:.1f}",
                _calibration(studied, component),
                f"{cost[0]:.0f}",
                f"{cost[1]:.1f}",
                f"{cost[2] / 1000:,.0f}",
            ]
        )
    return markdown(header, lines)


def _with_interval(m: Measure) -> str:
    text = f"{m.value * 100:.1f}"
    return text if m.low is None or m.high is None else f"{text} [{m.low * 100:.1f}, {m.high * 100:.1f}]"


def _calibration(studied: Studied, component: str) -> str:
    try:
        return f"{studied.value(component, 'calibration_error').value:.3f}"
    except KeyError:
        return "-"  # its scores are no probabilities


def stack_facts(studied: dict[str, Studied]) -> str:
    """What each stack's trace is."""
    header = ["", "prompts", "copies left out", "tokens", "tokens tested", "dropped", "load entropy, % of log2(E)"]
    rows = []
    for stack, one in studied.items():
        tested = one.value("popularity", "coverage")
        entropy = " ".join(f"{share * 100:.0f}" for share in one.entropy())
        cells = tested.n // max(len(one.layers) - 1, 1)
        counts = [f"{n:,}" for n in (len(one.trace.prompts), one.found.duplicates, len(one.trace), cells)]
        rows.append([stack, *counts, f"{one.dropped() * 100:.2f} %", entropy])
    return markdown(header, rows)


def about(model: str) -> str:
    """What is known about the model."""
    file = Path(model) / "training.json"
    if not file.exists():
        return f"The model is `{model}`."
    report = json.loads(file.read_text(encoding="utf-8"))
    recipe, held_out = report["recipe"], report["held_out"]
    return (
        f"The model is that of `recipes/train_switch.py`: {report['parameters']:,} parameters, {recipe['steps']:,} "
        f"steps of {recipe['batch']} x {recipe['context']} tokens, {report['seconds'] / 60:.0f} minutes on "
        f"{recipe['threads']} thread(s); {held_out['nats']:.3f} nats per hidden token on held-out files "
        f"(log of the vocabulary: {np.log(recipe['vocabulary']):.2f}). Its prompts are held-out files only."
    )


PAGE = """# The Switch study: layers as context

Written by `recipes/switch_study.py`; do not edit. The published numbers are the original's; those beside popularity
are derived from its published expert counts; all others are measured here.

{about}

{facts}

## As published
Top-1 / 3 / 5 / 10 in %, of the expert of the fourth and fifth of six sparse layers, told the three before it. The
original predicts two layers and does not name them; these two are inferred, from its published counts (which give them
a majority class of 8 % and a static top-10 of 44 %).

{as_published}

## As we measure
Mean over all sparse layers but the first, one layer ahead, in % [95 % interval, bootstrapped over prompts]; µs is one
prediction for one token. Split by prompt: 80 % train, 10 % validation, 10 % test.

{ours}

## What is comparable, and what is not
- **The task is**: one layer ahead, three routed layers as context, one expert to find, top-1 / 3 / 5 / 10.
- **The digits are not**: {experts} experts a layer here, 128 there; another model{small}; other text. A guess is right
  by chance {chance:.2f} % of the time here and 0.78 % there, and how often a static one is right is how uneven the
  load is. Compare each number with the popularity row of its own column, not across columns.
- **The split is not**: the original describes 2,400 context windows cut from 1,200 samples, divided 80 / 20 into
  training and validation, so that windows of one text can stand on both sides; no test set is described, and the
  accuracy in its result files is the best of all epochs. Here whole prompts are on one side, validation chooses the
  epoch, and test is asked once. {files}
- **The context is not**: the original's attention runs over the tokens of its window in both directions. In an encoder
  all tokens do pass a layer together, but here, as everywhere in foregate, a row may read only what its own token and
  earlier steps have routed. In the encoder that is nothing but its own layers, so `memory`, which reads earlier
  tokens, has no coverage there; in the decoder earlier tokens are known.
- **The epochs are not**: 20 of each preset here (5 in the encoder, which has four times the tokens), with its schedule
  scaled to them; 50, 120 and 100 there. An epoch here asks each training token for one layer, drawn anew.
  {left_out}
- A dropped token (its expert was full) has no answer and is not asked for; a decoder that writes token by token drops
  none.
- A majority class of 8 % and a static top-10 of 44 % belong beside the published 33.86 and 78.46: without them a reader
  compares with chance, which is 0.78 %.

    python recipes/train_switch.py build/switch           # the model, about {minutes}
    python recipes/switch_study.py --model build/switch   # this page
    python recipes/switch_study.py --model google/switch-base-8 --prompts build/switch/held_out.jsonl \\
        --traces build/switch-base-8 --out build/switch-base-8.md
"""


def page(model: str, studied: dict[str, Studied], rows: dict[str, str], static: str) -> str:
    """The whole page."""
    spec = studied["encoder"].trace.spec
    trained = (Path(model) / "training.json").exists()
    tables = [f"### {stack.capitalize()}\n{ours(one, rows)}" for stack, one in studied.items()]
    return PAGE.format(
        about=about(model),
        facts=stack_facts(studied),
        as_published=as_published(studied, rows, static),
        ours="\n\n".join(tables),
        experts=spec.num_experts,
        small=", small and briefly trained" if trained else "",
        chance=100 / spec.num_experts,
        files="Windows of one source file may still be on both sides." if trained else "",
        minutes="half an hour on one free core",
        left_out=left_out(rows),
    )


def left_out(rows: dict[str, str]) -> str:
    """A sentence about the page's own rows that were not asked for."""
    missing = [title for title in ROWS if title not in rows]
    return f"Not run for this page: {', '.join(missing)}." if missing else "Every row of the recipe was run."


def main() -> None:
    """Record, compare, write."""
    parser = argparse.ArgumentParser(description="Regenerate docs/switch-study.md and its JSON.")
    parser.add_argument("--model", required=True, help="folder of train_switch.py, or e.g. google/switch-base-8")
    parser.add_argument("--prompts", help="as for `foregate record`  [default: held_out.jsonl in the model's folder]")
    parser.add_argument("--traces", type=Path, default=ROOT / "build" / "switch-traces", help="folder for the traces")
    parser.add_argument("--limit", type=int, default=600, help="prompts to record (default: %(default)s)")
    parser.add_argument("--predictors", nargs="+", help="instead of the page's rows")
    parser.add_argument("--published", type=Path, default=ROOT.parent / "shared" / "data" / "switch-base-128")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "switch-study.md", help="the JSON goes beside it")
    options = parser.parse_args()
    prompts = options.prompts or str(Path(options.model) / "held_out.jsonl")
    titles = {component: title for title, component in ROWS.items()}
    asked = list(ROWS.values()) if options.predictors is None else ["popularity", *options.predictors]
    rows = {titles.get(component, f"`{component}`"): component for component in asked}
    static = published_static(options.published / "expert_statistics_3d.json")
    recorded = traces(options.model, prompts, options.traces, options.limit)
    studied = {stack: study(trace, asked, options.traces / "results") for stack, trace in recorded.items()}
    with replacing(options.out) as temporary:
        temporary.write_text(page(options.model, studied, rows, static), encoding="utf-8")
    measures = {stack: [asdict(m) for m in one.found.measures] for stack, one in studied.items()}
    with replacing(options.out.with_suffix(".json")) as temporary:
        temporary.write_text(json.dumps(measures, indent=0) + "\n", encoding="utf-8")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
