"""What each kind of work takes on one machine for one model, as tables that compiled code reads. No cache, no clock."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from foregate.arrays import Float64, Int64
from foregate.errors import ChoiceError
from foregate.hardware.profile import Profile
from foregate.simulation.shapes import ModelShape, timed_on
from foregate.store.reader import readers


@dataclass(frozen=True, eq=False)
class Costs:
    """Seconds, unless said otherwise; tables by tokens begin with those of none.

    bytes    Int64[L]               of an expert
    read     Float64[2, L, D]       of an expert from disk, from host memory, with 1..D such reads under way
    expert   Float64[L or 1, M + 1] to compute one, by its tokens
    dense    Float64[L or 1, R + 1] of the rest of a mixture layer, by tokens of the pass
    around   Float64[R + 1]         of a pass beside its mixture layers: output embedding, generate, ...
    look     Float64[R + 1]         of a predictor's answer about one layer
    work_slowed, reads_slowed       factors while both are done at once
    idle_slowed                     factor of work while the worker mostly waits

    More tokens than a table has cost as much more as its last rise says.

    Raises: ChoiceError for a time that cannot be.
    """

    bytes: Int64
    read: Float64
    expert: Float64
    dense: Float64
    around: Float64
    look: Float64
    work_slowed: float = 1.0
    reads_slowed: float = 1.0
    idle_slowed: float = 1.0

    def __post_init__(self) -> None:
        layers = len(self.bytes)
        if (np.asarray(self.bytes) < 1).any():
            raise ChoiceError(f"an expert of {int(np.min(self.bytes))} bytes cannot be; give at least 1")
        for name in ("read", "expert", "dense", "around", "look"):
            times = getattr(self, name)
            if not np.isfinite(times).all() or (times < 0).any():
                raise ChoiceError(f"a time of {name} is {_worst(times)}; times are finite and 0 or more: measure anew")
        for name in ("work_slowed", "reads_slowed", "idle_slowed"):
            if not (np.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ChoiceError(f"{name} is {getattr(self, name)}; it must be a factor above 0")
        assert self.read.shape[:2] == (2, layers)
        assert self.read.shape[2] >= 1
        assert self.expert.shape[0] in (1, layers)
        assert self.dense.shape[0] in (1, layers)

    @classmethod
    def of(
        cls,
        profile: Profile,
        shape: ModelShape,
        *,
        tokens: int = 1,
        rows: int = 1,
        threads: int | None = None,
        look_seconds: float | None = None,
    ) -> Self:
        """From a profile.

        tokens, rows  the most of an expert, of a pass
        threads       that read; None: as the runtime would have it
        look_seconds  a predictor's answer about one layer; None: the profile's, as far as it has one

        Raises: ChoiceError for times that the profile lacks.
        """
        profile = timed_on(profile, shape)
        of_expert, of_pass = _counts(max(tokens, 1)), _counts(max(rows, 1))
        slowed = bool(profile.of("work-beside-reads"))

        def look(tokens: int, size: int) -> float:
            return profile.look_seconds(tokens) if look_seconds is None else look_seconds

        return cls(
            bytes=np.array(shape.expert_bytes, np.int64),
            read=_reads(profile, shape.expert_bytes, threads or readers(device=profile.has_device)),
            expert=_tables(of_expert, shape.expert_bytes, profile.expert_seconds, profile.turn_seconds("expert")),
            dense=_tables(of_pass, shape.dense_bytes, profile.dense_seconds, profile.turn_seconds("layer")),
            around=_tables(of_pass, (shape.head_bytes,), profile.head_seconds, profile.turn_seconds("pass"))[0],
            look=_tables(of_pass, (0,), look)[0],
            work_slowed=max(profile.work_slowed, 1.0) if slowed else 1.0,
            reads_slowed=max(profile.reads_slowed, 1.0) if slowed else 1.0,
            idle_slowed=max(profile.idle_slowed, 1.0),
        )

    def reaching(self, tokens: int, rows: int) -> "Costs":
        """Tables for so many tokens of an expert, so many of a pass."""
        return replace(
            self,
            expert=_extended(np.atleast_2d(self.expert), tokens),
            dense=_extended(np.atleast_2d(self.dense), rows),
            around=_extended(self.around[None], rows)[0],
            look=_extended(self.look[None], rows)[0],
        )


def _reads(profile: Profile, expert_bytes: tuple[int, ...], threads: int) -> Float64:
    """[2, L, D]: from disk to where they are computed with, and from host memory.

    A device's link is shared by the copies that are under way; a copy within memory was measured by threads.
    """
    found = np.zeros((2, len(expert_bytes), threads))
    for layer, size in enumerate(expert_bytes):
        for at_once in range(1, threads + 1):
            copy = profile.copy_seconds(size) * at_once if profile.has_device else profile.copy_seconds(size, at_once)
            turn = profile.turn_seconds("read") * at_once  # handed from thread to thread, one read after the other
            disk = profile.read_seconds(size, at_once) + turn + (copy if profile.has_device else 0.0)
            found[:, layer, at_once - 1] = disk, copy
    return found


def _counts(most: int) -> list[int]:
    """1..most, all of them where few, else a few hundred."""
    return sorted(set(np.unique(np.geomspace(1, most, 200).astype(int)).tolist()) | {most})


def _tables(
    counts: list[int], sizes: tuple[int, ...], seconds: Callable[[int, int], float], turn: float = 0.0
) -> Float64:
    """[sizes, counts[-1] + 1] by number, straight lines between `counts`; 0 at 0. `turn` is what is always paid."""
    known = {size: [0.0, *(turn + seconds(n, size) for n in counts)] for size in set(sizes)}
    return np.stack([np.interp(np.arange(counts[-1] + 1), [0, *counts], known[size]) for size in sizes])


def _extended(table: Float64, most: int) -> Float64:
    missing = most + 1 - table.shape[1]
    if missing <= 0:
        return np.ascontiguousarray(table)
    rise = table[:, -1] - table[:, -2] if table.shape[1] > 2 else table[:, -1]
    more = table[:, -1:] + rise[:, None] * np.arange(1, missing + 1)
    return np.ascontiguousarray(np.concatenate([table, more], axis=1))


def _worst(times: Float64) -> float:
    bad = ~np.isfinite(times) | (times < 0)
    return float(np.asarray(times)[bad][0])
