"""What a running model's slots hold and what it did so far, seen from another thread. Changes nothing, stops nothing.

It reads what the run keeps anyway, without a lock: of a change that happens meanwhile, a part may be seen, and the rest
at the next look. Once the run is over, everything is exact.
"""

from dataclasses import dataclass
from time import perf_counter
from typing import Any, final

import numpy as np

from foregate.arrays import Int
from foregate.runtime.fetch import Fetch
from foregate.runtime.telemetry import Telemetry
from foregate.spec import MoESpec

ABSENT, RESIDENT, USED, GUESSED, READING, GUESSING = range(6)
"""Of an expert: in no slot; in a slot; the same, and its layer used it when it ran last; read ahead, and not used yet;
being read, or waiting to be, as it was demanded; the same by a guess."""


@final
@dataclass(frozen=True)
class Subject:
    """What is watched; it stays the same.

    layers  the model's own name of each mixture layer, by stack: "3", or "encoder 3" where there are two
    """

    model: str
    layers: tuple[str, ...]
    num_experts: int
    top_k: int
    slots: int
    slot_bytes: int


@final
@dataclass(frozen=True, eq=False)
class Look:
    """One moment.

    time   time.perf_counter()
    stats  as `Engine.stats` gives them
    cells  [L, E] see ABSENT
    """

    time: float
    stats: dict[str, Any]
    cells: Int


@final
class Watch:
    """Where to look at an engine from; any thread may."""

    def __init__(self, specs: list[MoESpec], counts: Telemetry, fetch: Fetch, slot_bytes: int) -> None:
        stacks = [spec.stack if len(specs) > 1 else "" for spec in specs]
        names = [f"{s} {i}".strip() for s, spec in zip(stacks, specs, strict=True) for i in spec.layer_ids]
        self.subject = Subject(
            model=specs[-1].model,
            layers=tuple(names),
            num_experts=fetch.num_experts,
            top_k=max(spec.top_k for spec in specs),
            slots=len(fetch.contents()[0]),
            slot_bytes=slot_bytes,
        )
        self._counts, self._fetch = counts, fetch

    def look(self) -> Look:
        """Now."""
        return Look(perf_counter(), self._counts.totals(), self._cells())

    def _cells(self) -> Int:
        key, there, coming, guess = map(np.array, self._fetch.contents())
        shape = len(self.subject.layers), self.subject.num_experts
        cells = np.full(shape[0] * shape[1], ABSENT, np.uint8)
        held = (key >= 0) & (there | coming)
        kind = np.where(there, np.where(guess, GUESSED, RESIDENT), np.where(guess, GUESSING, READING))
        cells[key[held]] = kind[held]
        shaped: Int = cells.reshape(shape)
        for layer, experts in self._fetch.last_used().items():
            row = shaped[layer]
            row[[e for e in experts if row[e] == RESIDENT]] = USED
        return shaped
