"""What a planner or a replay counted, by layer. No decision here."""

from dataclasses import dataclass, fields

from foregate.arrays import Int64


@dataclass(frozen=True, eq=False)
class Counts:
    """Each is Int64[L], by the layer of the expert.

    resident_hits  uses of experts that were there, and not for a guess's sake
    guess_hits     first uses of experts that a guess brought: the guesses that were right
    misses         reads that a layer had to ask for
    guesses        reads ahead
    evictions      experts that lost their slot
    wasted         of these, guesses that nobody had used
    """

    resident_hits: Int64
    guess_hits: Int64
    misses: Int64
    guesses: Int64
    evictions: Int64
    wasted: Int64

    @property
    def demanded(self) -> int:
        """Uses in all."""
        return int((self.resident_hits + self.guess_hits + self.misses).sum())

    @property
    def hit_rate(self) -> float:
        """Share of uses that found the expert in a slot, whoever brought it; 0 where nothing was used."""
        return 1 - int(self.misses.sum()) / self.demanded if self.demanded else 0.0

    @property
    def cold_precision(self) -> float:
        """Share of the reads ahead that were used before they left; 0 where there were none."""
        guesses = int(self.guesses.sum())
        return int(self.guess_hits.sum()) / guesses if guesses else 0.0

    def arrays(self) -> list[Int64]:
        """In the order above."""
        return [getattr(self, f.name) for f in fields(self)]
