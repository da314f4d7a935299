"""What a simulated run was like: totals, by layer, by pass, over time; moves and events where they were asked for."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.arrays import Bool, Float64, Int32, Int64
from foregate.memory.counts import Counts
from foregate.simulation.clock import FIELDS

KINDS = ("read", "compute", "dense", "predictor", "stall")
PLACE = {name: place for place, name in enumerate(FIELDS)}


@dataclass(frozen=True, eq=False)
class Events:
    """What happened between some moments, in the order in which it ended; a Gantt chart's bars.

    kind   Int32[n]  an index of KINDS: read; compute, dense, predictor, stall take turns
    begin  Float64[n], end  seconds since the run began
    run    Int32[n]  the pass in which it ended
    layer  Int32[n]  whose expert is read; else the layer at work (-1: before the first)
    expert Int32[n]  -1 = several, or none
    ahead  Bool[n]   a read that nobody waited for as it began
    """

    kind: Int32
    begin: Float64
    end: Float64
    run: Int32
    layer: Int32
    expert: Int32
    ahead: Bool

    def rows(self) -> list[dict[str, Any]]:
        """As plain values."""
        columns = (self.begin, self.end, self.run, self.layer, self.expert, self.ahead)
        names = ("begin", "end", "pass", "layer", "expert", "ahead")
        values = zip(*(c.tolist() for c in columns), strict=True)
        return [
            {"kind": KINDS[k], **dict(zip(names, row, strict=True))}
            for k, row in zip(self.kind.tolist(), values, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class Timeline:
    """A run of P passes through L layers.

    slots          experts in fast memory
    pass_tokens    Int32[P]
    pass_ends      Float64[P]     seconds since the run began
    prefill        Bool[P]        the pass carries a prefill's tokens
    prompt         Int32[P]       the first of its sequences
    by_pass        Float64[P, F]  FIELDS of foregate.simulation.clock, by the pass in which it was counted
    by_layer       Float64[L, F]  the same, by layer
    counts         what the planner counted
    transfers      Int32[n, 5]    pass * L + the running layer (the first one before it runs, too), key, slot, evicted
                                  key (-1 = none), speculative; None where nobody asked
    events         None where nobody asked
    """

    slots: int
    pass_tokens: Int32
    pass_ends: Float64
    prefill: Bool
    prompt: Int32
    by_pass: Float64
    by_layer: Float64
    counts: Counts
    transfers: Int32 | None = None
    events: Events | None = None

    @property
    def pass_seconds(self) -> Float64:
        """[P] how long each pass took."""
        return np.diff(self.pass_ends, prepend=0.0)

    @property
    def pass_stall(self) -> Float64:
        """[P] seconds of it in which it waited for bytes."""
        return self.of_pass("stall")

    @property
    def seconds(self) -> float:
        """The whole run."""
        return float(self.pass_ends[-1])

    @property
    def tokens_per_second(self) -> float:
        """Over the whole run."""
        return float(_share(self.pass_tokens.sum(), self.seconds) or 0.0)

    @property
    def stall_share(self) -> float:
        """Share of the time in which it waited for bytes."""
        return float(_share(self.pass_stall.sum(), self.seconds) or 0.0)

    def of_pass(self, field: str) -> Float64:
        """[P] of FIELDS."""
        found: Float64 = self.by_pass[:, PLACE[field]]
        return found

    def of_layer(self, field: str) -> Float64:
        """[L] of FIELDS."""
        found: Float64 = self.by_layer[:, PLACE[field]]
        return found

    @property
    def cold_precision(self) -> float | None:
        """Share of the guesses read that were used before they left, as the runtime says it; None if none was."""
        used = int(self.counts.guess_hits.sum())
        return _share(used, used + float(self.of_layer("wasted").sum()))

    def token_seconds(self, prefill: bool = False) -> dict[str, float]:
        """Seconds of a pass, which is the time a token takes: mean, p50, p95 and p99 over decoding passes (or those of
        prefills); empty where there are none.
        """
        seconds = self.pass_seconds[self.prefill == prefill]
        if not len(seconds):
            return {}
        p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
        return {"mean": float(seconds.mean()), "p50": float(p50), "p95": float(p95), "p99": float(p99)}

    def over_time(self, parts: int) -> list[dict[str, float]]:
        """The run in about so many parts of equally many passes: where it was, and the shares and rates there."""
        found = []
        for passes in np.array_split(np.arange(len(self.pass_ends)), parts):
            if len(passes):
                row = self._summary(passes)
                found.append({"pass": int(passes[0]), "ends": float(self.pass_ends[passes[-1]]), **row})
        return found

    def totals(self) -> dict[str, Any]:
        """Sums, with shares and rates; the names that `Engine.stats` has mean the same there."""
        total: dict[str, Any] = {name: float(self.of_layer(name).sum()) for name in FIELDS}
        for name in FIELDS[:11]:
            total[name] = int(total[name])
        total["by_layer"] = {name: self.of_layer(name).tolist() for name in FIELDS}
        for kind, flag in (("prefill", True), ("decode", False)):
            total[kind] = self._summary(np.flatnonzero(self.prefill == flag))
        total["seconds"] = self.seconds
        total["tokens"] = int(self.pass_tokens.sum())
        total["tokens_per_second"] = self.tokens_per_second
        total["token_seconds"] = self.token_seconds()
        total["stall_share"] = self.stall_share
        total["hit_share"] = _share(total["resident"] + total["in_time"], total["demanded"])
        total["cold_precision"] = self.cold_precision
        total["slots"] = self.slots
        return total

    def _summary(self, passes: Int64) -> dict[str, Any]:
        sums = {name: float(self.of_pass(name)[passes].sum()) for name in FIELDS}
        tokens, seconds = int(self.pass_tokens[passes].sum()), float(self.pass_seconds[passes].sum())
        return {
            "tokens": tokens,
            "seconds": seconds,
            "tokens_per_second": _share(tokens, seconds),
            "demanded": int(sums["demanded"]),
            "hit_share": _share(sums["resident"] + sums["in_time"], sums["demanded"]),
            "resident_share": _share(sums["resident"], sums["demanded"]),
            "in_time_share": _share(sums["in_time"], sums["demanded"]),
            "bytes": int(sums["bytes"]),
            "stall": sums["stall"],
        }


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
