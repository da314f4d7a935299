"""The decisions, compiled: a pass begins, a layer demands its routed set, a layer is read ahead for.

The planner and every replay call these same functions. They answer on `state.desk` and return counts.
"""

from numba import njit

from foregate.arrays import Float32, Int32, Int64
from foregate.memory import predicted
from foregate.memory.eviction import admit, foresee, touch, victim
from foregate.memory.interface import PREDICTED
from foregate.memory.lists import drop, home, oldest, push, size
from foregate.memory.predicted import Forecast
from foregate.memory.prefetch import wanted
from foregate.memory.state import (
    EVICTED,
    EVICTIONS,
    EXPERT,
    FILLED,
    FLOOR,
    GUESS_HITS,
    GUESSED,
    GUESSES,
    HIT,
    KEY_IN,
    LAYER,
    LOCKED,
    MAIN,
    MISSES,
    PASS,
    POLICY,
    PREVIOUS,
    PROMISED,
    READS,
    RESIDENT_HITS,
    REST,
    ROOM,
    SLOT,
    SLOT_IN,
    STALE,
    WAITING,
    WASTED,
    WAVE,
    State,
    moment,
)


@njit(cache=True)  # type: ignore[untyped-decorator]
def begin(state: State, forecast: Forecast, reset: bool) -> None:
    """A pass starts: no set is in use; guesses for layers that never came are stale."""
    now = state.now
    now[PASS] += 1
    now[LAYER] = -1
    now[FLOOR] = moment(state, now[PASS], 0, 0) - 1
    now[WAITING] = now[LOCKED] = now[PREVIOUS] = now[READS] = now[WAVE] = 0
    _settle(state)
    if reset and now[POLICY] == PREDICTED:
        predicted.restart(forecast)


@njit(cache=True)  # type: ignore[untyped-decorator]
def demand(state: State, forecast: Forecast, layer: int, experts: Int32, future: Int64) -> tuple[int, int]:
    """`layer` needs `experts` [m], unique ids; `future` [m] says when each is used next (empty = nobody knows).

    A set that does not fit is served in waves: while experts wait, the next demand must be for these.

    Returns: served n, reads r. The desk holds EXPERT, SLOT, HIT, GUESSED [n], REST [m - n], and KEY_IN,
    SLOT_IN, EVICTED [r].
    """
    now = state.now
    if now[WAITING] == 0:
        _arrive(state, forecast, layer, experts)
    else:
        now[WAVE] += 1
        now[PREVIOUS] = now[LOCKED]
        now[FLOOR] = moment(state, now[PASS], layer, now[WAVE] - 1)
    limit = _wave_size(state, len(experts))
    hits = _serve_residents(state, layer, experts, future, limit)
    reads = min(limit, len(experts)) - hits
    spare = min(_spare(state), reads)
    _serve_missing(state, layer, experts, future, hits, 0, spare)
    if spare < reads:
        foresee(state, forecast, reads - spare)
        _serve_missing(state, layer, experts, future, hits, spare, reads)
    for r in range(reads, len(experts) - hits):
        state.desk[REST, r - reads] = experts[state.desk[REST, r]]
    now[WAITING] = len(experts) - hits - reads
    now[LOCKED] = hits + reads
    now[READS] += reads
    return hits + reads, reads


@njit(cache=True)  # type: ignore[untyped-decorator]
def expect(state: State, forecast: Forecast, layer: int, chance: Float32) -> None:
    """`chance` [E]: the probability that each expert is used when `layer` runs next."""
    for e in range(len(chance)):
        state.chance[layer, e] = chance[e]
    state.known[layer] = True
    if state.now[POLICY] == PREDICTED:
        predicted.expect(forecast, layer, chance)


@njit(cache=True)  # type: ignore[untyped-decorator]
def speculate(state: State, forecast: Forecast, layer: int) -> int:
    """Read ahead for `layer`'s next run what the prefetch wants of its expected experts; the likeliest first.

    Those that are there already are locked until then too. Refused while a set waits for its next wave, and when all
    slots are promised but those that a layer's demand needs.
    Returns: reads r; the desk holds KEY_IN, SLOT_IN, EVICTED [r].
    """
    now, E = state.now, state.chance.shape[1]
    if now[WAITING] > 0 or not state.known[layer]:
        return 0
    later = layer > now[LAYER]
    until = moment(state, now[PASS] if later else now[PASS] + 1, layer, 0) - 1
    distance = layer - now[LAYER] + (0 if later else len(state.known))
    held = max(now[ROOM], now[LOCKED] + now[PREVIOUS])
    issued, best = 0, -1
    for rank in range(E):
        best = _next_best(state.chance[layer], best)
        key = layer * E + best
        if not wanted(state, distance, state.chance[layer, best], rank, issued):
            break
        if state.lock[key] >= until and state.slot_of[key] >= 0:
            continue
        if now[PROMISED] >= len(state.key_of) - held:
            break
        if home(state.lists, key) > MAIN:  # a stale guess has a second chance; a policy's ghost is forgotten
            drop(state.lists, key)
        if state.slot_of[key] < 0:
            if _spare(state) == 0:
                foresee(state, forecast, 1)
            _read(state, key, -1, issued, 0)
            state.due[key] = until
            state.counts[layer, GUESSES] += 1
            now[READS] += 1
            issued += 1
        state.lock[key] = until
        state.promised[now[PROMISED]] = key
        now[PROMISED] += 1
    return issued


@njit(cache=True)  # type: ignore[untyped-decorator]
def _arrive(state: State, forecast: Forecast, layer: int, experts: Int32) -> None:
    """A layer's whole set is known: its residents are locked, its other guesses are stale."""
    now, E = state.now, state.chance.shape[1]
    now[LAYER] = layer
    now[WAVE] = now[PREVIOUS] = now[LOCKED] = now[READS] = 0
    now[FLOOR] = moment(state, now[PASS], layer, 0)
    for e in experts:
        state.lock[layer * E + e] = now[FLOOR]
    _settle(state)
    state.known[layer] = False
    if now[POLICY] == PREDICTED:
        predicted.observe(forecast, layer, experts)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _settle(state: State) -> None:
    """Promises whose layer has been routed are over: guesses that it did not use become the next victims."""
    now, kept = state.now, 0
    after = now[FLOOR] + 1  # members of the set in use are locked until FLOOR: they are promised no longer
    for i in range(now[PROMISED]):
        key = state.promised[i]
        if state.lock[key] >= after or (now[LAYER] < 0 and state.lock[key] >= now[FLOOR]):
            state.promised[kept] = key
            kept += 1
        elif state.lock[key] < now[FLOOR] and state.due[key] > 0:
            push(state.lists, STALE, key)
    now[PROMISED] = kept


@njit(cache=True)  # type: ignore[untyped-decorator]
def _wave_size(state: State, experts: int) -> int:
    """How many of the waiting experts the next wave may hold; a wave that is not the last takes half of the slots."""
    usable = len(state.key_of) - state.now[PROMISED]
    free = usable - state.now[PREVIOUS]
    return experts if experts <= free else max(1, usable // 2)


@njit(cache=True)  # type: ignore[untyped-decorator]
def _serve_residents(state: State, layer: int, experts: Int32, future: Int64, limit: int) -> int:
    """Those that are there, in order, up to `limit`; places of all others go to REST."""
    desk, E = state.desk, state.chance.shape[1]
    lock = moment(state, state.now[PASS], layer, state.now[WAVE])
    served, others = 0, 0
    for i in range(len(experts)):
        key = layer * E + experts[i]
        if state.slot_of[key] < 0 or served == limit:
            desk[REST, others] = i
            others += 1
            continue
        desk[EXPERT, served] = experts[i]
        desk[SLOT, served] = state.slot_of[key]
        desk[HIT, served] = True
        desk[GUESSED, served] = state.due[key] > 0
        state.lock[key] = lock
        _use(state, layer, key, future[i] if len(future) else 0)
        served += 1
    return served


@njit(cache=True)  # type: ignore[untyped-decorator]
def _serve_missing(state: State, layer: int, experts: Int32, future: Int64, hits: int, start: int, stop: int) -> None:  # noqa: PLR0917
    """Read the missing experts that REST names from `start` to `stop`, and serve them after the hits."""
    desk, E = state.desk, state.chance.shape[1]
    lock = moment(state, state.now[PASS], layer, state.now[WAVE])
    for r in range(start, stop):
        i = desk[REST, r]
        key = layer * E + experts[i]
        _read(state, key, key, r, r - start)
        state.lock[key] = lock
        admit(state, key, future[i] if len(future) else 0)
        state.counts[layer, MISSES] += 1
        desk[EXPERT, hits + r] = experts[i]
        desk[SLOT, hits + r] = state.slot_of[key]
        desk[HIT, hits + r] = desk[GUESSED, hits + r] = False


@njit(cache=True)  # type: ignore[untyped-decorator]
def _use(state: State, layer: int, key: int, next_use: int) -> None:
    """A resident is used; if a guess brought it, the policy gets it now."""
    if state.due[key] > 0:
        state.due[key] = 0
        if home(state.lists, key) == STALE:
            drop(state.lists, key)
        admit(state, key, next_use)
        state.counts[layer, GUESS_HITS] += 1
    else:
        touch(state, key, next_use)
        state.counts[layer, RESIDENT_HITS] += 1


@njit(cache=True)  # type: ignore[untyped-decorator]
def _spare(state: State) -> int:
    """Slots that cost the policy nothing: free ones and stale guesses'."""
    return len(state.key_of) - state.now[FILLED] + size(state.lists, STALE)  # type: ignore[no-any-return]


@njit(cache=True)  # type: ignore[untyped-decorator]
def _read(state: State, key: int, asker: int, row: int, place: int) -> None:
    """Give `key` a slot: a free one, a stale guess's, or the one of `asker`'s victim; note it in the desk's `row`."""
    now, E = state.now, state.chance.shape[1]
    gone = -1
    if now[FILLED] < len(state.key_of):
        slot = now[FILLED]
        now[FILLED] += 1
    else:
        if size(state.lists, STALE) > 0:
            gone = oldest(state.lists, STALE)
            drop(state.lists, gone)
            state.due[gone] = 0
            state.counts[gone // E, WASTED] += 1
        else:
            gone = victim(state, asker, place)
        slot = state.slot_of[gone]
        state.slot_of[gone] = -1
        state.counts[gone // E, EVICTIONS] += 1
    state.slot_of[key] = slot
    state.key_of[slot] = key
    state.desk[KEY_IN, row] = key
    state.desk[SLOT_IN, row] = slot
    state.desk[EVICTED, row] = gone


@njit(cache=True)  # type: ignore[untyped-decorator]
def _next_best(chance: Float32, before: int) -> int:
    """The expert that follows `before` (-1 = none) from the likeliest down, ties by the lower id."""
    best = -1
    for e in range(len(chance)):
        follows = before < 0 or chance[e] < chance[before] or (chance[e] == chance[before] and e > before)
        if follows and (best < 0 or chance[e] > chance[best]):
            best = e
    return best
