"""What happened, counted per layer and pass. Times are this process's own; nothing is printed."""

from typing import Any, final

import numpy as np

from foregate.arrays import Float64

FIELDS = (
    "demanded",  # experts that a layer's tokens were routed to
    "resident",  # of these, in a slot, and not by a guess
    "in_time",  # of these, read ahead, and there
    "late",  # of these, guessed, but their bytes were not there yet
    "missed",  # of these, neither in a slot nor guessed
    "read",  # experts whose bytes were read, by demand or guess
    "from_host",  # of these, from host memory
    "bytes",  # bytes read from the device for them
    "guessed",  # speculative reads that were issued
    "dropped",  # of these, never read: their layer had passed before it was their turn
    "wasted",  # of these, read (or being read) when they were evicted, without a use
    "used",  # of these, in time or late; what is left of the guessed lies in slots, and may still be used
    "stall",  # seconds waited for bytes
    "predictor",  # seconds in which the predictor and the planner looked ahead
    "compute",  # seconds in the experts
)
WHOLE = 12  # so many fields, the first, are counts; the others are seconds
PLACE = {name: place for place, name in enumerate(FIELDS)}
KEPT = 1 << 14  # passes whose numbers are kept one by one; totals count all


@final
class Telemetry:
    """Counts of a running model; `add` is called some ten times a layer. Any thread may ask for `totals`."""

    def __init__(self, num_layers: int) -> None:
        shape = (num_layers, len(FIELDS))
        self._now = np.zeros(shape)
        self._seconds = {"prefill": 0.0, "decode": 0.0}
        self._tokens = {"prefill": 0, "decode": 0}
        self._passes: list[tuple[int, Float64]] = []  # tokens carried, numbers [L, fields]
        self._tokens_now = 0
        self._kind = "decode"
        # Closed passes, this one and its kind: replaced as a whole, so that other threads count no pass twice.
        self._sums = {"prefill": np.zeros(shape), "decode": np.zeros(shape)}, self._now, self._kind

    def begin(self, tokens: int, prefill: bool) -> None:
        """A pass over so many tokens starts; the one before is over, as far as it is not yet."""
        self._close()
        self._tokens_now = tokens
        self._kind = "prefill" if prefill else "decode"
        self._sums = self._sums[0], self._now, self._kind

    def end(self, seconds: float) -> None:
        """The pass is over; it took so long."""
        self._seconds[self._kind] += seconds
        self._tokens[self._kind] += self._tokens_now
        self._close()

    def take_back(self, tokens: int) -> None:
        """So many tokens of the last pass were guesses of an assistant that the model rejected."""
        self._tokens[self._kind] -= tokens

    def add(self, layer: int, name: str, value: float) -> None:
        """So much more of a field in this pass."""
        self._now[layer, PLACE[name]] += value

    def passes(self) -> tuple[list[int], Float64]:
        """Tokens of each of the last passes, and their numbers [passes, layers, fields] (see FIELDS)."""
        kept = [*self._passes, (self._tokens_now, self._now)] if self._now.any() else self._passes
        shape = (0, *self._now.shape)
        return [tokens for tokens, _ in kept], np.stack([n for _, n in kept]) if kept else np.zeros(shape)

    def totals(self) -> dict[str, Any]:
        """Sums over all passes, with the shares and rates that follow from them (None where nothing was counted)."""
        closed, now, kind = self._sums
        counted = {**closed, kind: closed[kind] + now}
        both = counted["prefill"] + counted["decode"]
        total: dict[str, Any] = {name: float(both[:, place].sum()) for name, place in PLACE.items()}
        for name in FIELDS[:WHOLE]:
            total[name] = int(total[name])
        total["by_layer"] = {name: both[:, place].tolist() for name, place in PLACE.items()}
        for kind, numbers in counted.items():
            demanded = numbers[:, PLACE["demanded"]].sum()
            hits = numbers[:, [PLACE["resident"], PLACE["in_time"]]].sum()
            total[kind] = {
                "tokens": self._tokens[kind],
                "seconds": self._seconds[kind],
                "tokens_per_second": _share(self._tokens[kind], self._seconds[kind]),
                "demanded": int(demanded),
                "hit_share": _share(hits, demanded),
                "resident_share": _share(numbers[:, PLACE["resident"]].sum(), demanded),
                "in_time_share": _share(numbers[:, PLACE["in_time"]].sum(), demanded),
                "bytes": int(numbers[:, PLACE["bytes"]].sum()),
                "stall": float(numbers[:, PLACE["stall"]].sum()),
            }
        total["cold_precision"] = _share(total["used"], total["used"] + total["wasted"])
        return total

    def _close(self) -> None:
        if not self._now.any():
            return
        closed = {**self._sums[0], self._kind: self._sums[0][self._kind] + self._now}
        self._passes.append((self._tokens_now, self._now))
        del self._passes[:-KEPT]
        self._now = np.zeros_like(self._now)
        self._sums = closed, self._now, self._kind


def _share(part: float, whole: float) -> float | None:
    return float(part / whole) if whole else None
