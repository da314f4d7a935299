"""What an importer is, and what all of them do alike: count experts, number layers, say where a trace comes from."""

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import numpy as np

from foregate.arrays import Int
from foregate.errors import ChoiceError, SourceError
from foregate.traces.schema import Prompt, Provenance, Trace, concat
from foregate.traces.sources import Meter


class Importer(Protocol):
    """Turns source files into one trace.

    model    the model's name, where the source does not say or says it badly
    experts  routed experts of a layer; default: what the source says, or else its largest id + 1, with a note
    layers   the model's own numbers of its mixture layers, in order
    dataset  what all prompts' data set is called
    meter    hears of every byte read

    Everything dropped, repaired or inferred becomes a sentence in `provenance.notes`.

    Raises: SourceError that names the file and the line, ChoiceError for options that do not fit the source.
    """

    def __call__(
        self,
        sources: Sequence[Path],
        *,
        model: str | None = None,
        experts: int | None = None,
        layers: tuple[int, ...] | None = None,
        dataset: str | None = None,
        meter: Meter | None = None,
    ) -> Trace:
        """Read all of the sources."""


def origin(sources: Sequence[Path], form: str, *notes: str, ranked: bool = True) -> Provenance:
    """Provenance of an import: base names only, for where files lay on somebody's machine is nobody's business."""
    return Provenance(
        source=tuple(path.name or path.resolve().name for path in sources),
        format=form,
        ranked=ranked,
        notes=notes,
        versions={name: version(name) for name in ("foregate", "pyarrow")},
    )


def expert_count(top: int, given: int | None) -> tuple[int, tuple[str, ...]]:
    """How many experts a layer has, and the note to keep if that was inferred from the largest id."""
    if given is not None:
        return given, ()
    note = f"the source does not say how many experts a layer has; {top + 1} is its largest id + 1 (--experts sets it)"
    return top + 1, (note,)


def impossible(ids: Int, experts: int | None) -> tuple[int, str] | None:
    """The first row of `ids` [N, k] with an expert that cannot be, and the complaint about it."""
    bad = (ids < 0) if experts is None else (ids < 0) | (ids >= experts)
    if not bad.any():
        return None
    row, slot = np.argwhere(bad)[0]
    allowed = "negative" if experts is None else f"outside 0..{experts - 1}"
    return int(row), f"expert {ids[row, slot]} is {allowed}"


def layer_numbers(found: Iterable[int], given: tuple[int, ...] | None, where: str) -> tuple[int, ...]:
    """The layers in order, none skipped: as given, or from the lowest to the highest that the source names.

    Raises: SourceError that names the first skipped or unexpected layer.
    """
    have = set(found)
    wanted = given or tuple(range(min(have), max(have) + 1))
    missing = sorted(set(wanted) - have)
    if missing:
        raise SourceError(
            f"{where} has nothing of layer {missing[0]}; "
            "get the whole file, or name the mixture layers that there are with --layers"
        )
    if have - set(wanted):
        raise SourceError(f"{where} has layer {min(have - set(wanted))}, which --layers does not name")
    return wanted


def names_differ(prompts: Sequence[Prompt], origins: Sequence[str]) -> None:
    """Refuse two sequences of one name. Raises: SourceError that names both origins."""
    seen: dict[tuple[str, str], str] = {}
    for prompt, where in zip(prompts, origins, strict=True):
        key = (prompt.dataset, prompt.name)
        if key in seen:
            raise SourceError(f"prompt {prompt.name} is in {seen[key]} and again in {where}; import one of them")
        seen[key] = where


def join(traces: Sequence[Trace], origins: Sequence[str]) -> Trace:
    """One trace of several sources of one model."""
    names_differ(
        [prompt for trace in traces for prompt in trace.prompts],
        [where for trace, where in zip(traces, origins, strict=True) for _ in trace.prompts],
    )
    return concat(traces)


def fits(layers: tuple[int, ...] | None, count: int, where: str) -> None:
    """Raises: ChoiceError if --layers does not name as many layers as the source has."""
    if layers is not None and len(layers) != count:
        raise ChoiceError(f"--layers names {len(layers)} layers, but {where} has {count}")


def plural(count: int, noun: str) -> str:
    """`3 tokens`, `1 token`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
