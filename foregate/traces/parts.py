"""A trace as parts of whole sequences, so that one larger than memory can be gone through, again and again.

What is in memory at a time: one batch of rows as it is read, the rows of the sequence that its end cut, and the parts
that the caller keeps. Pages are checked against their checksums as in `storage`.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from foregate.arrays import Bool
from foregate.spec import MoESpec
from foregate.traces.schema import Prompt, Trace
from foregate.traces.storage import read_batches, read_shape

ROWS = 1 << 14  # tokens read at once


@dataclass(frozen=True, eq=False)
class Parts:
    """Iterate over it, as often as you like: each item is a Trace of whole sequences, together they are all of them.

    table  the prompts of the source, in order; `chosen` [table] those whose sequences are wanted
    read   gives the source's rows, cut where sequences end, each time with the whole table of prompts
    """

    spec: MoESpec
    table: tuple[Prompt, ...]
    chosen: Bool
    read: Callable[[], Iterator[Trace]]

    def __iter__(self) -> Iterator[Trace]:
        for rows in self.read():
            wanted = self.chosen[rows.sequence]
            if wanted.any():
                yield rows.take(wanted)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Of the wanted sequences, in order."""
        return tuple(prompt for prompt, wanted in zip(self.table, self.chosen, strict=True) if wanted)

    @classmethod
    def of(cls, trace: Trace) -> "Parts":
        """A trace in memory as one part."""
        return cls(trace.spec, trace.prompts, np.ones(len(trace.prompts), np.bool_), lambda: iter((trace,)))

    @classmethod
    def stored(cls, path: Path, *, hidden: bool = False, rows: int = ROWS) -> "Parts":
        """A trace file, some rows at a time. Raises: TraceError as `read_trace`, when it is gone through."""
        spec, prompts, _ = read_shape(path)
        wanted = np.ones(len(prompts), np.bool_)
        return cls(spec, prompts, wanted, lambda: _whole(read_batches(path, rows=rows, hidden=hidden)))

    def take_prompts(self, indices: Sequence[int]) -> "Parts":
        """Only the sequences of some prompts (indices into `prompts`)."""
        chosen = np.zeros_like(self.chosen)
        chosen[np.flatnonzero(self.chosen)[np.asarray(indices, dtype=np.int64)]] = True
        return replace(self, chosen=chosen)


def _whole(batches: Iterator[Trace]) -> Iterator[Trace]:
    """The same rows, cut where sequences end."""
    rest: Trace | None = None
    for batch in batches:
        found = batch if rest is None else _joined(rest, batch)
        cut = int(np.searchsorted(found.sequence, found.sequence[-1]))
        if cut:
            yield _rows(found, slice(0, cut))
        rest = _rows(found, slice(cut, None))
    if rest is not None:
        yield rest


_COLUMNS = ("sequence", "position", "step", "token_id", "experts", "weights", "hidden", "residual")


def _joined(first: Trace, second: Trace) -> Trace:
    """Rows of one file, which share its table of prompts."""
    pairs = ((name, getattr(first, name), getattr(second, name)) for name in _COLUMNS)
    columns: dict[str, Any] = {name: None if a is None else np.concatenate([a, b]) for name, a, b in pairs}
    return replace(first, **columns)


def _rows(trace: Trace, rows: slice) -> Trace:
    """Some rows as copies, with the whole table of prompts."""
    found = ((name, getattr(trace, name)) for name in _COLUMNS)
    columns: dict[str, Any] = {name: None if array is None else array[rows].copy() for name, array in found}
    return replace(trace, **columns)
