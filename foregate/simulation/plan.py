"""Which setting to run: who leaves, whose guesses are read ahead, which of them and how far, found by simulation.

Settings are chosen on validation prompts; what the chosen one comes to is told of test prompts, once. Writes no file.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import final

from foregate.errors import ForegateError
from foregate.simulation.guesser import Guesser, Stage
from foregate.simulation.rows import sums
from foregate.simulation.strategies import Strategy
from foregate.simulation.workers import spread

EVICTIONS = ("lru", "lfu", "lfu-decay", "arc", "s3fifo", "sieve", "predicted")
PREFETCHES = (
    "top:1",
    "top:k",
    "top:2k",
    "threshold:0.9",
    "threshold:0.7",
    "threshold:0.5",
    "threshold:0.3",
    "budget:64GiB",
)
DISTANCES = (1, 2, 3, 4)
PREDICTORS_TRIED = ("bank", "memory", "ngrams", "cooccur", "counts")
"""Fitted in seconds, answering in microseconds (see docs/leaderboard.md)."""
LEAST_GAIN = 0.01
"""What reading ahead must gain to be recommended: it costs more than simulation knows, power not least."""

Advance = Callable[[str, float], None]


@final
@dataclass(frozen=True)
class Trial:
    """A setting, and its tokens per second on the validation prompts (simulated)."""

    strategy: Strategy
    speed: float


@final
@dataclass(frozen=True)
class Search:
    """What was tried.

    best   recommended: the fastest, but without guesses unless these gain LEAST_GAIN
    quiet  the fastest that asks nobody
    loud   the fastest that reads ahead; None where no predictor could be asked
    lru    reading on demand with LRU
    left   predictors that the traces cannot feed, with the reason
    """

    best: Trial
    quiet: Trial
    loud: Trial | None
    lru: Trial
    trials: tuple[Trial, ...]
    left: dict[str, str]

    @property
    def gain(self) -> float | None:
        """What reading ahead gains over not doing so, as a share; negative where it costs."""
        return None if self.loud is None else self.loud.speed / self.quiet.speed - 1

    def runners_up(self, many: int) -> list[Trial]:
        """The best trials beside the recommended one, each setting once."""
        settings = {t.strategy: t for t in self.trials if t.strategy != self.best.strategy}
        return sorted(settings.values(), key=lambda t: -t.speed)[:many]


def search(
    stage: Stage,
    slots: int,
    *,
    predictors: Sequence[str] = PREDICTORS_TRIED,
    evictions: Sequence[str] = EVICTIONS,
    distances: Sequence[int] = DISTANCES,
    jobs: int = 1,
    advance: Advance = lambda what, share: None,
) -> Search:
    """Try settings on a stage whose prompts are for choosing.

    The cheap part first: evictions, without guesses. Then for every predictor all prefetches and distances with the
    best of these; then, for what came out best, the next best evictions.

    Raises: ChoiceError where nothing can be simulated.
    """
    share = 1 / (len(predictors) + 1)
    alone = Guesser(stage, None, 1)
    plain = [_tried(alone, Strategy("", "", evict=evict), slots) for evict in evictions]
    advance("evictions", share)
    ranked = [t.strategy.evict for t in sorted(plain, key=lambda t: -t.speed)]
    distances = [d for d in distances if d <= stage.shape.layers] or [1]
    trials, left = list(plain), {}
    for text, found in spread(stage, predictors, partial(_all_of, slots, ranked, distances), jobs):
        if isinstance(found, ForegateError):
            left[str(text)] = str(found)
        else:
            trials += found
        advance(str(text), share)
    quiet = max(plain, key=lambda t: t.speed)
    loud = max((t for t in trials if t.strategy.predictor is not None), key=lambda t: t.speed, default=None)
    best = loud if loud is not None and loud.speed >= quiet.speed * (1 + LEAST_GAIN) else quiet
    lru = next((t for t in plain if t.strategy.evict == "lru"), None) or _tried(alone, Strategy("", ""), slots)
    return Search(best, quiet, loud, lru, tuple(trials), left)


def _all_of(
    slots: int, evictions: Sequence[str], distances: Sequence[int], stage: Stage, text: str | None
) -> list[Trial]:
    """Everything that one predictor is tried with; `evictions`, the best one first."""
    assert text is not None
    guesser = Guesser(stage, text, max(distances))
    # Who tells an order only can say neither how many to read nor whom to keep.
    if guesser.tells_chances:
        policies = list(PREFETCHES)
    else:
        policies = [policy for policy in PREFETCHES if policy.startswith("top")]
        evictions = [evict for evict in evictions if evict != "predicted"]
    asked = Strategy("", "", predictor=text, evict=evictions[0])
    tried = [replace(asked, prefetch=policy, distance=d) for d in distances for policy in policies]
    if "predicted" in evictions:  # it may be told what is expected, and nothing be read
        tried += [replace(asked, evict="predicted", distance=d) for d in distances]
    trials = [_tried(guesser, strategy, slots) for strategy in tried]
    best = max(trials, key=lambda t: t.speed).strategy
    others = [replace(best, evict=evict) for evict in evictions[:4] if evict != best.evict]
    return trials + [_tried(guesser, strategy, slots) for strategy in others]


def _tried(guesser: Guesser, strategy: Strategy, slots: int) -> Trial:
    timeline, _ = guesser.run(strategy, slots, None)
    return Trial(strategy, sums(timeline, guesser.stage.shape).tokens_per_second)
