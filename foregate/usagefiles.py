"""The original project's three analysis files: written from a trace, which stays as it is; the counts read back.

What they mean for routing that the original did not have (several experts a token, two stacks, absent experts) says
`docs/statistics.md`.
"""

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from foregate.arrays import Int
from foregate.errors import ChoiceError, SourceError, StorageError
from foregate.moments import METRICS, analysis_of, moments_of
from foregate.traces.schema import Trace
from foregate.traces.storage import replacing
from foregate.usage import Usage, usage_of

MOMENTS, COUNTS, PATHS = FILES = (
    "comprehensive_expert_statistics.json",
    "expert_statistics_3d.json",
    "sample_trace_paths.json",
)
FORMAT = "3D_layer_expert_frequency"
LONGEST = 100  # tokens of a sample's path
MOST = np.iinfo(np.int64).max


def write_statistics(trace: Trace, folder: Path, *, samples: int = 1, overwrite: bool = False) -> list[Path]:
    """Write the three files into a folder, all of them or none.

    samples  prompts whose paths are shown, spread evenly over the trace

    Raises: StorageError if one of them exists and may not be replaced, or the disk refuses; ChoiceError.
    """
    paths = [folder / name for name in FILES]
    for path in paths:
        if path.exists() and not overwrite:
            raise StorageError(f"{path} exists; choose another folder, or replace it with --overwrite")
    usage = usage_of(trace)
    values = (moments_file(usage), counts_file(usage, datetime.now(UTC)), paths_file(trace, samples))
    with ExitStack() as stack:
        for path, content in zip(paths, values, strict=True):
            temporary = stack.enter_context(replacing(path))
            temporary.write_text(text_of(content), encoding="utf-8")
    return paths


def text_of(content: dict[str, Any]) -> str:
    """As the original writes them: two spaces, no line's end at the end."""
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)


def moments_file(usage: Usage) -> dict[str, Any]:
    """What `comprehensive_expert_statistics.json` holds."""
    layers = zip(usage.layer_ids, usage.counts, strict=True)
    return {
        "analysis_type": "comprehensive_expert_statistics",
        "num_layers": usage.num_layers,
        "num_experts": usage.num_experts,
        "metrics_included": list(METRICS),
        "layer_statistics": {str(i): {"layer_id": i, **asdict(moments_of(counts))} for i, counts in layers},
    }


def counts_file(usage: Usage, now: datetime) -> dict[str, Any]:
    """What `expert_statistics_3d.json` holds."""
    layers = list(zip(map(str, usage.layer_ids), usage.counts, strict=True))
    return {
        "format": FORMAT,
        "dimensions": ["layer", "expert", "frequency"],
        "num_experts": usage.num_experts,
        "layers": list(usage.layer_ids),
        "expert_usage_by_layer": {i: {str(e): int(n) for e, n in enumerate(counts)} for i, counts in layers},
        "layer_analysis": {i: asdict(analysis_of(counts)) for i, counts in layers},
        "generation_time": now.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def paths_file(trace: Trace, samples: int) -> dict[str, Any]:
    """What `sample_trace_paths.json` holds: the same samples for every layer, so that they can be followed."""
    chosen = sample_paths(trace, samples)
    return {
        str(i): [
            {
                "sample_id": trace.prompts[index].name,
                "expert_sequence": path[:, layer].ravel().tolist(),
                "sequence_length": path[:, layer].size,
                "dataset_name": trace.prompts[index].dataset,
            }
            for index, path in chosen.items()
        ]
        for layer, i in enumerate(trace.spec.layer_ids)
    }


def sample_paths(trace: Trace, samples: int) -> dict[int, Int]:
    """Index of the prompt -> [tokens, L, k] what its first tokens were routed to, -1 = absent.

    Raises: ChoiceError if there are not so many prompts.
    """
    if not 1 <= samples <= len(trace.prompts):
        raise ChoiceError(f"--samples {samples} is not within 1 to {len(trace.prompts)}, the prompts of this trace")
    every = list(trace.sequences())
    rows = [every[i * len(every) // samples] for i in range(samples)]
    return {int(trace.sequence[r.start]): trace.experts[r][:LONGEST] for r in rows}


def is_counts(path: Path) -> bool:
    """Whether a file is JSON by its first sign, as no trace is."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(64).lstrip().startswith((b"{", b"["))


def read_counts(path: Path) -> Usage:
    """The counts in an `expert_statistics_3d.json`. What else it says of them is counted again, not believed.

    Raises: SourceError that names the file, and the layer or expert that is wrong.
    """
    values = _object(path)
    layers = values.get("expert_usage_by_layer")
    if not isinstance(layers, dict) or not layers:
        other = f"; give the {COUNTS} beside it" if "layer_statistics" in values else ""
        raise SourceError(f"{path} has no expert_usage_by_layer, so it holds no counts of experts{other}")
    ids = {_number(path, layer, "layer"): layer for layer in layers}
    listed = values.get("layers", sorted(ids))
    if len(ids) != len(layers) or not isinstance(listed, list) or sorted(map(repr, listed)) != sorted(map(repr, ids)):
        raise SourceError(f"{path} lists other layers than it has counts of; they must be the same")
    counts = {i: _counts(path, i, layers[ids[i]]) for i in sorted(ids)}
    experts = {i: len(row) for i, row in counts.items()}
    if len(set(experts.values())) > 1:
        i, j = min(experts, key=lambda n: experts[n]), max(experts, key=lambda n: experts[n])
        raise SourceError(f"{path}: layer {i} has {experts[i]} experts and layer {j} has {experts[j]}; all need it")
    said = values.get("num_experts", next(iter(experts.values())))
    if said != next(iter(experts.values())):
        raise SourceError(f"{path} says {said!r} experts, but counts {next(iter(experts.values()))} in each layer")
    return Usage(tuple(counts), np.array(list(counts.values()), dtype=np.int64), str(path))


def _object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise SourceError(f"{path} is not readable JSON ({reason}); copy it or make it again") from error
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} holds a {type(values).__name__}, not the object of an {COUNTS}")
    return values


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(n for n in names if names.count(n) > 1)!r} is there twice")
    return found


def _counts(path: Path, layer: int, uses: object) -> list[int]:
    """One layer's counts, by expert."""
    if not isinstance(uses, dict) or not uses:
        raise SourceError(f"{path}: layer {layer} is not an object of experts and their uses")
    ids = {_number(path, expert, f"layer {layer}: expert"): expert for expert in uses}
    missing = set(range(len(uses))) - set(ids)
    if missing:
        raise SourceError(f"{path}: layer {layer} lacks expert {min(missing)}; an unused one needs a count of 0")
    row = [uses[ids[e]] for e in range(len(ids))]
    for expert, count in enumerate(row):
        if type(count) is not int or not 0 <= count <= MOST:
            raise SourceError(
                f"{path}: layer {layer}, expert {expert} was used {count!r} times; counts are whole numbers from 0"
            )
    if not 0 < sum(row) <= MOST:
        raise SourceError(f"{path}: layer {layer} counts {sum(row)} uses; of such a layer nothing can be said")
    return row


def _number(path: Path, text: str, what: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise SourceError(f"{path}: {what} {text!r} is not a number")
    return int(text)
