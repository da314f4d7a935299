"""Several strategies on the same prompts in the same bytes of fast memory, as rows. How one of them runs stands in
guesser.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial

from foregate.comparison import missing
from foregate.components import build
from foregate.errors import ForegateError
from foregate.predictors import PREDICTORS
from foregate.simulation.guesser import Guesser, Stage
from foregate.simulation.rows import Row, sums
from foregate.simulation.strategies import CHOSEN, ORACLE, USUAL, Strategy
from foregate.simulation.window import middle, noted, window_of
from foregate.simulation.workers import spread
from foregate.traces.schema import Trace

Advance = Callable[[str, float], None]


def settle(strategies: Mapping[str, Strategy], asked: str | None, trace: Trace) -> dict[str, Strategy]:
    """The strategies with a predictor in place of CHOSEN: the one asked for, or the first usual one."""
    chosen = asked or next(name for name in USUAL if missing(build(PREDICTORS, name), trace) is None)
    return {name: replace(s, predictor=chosen) if s.predictor == CHOSEN else s for name, s in strategies.items()}


def compare_strategies(
    stage: Stage,
    strategies: Mapping[str, Strategy],
    memories: Mapping[str, int],
    batches: Sequence[int | None] = (None,),
    *,
    jobs: int = 1,
    required: Sequence[str] = (),
    moments: int = 0,
    advance: Advance = lambda what, share: None,
) -> tuple[list[Row], dict[str, str]]:
    """The rows, and the strategies that these traces cannot feed with the reason.

    strategies  by name, with no predictor left to choose
    memories    memory, as it was asked for -> slots
    batches     sequences at a time; None: as recorded
    jobs        processes
    required    strategies whose failure is an error
    moments     passes whose events rows hold, the same ones for every strategy of a batch
    advance     told what was done, and the share of all work it was

    Raises: ChoiceError and its kin, for what is required.
    """
    groups: dict[str | None, dict[str, Strategy]] = {}
    for name, strategy in strategies.items():
        groups.setdefault(strategy.predictor, {})[name] = strategy
    rows: list[Row] = []
    left: dict[str, str] = {}
    for text, found in spread(stage, groups, partial(_rows, groups, memories, batches, moments), jobs):
        if not isinstance(found, ForegateError):
            rows += found
        elif named := [name for name in groups[text] if name in required]:
            raise type(found)(f"{' and '.join(named)} cannot be simulated: {found}")
        else:
            left |= dict.fromkeys(groups[text], str(found))
        advance(str(text or "on demand"), 1 / len(groups))
    order = {name: i for i, name in enumerate(strategies)}
    places = {name: i for i, name in enumerate(memories)}
    return sorted(rows, key=lambda r: (places[r.memory], r.batch or 0, order[r.strategy])), left


def row_of(
    guesser: Guesser, name: str, strategy: Strategy, memory: tuple[str, int], batch: int | None, *, moments: int = 0
) -> Row:
    """Simulate one setting; `memory` as it was asked for, and slots; `moments` passes are told event by event.

    Of the oracle, which is there as a bound, the fastest of all its distances and of no guesses at all.
    """
    ways = [strategy]
    if strategy.predictor == ORACLE:
        ways = [replace(strategy, distance=d) for d in range(1, strategy.distance + 1)]
        ways.append(replace(strategy, prefetch="none", distance=1))
    rows = (_row(guesser, name, way, memory, batch, moments) for way in ways)
    return max(rows, key=lambda row: row.tokens_per_second)


def _row(  # noqa: PLR0917
    guesser: Guesser, name: str, strategy: Strategy, memory: tuple[str, int], batch: int | None, moments: int
) -> Row:
    stage = guesser.stage
    text, slots = memory
    window = middle(guesser.said(batch)[0], moments)
    timeline, look = guesser.run(strategy, slots, batch, noted(window) if moments else None)
    return Row(
        strategy=name,
        evict=strategy.evict,
        predictor=strategy.predictor,
        prefetch=strategy.policy(stage.test.spec),
        distance=strategy.distance,
        memory=text,
        slots=slots,
        bytes=slots * stage.shape.slot_bytes,
        batch=batch,
        look_seconds=look,
        knows_future=strategy.knows_future,
        window=window_of(timeline, window) if window else None,
        **asdict(sums(timeline, stage.shape, batch)),
    )


def _rows(  # noqa: PLR0917
    groups: Mapping[str | None, dict[str, Strategy]],
    memories: Mapping[str, int],
    batches: Sequence[int | None],
    moments: int,
    stage: Stage,
    text: str | None,
) -> list[Row]:
    """All that is asked of one predictor."""
    group = groups[text]
    guesser = Guesser(stage, text, max(s.distance for s in group.values()))
    return [
        row_of(guesser, name, strategy, memory, batch, moments=moments)
        for batch in batches
        for memory in memories.items()
        for name, strategy in group.items()
    ]
