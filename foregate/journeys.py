"""Token journeys: one token's way through all layers, as the Mixtral study keeps it in files. Reading and writing them.

A journey file is the published JSONL cut down to one token, a record per layer. Whole traces are read alike, as many
journeys. What is learned from them is `rulebook`'s business.
"""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foregate.arrays import Int
from foregate.errors import ChoiceError, SourceError, TraceError
from foregate.predictors.levels import leading
from foregate.traces.export import write_jsonl
from foregate.traces.importers import IMPORTERS
from foregate.traces.importers.jsonlines import column, read_table
from foregate.traces.importers.records import SCHEMA, UNKNOWN
from foregate.traces.schema import Trace
from foregate.traces.sources import documents
from foregate.traces.storage import PART, read_trace, replacing

STUDY = "Mixtral 8x7B"
STUDY_SHAPE = (32, 8)  # layers, experts
RECORDS = (".jsonl", ".jsonl.gz", ".jsonl.xz")


@dataclass(frozen=True)
class Reading:
    """How input files are to be taken.

    layers           layers of every journey in a .jsonl file; a trace (.parquet) knows its own
    experts          experts of a layer, where that is known beforehand
    complete_only    leave out tokens that lack layers, instead of refusing them
    unranked_first   take the first listed expert as the primary where the source does not rank
    """

    layers: int = STUDY_SHAPE[0]
    experts: int | None = None
    complete_only: bool = False
    unranked_first: bool = False


@dataclass(frozen=True, eq=False)
class Journeys:
    """Tokens in the order of their files.

    model        its name
    ranked       [T, L, k] routed experts, the primary first
    num_experts  experts of a layer
    files        base names
    left_out     tokens that lacked layers and were left out
    """

    model: str
    ranked: Int
    num_experts: int
    files: tuple[str, ...]
    left_out: int

    @property
    def num_layers(self) -> int:
        """L."""
        return int(self.ranked.shape[1])


def expand(names: Sequence[str]) -> list[Path]:
    """Paths in their order; a pattern that the shell left alone becomes the sorted files that it matches.

    Raises: SourceError for a pattern without a match, or a file that is named twice.
    """
    paths: list[Path] = []
    for name in names:
        matches = [name] if Path(name).exists() or not glob.has_magic(name) else sorted(glob.glob(name))  # noqa: PTH207
        if not matches:
            raise SourceError(f"no file matches {name}")
        paths += map(Path, matches)
    twice = next((p for i, p in enumerate(paths) if p in paths[:i]), None)
    if twice is not None:
        raise SourceError(f"{twice} is given twice; its votes would count twice")
    return paths


def read(paths: Sequence[Path], reading: Reading) -> Journeys:
    """The journeys of all files: .jsonl (also .gz, .xz) or traces.

    Raises: SourceError or TraceError that names the file, where a layer is missing, models differ or nothing is ranked.
    """
    if not paths:
        raise ChoiceError("no files were given; name at least one journey or trace")
    traces = [_trace(path, reading) for path in paths]
    first = traces[0].spec
    for path, trace in zip(paths, traces, strict=True):
        spec = trace.spec
        if (spec.num_layers, spec.top_k) != (first.num_layers, first.top_k):
            raise SourceError(
                f"{path} has {spec.num_layers} layers x {spec.top_k} experts a token, but {paths[0]} has "
                f"{first.num_layers} x {first.top_k}; give files of one model"
            )
    own = {t.spec.num_experts for path, t in zip(paths, traces, strict=True) if not _is_records(path)}
    if len(own) > 1:
        raise SourceError(f"the traces are of models with {min(own)} and {max(own)} experts; give files of one model")
    kept = [_ranked(path, trace, reading) for path, trace in zip(paths, traces, strict=True)]
    ranked = np.concatenate(kept)
    seen = int(ranked.max()) + 1
    experts = max(own, default=reading.experts or seen)
    if seen > experts:
        raise SourceError(f"a journey names expert {seen - 1}, but the traces have {experts}; give files of one model")
    model, experts = _model([trace.spec.model for trace in traces], first.num_layers, experts)
    left_out = sum(map(len, traces)) - len(ranked)
    return Journeys(model, ranked, experts, tuple(p.name for p in paths), left_out)


def read_source(path: Path) -> Trace:
    """A trace, or the published JSONL as one. Hidden states stay on disk."""
    if _is_records(path):
        return IMPORTERS["records"]([path])
    return read_trace(path, hidden=False)


def write(trace: Trace, folder: Path, *, problem: str, start: int, stop: int, dataset: str | None = None) -> list[Path]:
    """Write the tokens start..stop-1 of a problem, a file each, with the bytes that the study's script writes.

    Raises: ChoiceError for a problem or token that is not there, TraceError for a token that lacks a layer; nothing
    is written then.
    """
    prompt = _prompt(trace, problem, dataset)
    own = trace.take_prompts([prompt])
    tokens = {int(p): row for row, p in enumerate(own.position)}
    if not start < stop:
        raise ChoiceError(f"--tokens {start} {stop} names no token; the second number is one past the last")
    absent = next((t for t in range(start, stop) if t not in tokens), None)
    name = trace.prompts[prompt].name
    if absent is not None:
        raise ChoiceError(f"{name} has no token {absent}; it has {min(tokens)} to {max(tokens)}")
    rows = [tokens[t] for t in range(start, stop)]
    _refuse_holes(own.take(np.array(rows)), name, "choose other --tokens")
    folder.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.-]", "_", _number(trace, prompt))
    paths = [folder / f"p{stem}_token_{t}.jsonl" for t in range(start, stop)]
    for row, path in zip(rows, paths, strict=True):
        with replacing(path) as temporary, temporary.open("wb") as out:
            write_jsonl(own.take(slice(row, row + 1)), out)
    return paths


def _prompt(trace: Trace, problem: str, dataset: str | None) -> int:
    found = [
        i
        for i, p in enumerate(trace.prompts)
        if problem in (p.name, _number(trace, i)) and dataset in (None, p.dataset)
    ]
    where = f" in the data set {dataset}" if dataset else ""
    if not found:
        some = ", ".join(p.name for p in trace.prompts[:8]) + (", ..." if len(trace.prompts) > 8 else "")
        raise ChoiceError(f"there is no problem {problem}{where}; the trace has {some}")
    if len(found) > 1:
        sets = " or ".join(dict.fromkeys(trace.prompts[i].dataset for i in found))
        raise ChoiceError(f"problem {problem} is in several data sets; choose one with --dataset: {sets}")
    return found[0]


def _number(trace: Trace, prompt: int) -> str:
    """`0` of `humaneval/0`."""
    return trace.prompts[prompt].name.removeprefix(f"{trace.prompts[prompt].dataset}/")


def _trace(path: Path, reading: Reading) -> Trace:
    if not _is_records(path):
        if not (path.suffix == ".parquet" or path.name.endswith(PART)):
            raise SourceError(f"{path} is neither a journey (.jsonl) nor a trace (.parquet)")
        return read_trace(path, hidden=False)
    _refuse_missing_layers(path, reading.layers)
    return IMPORTERS["records"]([path], experts=reading.experts)


def _refuse_missing_layers(path: Path, layers: int) -> None:
    """A journey that lost its last layer looks whole to the importer."""
    for document in documents([path], ".jsonl"):
        found = {int(n) for n in np.unique(column(document, read_table(document, SCHEMA, infer=True), "layer"))}
        if len(found) > layers:
            raise document.wrong(
                f"has {len(found)} layers, not {layers}; `rules create --layers` says how many there are"
            )
        if len(found) < layers:
            expected = range(0 if max(found) < layers else min(found), max(max(found) + 2, layers))
            missing = next(n for n in expected if n not in found)
            raise document.wrong(
                f"lacks layer {missing} (it has {len(found)} of {layers}); get the whole journey "
                "(`rules create --layers` is for models with fewer)"
            )


def _ranked(path: Path, trace: Trace, reading: Reading) -> Int:
    """[T, L, k] the complete tokens, the primary first."""
    if trace.primary is None and not reading.unranked_first:
        raise TraceError(
            f"{path} does not say which routed expert is the primary, and rules are made of primaries; "
            "take the first listed one with --unranked-first, if that means anything in this source"
        )
    complete = (trace.experts >= 0).all(axis=(1, 2))
    if not reading.complete_only and not complete.all():
        hint = "get them whole, or leave such tokens out with --complete-only"
        _refuse_holes(trace, str(path), hint)
    if not complete.any():
        raise TraceError(f"{path} has no token with all layers; there is nothing to count")
    return leading(trace.experts, trace.weights)[complete]


def _refuse_holes(trace: Trace, where: str, hint: str) -> None:
    holes = np.argwhere((trace.experts < 0).any(axis=2))
    if len(holes):
        row, layer = holes[0].tolist()
        prompt = trace.prompts[int(trace.sequence[row])].name
        raise TraceError(
            f"{where}: token {trace.position[row]} of {prompt} lacks layer {trace.spec.layer_ids[layer]}; {hint}"
        )


def _model(names: Sequence[str], layers: int, experts: int) -> tuple[str, int]:
    """Name and experts. Records do not name their model: those of the study's shape are taken to be the study's."""
    known = next((name for name in names if name != UNKNOWN), None)
    if known is None and layers == STUDY_SHAPE[0] and experts <= STUDY_SHAPE[1]:
        return STUDY, STUDY_SHAPE[1]
    return known or f"a model of {layers} layers x {experts} experts", experts


def _is_records(path: Path) -> bool:
    return path.name.lower().endswith(RECORDS)
