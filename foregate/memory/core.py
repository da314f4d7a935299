"""The decisions, compiled: a pass begins, a layer demands its routed set, a layer is read ahead for.

The planner and every replay call these same functions. They answer on `state.desk` and return counts.
"""

import numpy as np

from foregate.arrays import Float32, Int32, Int64
from foregate.memory import predicted
from foregate.memory.compiled import entry, inner, pasted
from foregate.memory.eviction import admit, touch, victim
from foregate.memory.lists import HOME, drop, oldest, push, size
from foregate.memory.ordered import HIGHEST, LOWEST, TIES, ordered
from foregate.memory.predicted import Forecast
from foregate.memory.prefetch import BUDGET, most, review, wanted, worth
from foregate.memory.state import (
    CAME,
    CLAIMED,
    EVICTED,
    EVICTIONS,
    EXPERT,
    FILLED,
    FLOOR,
    GAIN,
    GUESS,
    GUESS_HITS,
    GUESSED,
    GUESSES,
    HIT,
    KEY_IN,
    LAYER,
    LOCKED,
    LOOK_SECONDS,
    MISSES,
    PASS,
    POLICY,
    PREVIOUS,
    PROMISED,
    READS,
    RESIDENT_HITS,
    REST,
    RESTING,
    ROOM,
    RULE,
    SLOT,
    SLOT_IN,
    STALE,
    WAITING,
    WASTED,
    WAVE,
    State,
    moment,
)


@entry
def begin(state: State, forecast: Forecast | None, reset: bool) -> None:
    """A pass starts: no set is in use; guesses for layers that never came are stale."""
    now = state.now
    if forecast is not None:
        predicted.changed(forecast, max(now[LAYER], 0), len(state.known) - 1)
    now[PASS] += 1
    if now[RULE] == BUDGET:
        review(now, state.dials)
    now[LAYER] = -1
    now[FLOOR] = moment(len(state.known), now[PASS], 0, 0) - 1
    now[WAITING] = now[LOCKED] = now[PREVIOUS] = now[READS] = now[WAVE] = 0
    _settle(state.keys, state.lock, state.promised, now)
    if forecast is not None and reset:
        predicted.restart(forecast)


@entry
def demand(state: State, forecast: Forecast | None, layer: int, experts: Int32, future: Int64) -> tuple[int, int]:
    """`layer` needs `experts` [m], unique ids; `future` [m] says when each is used next (empty = nobody knows).

    A set that does not fit is served in waves: while experts wait, the next demand must be for these.

    Returns: served n, reads r. The desk holds EXPERT, SLOT, HIT, GUESSED [n], REST [m - n], and KEY_IN,
    SLOT_IN, EVICTED [r].
    """
    now, desk = state.now, state.desk
    if forecast is not None:
        predicted.changed(forecast, max(now[LAYER], 0), layer)
    if now[WAITING] == 0:
        _arrive(state, layer, experts)
        if forecast is not None:
            predicted.observe(forecast, layer, experts)
    else:
        now[WAVE] += 1
        now[PREVIOUS] = now[LOCKED]
        now[FLOOR] = moment(len(state.known), now[PASS], layer, now[WAVE] - 1)
    lock = moment(len(state.known), now[PASS], layer, now[WAVE])
    limit = _wave_size(state, len(experts))
    hits = _serve_residents(state, forecast, layer, experts, future, limit, lock)
    missing = len(experts) - hits
    reads = missing if len(experts) <= limit else limit - hits
    for r in range(reads):
        i = desk[REST, r]
        key = layer * desk.shape[1] + experts[i]
        _read(state, forecast, key, key, r)
        state.lock[key] = lock
        if forecast is None:
            admit(state, now[POLICY], key, future[i] if len(future) > 0 else 0)
        desk[EXPERT, hits + r], desk[SLOT, hits + r] = experts[i], state.slot_of[key]
        desk[HIT, hits + r] = desk[GUESSED, hits + r] = 0
    for r in range(reads, missing):
        desk[REST, r - reads] = experts[desk[REST, r]]
    state.counts[layer, MISSES] += reads
    now[WAITING] = missing - reads
    now[LOCKED] = hits + reads
    now[READS] += reads
    return hits + reads, reads


@pasted
def asks(state: State) -> bool:
    """Whether anybody is asked in this pass."""
    return state.now[RESTING] == 0  # type: ignore[no-any-return]


@entry
def expect(state: State, forecast: Forecast | None, layer: int, chance: Float32) -> None:
    """`chance` [E]: the probability that each expert is used when `layer` runs next."""
    for e in range(len(chance)):
        state.chance[layer, e] = chance[e]
        state.merit[layer, e] = (ordered(chance[e]) | TIES) - e
    state.known[layer] = True
    state.dials[GAIN] -= state.dials[LOOK_SECONDS]
    if forecast is not None:
        predicted.expect(forecast, layer, chance)


@entry
def speculate(state: State, forecast: Forecast | None, layer: int) -> int:
    """Read ahead for `layer`'s next run what the prefetch wants of its expected experts; the likeliest first.

    Those that are there already are locked until then too. Refused while a set waits for its next wave, and when all
    slots are promised but those that a layer's demand needs.
    Returns: reads r; the desk holds KEY_IN, SLOT_IN, EVICTED [r].
    """
    now, keys, E = state.now, state.keys, state.chance.shape[1]
    if now[WAITING] > 0 or not state.known[layer]:
        return 0
    later = layer > now[LAYER]
    until = moment(len(state.known), now[PASS] if later else now[PASS] + 1, layer, 0) - 1
    distance = layer - now[LAYER] + (0 if later else len(state.known))
    held = now[LOCKED] + now[PREVIOUS]
    held = held if held > now[ROOM] else now[ROOM]
    issued, merit = 0, HIGHEST
    for rank in range(most(now, state.dials, E)):
        merit = _next_best(state.merit, layer, merit)
        best = TIES - (merit & TIES)
        key, chance, gain = layer * E + best, state.chance[layer, best], 0.0
        if now[RULE] == BUDGET:
            gain = worth(now, state.dials, state.counts, len(state.key_of), distance, chance)
        if not wanted(now, state.dials, chance, rank, issued, gain):
            break
        if state.lock[key] >= until and state.slot_of[key] >= 0:
            continue
        if now[PROMISED] >= len(state.key_of) - held:
            break
        if keys[key, HOME] == STALE:  # it has a second chance
            drop(keys, key)
        if forecast is not None:
            predicted.held(forecast, layer, state.slot_of[key])
        if state.slot_of[key] < 0:
            state.dials[GAIN] += gain
            _read(state, forecast, key, -1, issued)
            keys[key, GUESS] = 1
            state.counts[layer, GUESSES] += 1
            now[READS] += 1
            issued += 1
        state.lock[key] = until
        state.promised[now[PROMISED]] = key
        now[PROMISED] += 1
    return issued


@pasted
def _arrive(state: State, layer: int, experts: Int32) -> None:
    """A layer's whole set is known: its residents are locked, its other guesses are stale."""
    now, E = state.now, state.chance.shape[1]
    now[LAYER] = layer
    now[WAVE] = now[PREVIOUS] = now[LOCKED] = now[READS] = 0
    now[FLOOR] = moment(len(state.known), now[PASS], layer, 0)
    for e in experts:
        state.lock[layer * E + e] = now[FLOOR]
    if now[PROMISED] > 0:
        if now[RULE] == BUDGET:
            _compare(state, layer)
        _settle(state.keys, state.lock, state.promised, now)
    state.known[layer] = False


@pasted
def _compare(state: State, layer: int) -> None:
    """What was said of the layer's guesses, and what came."""
    E = state.chance.shape[1]
    for i in range(state.now[PROMISED]):
        key = state.promised[i]
        if key // E == layer and state.keys[key, GUESS] > 0:
            state.dials[CLAIMED] += state.chance[layer, key % E]
            state.dials[CAME] += state.lock[key] == state.now[FLOOR]


@inner
def _settle(keys: Int32, lock: Int64, promised: Int32, now: Int64) -> None:
    """Promises whose layer has been routed are over: guesses that it did not use become the next victims."""
    kept = 0
    after = now[FLOOR] + 1  # members of the set in use are locked until FLOOR: they are promised no longer
    for i in range(now[PROMISED]):
        key = int(promised[i])
        if lock[key] >= after or (now[LAYER] < 0 and lock[key] >= now[FLOOR]):
            promised[kept] = key
            kept += 1
        elif lock[key] < now[FLOOR] and keys[key, GUESS] > 0:
            if keys[key, HOME] >= 0:  # a policy remembered it from earlier; it no longer can
                drop(keys, key)
            push(keys, STALE, key)
    now[PROMISED] = kept


@pasted
def _wave_size(state: State, experts: int) -> int:
    """How many of the waiting experts the next wave may hold; a wave that is not the last takes half of the slots."""
    usable = len(state.key_of) - state.now[PROMISED]
    return experts if experts <= usable - state.now[PREVIOUS] else usable // 2 if usable > 1 else 1


@pasted
def _serve_residents(  # noqa: PLR0917
    state: State, forecast: Forecast | None, layer: int, experts: Int32, future: Int64, limit: int, lock: int
) -> int:
    """Those that are there, in order, up to `limit`; places of all others go to REST.

    `predicted` keeps nothing about residents, and is not told of them.
    """
    desk, keys, E = state.desk, state.keys, state.chance.shape[1]
    served, others, guessed = 0, 0, 0
    for i in range(len(experts)):
        key = layer * E + experts[i]
        if state.slot_of[key] < 0 or served == limit:
            desk[REST, others] = i
            others += 1
            continue
        desk[EXPERT, served], desk[SLOT, served] = experts[i], state.slot_of[key]
        desk[HIT, served], desk[GUESSED, served] = 1, keys[key, GUESS]
        state.lock[key] = lock
        if keys[key, GUESS] > 0:  # the policy gets it now
            keys[key, GUESS] = 0
            if keys[key, HOME] == STALE:
                drop(keys, key)
            if forecast is None:
                admit(state, state.now[POLICY], key, future[i] if len(future) > 0 else 0)
            guessed += 1
        elif forecast is None:
            touch(state, state.now[POLICY], key, future[i] if len(future) > 0 else 0)
        served += 1
    state.counts[layer, GUESS_HITS] += guessed
    state.counts[layer, RESIDENT_HITS] += served - guessed
    return served


@pasted
def _read(state: State, forecast: Forecast | None, key: int, asker: int, row: int) -> None:
    """Give `key` a slot: a free one, a stale guess's, or the one of `asker`'s victim; note it in the desk's `row`."""
    now, keys = state.now, state.keys
    gone = -1
    if now[FILLED] < len(state.key_of):
        slot = now[FILLED]
        now[FILLED] += 1
    else:
        if size(keys, STALE) > 0:
            gone = oldest(keys, STALE)
            drop(keys, gone)
            keys[gone, GUESS] = 0
            state.counts[gone // state.chance.shape[1], WASTED] += 1
        elif forecast is not None:
            gone = int(state.key_of[predicted.victim(forecast, state.slot_of, state.lock, now[FLOOR])])
        else:
            gone = victim(state, now[POLICY], asker)
        slot = state.slot_of[gone]
        state.slot_of[gone] = -1
        state.counts[gone // state.chance.shape[1], EVICTIONS] += 1
    state.slot_of[key] = slot
    state.key_of[slot] = key
    state.desk[KEY_IN, row], state.desk[SLOT_IN, row], state.desk[EVICTED, row] = key, slot, gone


@pasted
def _next_best(merit: Int64, layer: int, before: np.int64) -> np.int64:
    """The highest merit in the layer below `before`."""
    best = LOWEST
    for e in range(merit.shape[1]):
        best = max(best, merit[layer, e] if merit[layer, e] < before else LOWEST)
    return best
