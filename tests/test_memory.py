"""The planner keeps its word over every eviction and prefetch: slots, sets in use, guesses, waves, and one outcome.

Every scenario is driven by the same random routing; a naive page table in Python checks each step from outside.
"""

import heapq
import itertools
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foregate.errors import ChoiceError
from foregate.memory.eviction import EVICTION
from foregate.memory.planner import Planner, Transfers, Wave
from foregate.memory.prefetch import PREFETCH, REST, TRIAL, Budget, Threshold, Top, prefetch
from foregate.memory.replay import Stream, replay, stream_of, transfers
from foregate.memory.single import by_policy, replay_keys

L, E, K = 4, 12, 3
PROFILE = np.random.default_rng(9).integers(0, 50, (L, E))
ONLINE = sorted(set(EVICTION) - {"belady"})
AHEAD = {"none": "none", "top": "top:3", "threshold": "threshold:0.5", "budget": "budget:4MB"}
OPTIONS: dict[str, Any] = {
    "profile": PROFILE,
    "top_k": K,
    "expert_bytes": 1_000_000,
    "read_seconds": 0.01,
    "window_seconds": 0.02,
}
SLOTS = (3, 5, 12, 30)
EVERY = list(itertools.product(ONLINE, AHEAD.values()))


def planner(eviction: str, ahead: str = "none", slots: int = 12) -> Planner:
    return Planner(L, E, slots, eviction, ahead, **OPTIONS)


class Watched:
    """A planner, and beside it a page table that believes nothing but the transfers."""

    def __init__(self, inner: Planner) -> None:
        self.inner = inner
        self.table: dict[int, int] = {}  # key -> slot
        self.log: list[tuple[Any, ...]] = []
        self.before: set[int] = set()

    def apply(self, moves: Transfers, keep: set[int]) -> None:
        for key, slot, gone in zip(moves.key.tolist(), moves.slot.tolist(), moves.evicted.tolist(), strict=True):
            assert key not in self.table, "it was there already"
            assert 0 <= slot < self.inner.slots
            assert gone not in keep, "it is needed"
            if gone >= 0:
                assert self.table.pop(gone) == slot
            assert slot not in self.table.values(), "somebody else's slot"
            self.table[key] = slot
            self.log.append((key, slot, gone, moves.speculative, moves.layer))
        assert len(self.table) <= self.inner.slots
        assert sorted(self.table) == self.inner.resident().tolist()
        assert all(self.inner.slot(*divmod(key, E)) == slot for key, slot in self.table.items())

    def demand(self, layer: int, experts: list[int]) -> list[Wave]:
        promised_before = set(self.inner.promised().tolist())
        waves: list[Wave] = []
        rest = np.array(experts)
        previous: set[int] = set()
        while len(rest):
            resident = set(self.table)
            wave = self.inner.demand(layer, rest)
            keys = [layer * E + e for e in wave.experts.tolist()]
            assert [k in resident for k in keys] == wave.hit.tolist(), "hits are residents, and only these"
            assert not (wave.guessed & ~wave.hit).any()
            assert wave.transfers.key.tolist() == [k for k, h in zip(keys, wave.hit, strict=True) if not h]
            later = {k for k in promised_before if k // E != layer} & set(self.inner.promised().tolist())
            self.apply(wave.transfers, set(keys) | previous | later)
            assert wave.slots.tolist() == [self.table[k] for k in keys]
            if len(wave.rest):
                assert len(keys) <= max(1, self.inner.slots // 2)
            assert len(keys) + len(wave.rest) == len(rest)
            assert len(keys) > 0
            previous, rest = set(keys), wave.rest
            waves.append(wave)
        assert sorted(e for w in waves for e in w.experts.tolist()) == sorted(experts)
        self.before = {layer * E + e for e in waves[-1].experts.tolist()}
        return waves

    def speculate(self, layer: int) -> Transfers:
        promised = set(self.inner.promised().tolist())
        moves = self.inner.speculate(layer)
        self.apply(moves, self.before | promised)
        assert len(self.inner.promised()) <= self.inner.slots - K, "look-ahead leaves a layer's demand its room"
        return moves


def drive(watched: Watched, *, passes: int = 12, seed: int = 0, wide: bool = False) -> Watched:
    """Random routing with favourites; good guesses for the next layer, worse ones for the one after."""
    rng = np.random.default_rng(seed)
    liking = rng.dirichlet(np.full(E, 0.4), L)
    sets = [[pick(rng, liking[layer], wide) for layer in range(L)] for _ in range(passes + 1)]
    for turn in range(passes):
        watched.inner.begin(reset=turn % 10 == 0)
        for layer in range(L):
            if turn % 7 == 6 and layer == 1:
                continue  # a layer that does not run
            watched.demand(layer, sets[turn][layer])
            for distance in (1, 2):
                ahead = layer + distance
                truth = sets[turn + ahead // L][ahead % L]
                chance = rng.random(E).astype(np.float32) * 0.45 * distance
                chance[truth] += 0.4
                watched.inner.expect(ahead % L, np.minimum(chance, 1))
                watched.speculate(ahead % L)
    return watched


def pick(rng: np.random.Generator, liking: Any, wide: bool) -> list[int]:
    size = int(rng.integers(1, E + 1)) if wide else K
    return rng.choice(E, size, replace=False, p=(liking + 0.01) / (liking + 0.01).sum()).tolist()


@pytest.mark.parametrize(("eviction", "ahead"), EVERY)
@pytest.mark.parametrize("slots", SLOTS)
def test_the_page_table_the_sets_in_use_and_the_promises_hold(eviction: str, ahead: str, slots: int) -> None:
    """All of `Watched`'s assertions: slots, hits, transfers, waves, locks and the bound of look-ahead."""
    for wide in (False, True):
        watched = drive(Watched(planner(eviction, ahead, slots)), wide=wide)
        counts = watched.inner.counts()
        assert counts.misses.sum() == sum(not guess for *_, guess, _ in watched.log)
        assert counts.guesses.sum() == sum(guess for *_, guess, _ in watched.log)
        assert counts.evictions.sum() == sum(gone >= 0 for _, _, gone, *_ in watched.log)
        assert counts.guess_hits.sum() + counts.wasted.sum() <= counts.guesses.sum()
        assert (ahead == "none") == (counts.guesses.sum() == 0) or slots < 2 * K or ahead.startswith("budget")


@pytest.mark.parametrize(("eviction", "ahead"), EVERY)
def test_the_same_input_gives_the_same_transfers(eviction: str, ahead: str) -> None:
    first, second = (drive(Watched(planner(eviction, ahead))).log for _ in range(2))
    assert first == second


@pytest.mark.parametrize("ahead", AHEAD.values())
@pytest.mark.parametrize("eviction", ONLINE)
@pytest.mark.parametrize("slots", [3, 14])
def test_replay_decides_as_the_planner_does(eviction: str, ahead: str, slots: int) -> None:
    stream, chance = random_stream(seed=slots)
    live = Watched(planner(eviction, ahead, slots))
    for s, layer in enumerate(stream.layer.tolist()):
        if stream.opens[s]:
            live.inner.begin(reset=stream.opens[s] == 2)
        live.demand(layer, stream.experts[stream.starts[s] : stream.starts[s + 1]].tolist())
        if s + 1 < len(stream.layer) and not stream.opens[s + 1]:
            live.inner.expect(int(stream.layer[s + 1]), chance[s + 1])
            live.speculate(int(stream.layer[s + 1]))
    reads = transfers(stream, L, E, slots, eviction, prefetch=ahead, chance=chance, **OPTIONS)
    assert [tuple(r) for r in reads[:, 1:].tolist()] == [(k, s, g, int(guess)) for k, s, g, guess, _ in live.log]
    counts = replay(stream, L, E, slots, eviction, prefetch=ahead, chance=chance, **OPTIONS)
    for mine, theirs in zip(counts.arrays(), live.inner.counts().arrays(), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("eviction", ONLINE)
@pytest.mark.parametrize("slots", [6, 24])
def test_nobody_beats_belady(eviction: str, slots: int) -> None:
    stream, _ = random_stream(seed=5)
    best = replay(stream, L, E, slots, "belady", top_k=K)
    assert replay(stream, L, E, slots, eviction, **OPTIONS).misses.sum() >= best.misses.sum()


@pytest.mark.parametrize("eviction", ONLINE)
def test_a_stale_guess_leaves_before_the_policy_is_asked(eviction: str) -> None:
    watched = Watched(planner(eviction, "top:2", 6))
    watched.inner.begin()
    watched.demand(0, [0, 1, 2])
    watched.inner.expect(1, np.eye(E)[5] + 0.5 * np.eye(E)[6])
    assert watched.speculate(1).key.tolist() == [E + 5, E + 6]
    waves = watched.demand(1, [7, 8, 9])  # a free slot, then both guesses that were wrong
    assert waves[0].transfers.evicted.tolist() == [-1, E + 5, E + 6]


@pytest.mark.parametrize("eviction", ONLINE)
def test_a_stale_guess_that_is_used_after_all_was_a_good_one(eviction: str) -> None:
    watched = Watched(planner(eviction, "top:1", 12))
    watched.inner.begin()
    watched.inner.expect(0, np.eye(E)[5])
    watched.speculate(0)
    watched.demand(0, [1])
    watched.inner.begin()
    wave = watched.demand(0, [5])[0]
    assert wave.hit.tolist() == wave.guessed.tolist() == [True]
    watched.inner.begin()
    wave = watched.demand(0, [5])[0]
    assert (wave.hit.tolist(), wave.guessed.tolist()) == ([True], [False])
    assert watched.inner.counts().cold_precision == 1


@pytest.mark.parametrize("eviction", ONLINE)
def test_guesses_hold_what_is_there_and_take_nothing_from_nearer_ones(eviction: str) -> None:
    watched = Watched(planner(eviction, "top:3", 9))
    watched.inner.begin()
    watched.demand(2, [0, 1, 2])
    watched.inner.begin()
    watched.demand(0, [0, 1, 2])
    watched.inner.expect(2, np.r_[1, 1, 1, np.zeros(E - 3)])
    assert len(watched.speculate(2)) == 0  # there already, and held from now on
    watched.inner.expect(1, np.r_[1, 1, 1, np.zeros(E - 3)])
    assert len(watched.speculate(1)) == 3
    watched.inner.expect(3, np.ones(E))
    assert len(watched.speculate(3)) == 0  # six of nine are promised: no more
    assert [w.hit.all() for w in watched.demand(1, [0, 1, 2])] == [True]
    assert [w.hit.all() for w in watched.demand(2, [0, 1, 2])] == [True]


@pytest.mark.parametrize("eviction", ["arc", "s3fifo"])
def test_a_remembered_key_that_is_read_ahead_is_remembered_still(eviction: str) -> None:
    """It goes to those used again: newcomers, of which there are more than slots, do not push it out."""
    inner = Planner(1, 40, 20, eviction, "top:1", top_k=1)

    def use(expert: int) -> None:
        inner.begin()
        inner.demand(0, np.array([expert]))

    for expert in range(21):
        use(expert)
    assert inner.slot(0, 0) < 0  # pushed out, but remembered
    inner.begin()
    inner.expect(0, np.eye(40)[0])
    assert inner.speculate(0).key.tolist() == [0]
    inner.demand(0, np.array([0]))
    for expert in range(21, 40):
        use(expert)
    assert inner.slot(0, 0) >= 0


def test_a_profile_keeps_its_most_used_once_they_are_there() -> None:
    top = set(np.argsort(-PROFILE.ravel(), kind="stable")[:12].tolist())
    watched = drive(Watched(planner("static")), passes=60)
    assert not {gone for _, _, gone, *_ in watched.log if gone >= 0} & {k for k in top if clear(k, top)}


def clear(key: int, top: set[int]) -> bool:
    """Well inside the profile's top: a whole set in use above it cannot push it out."""
    return int((PROFILE.ravel() > PROFILE.ravel()[key]).sum()) < len(top) - 2 * K


def test_budget_turns_itself_down() -> None:
    def guesses(p: float, **changes: float) -> int:
        inner = Planner(L, E, 12, "lru", "budget:2MB", **{**OPTIONS, **changes})
        inner.begin()
        inner.expect(0, np.full(E, p))
        return len(inner.speculate(0))

    assert guesses(0.9) == 2  # as many bytes as were allowed
    assert guesses(0.9, window_seconds=0.011) == 1  # the second would not be ready
    assert guesses(0.3, window_seconds=0.002) == 0  # late and unlikely: it would delay what is needed
    assert guesses(0.9, window_seconds=0.002) == 1


def test_budget_believes_a_predictor_as_far_as_its_guesses_came() -> None:
    def guesses(right: bool) -> int:
        planner = Planner(L, E, 12, "lru", "budget:2MB", **{**OPTIONS, "window_seconds": 0.005})
        rng, count = np.random.default_rng(0), 0
        for _ in range(100):
            planner.begin()
            for layer in range(L):
                order = rng.permutation(E)
                said = np.zeros(E)
                said[order[:K] if right else order[K : 2 * K]] = 0.9
                planner.expect(layer, said)
                count += len(planner.speculate(layer))
                planner.demand(layer, order[:K])
        return count

    assert guesses(right=True) > 80
    assert guesses(right=False) < 20, "each of them was wrong"


@pytest.mark.parametrize(("look", "asked"), [(0.0, 200), (1e-4, 200), (1.0, 200 * TRIAL // (TRIAL + REST) + TRIAL)])
def test_budget_asks_no_more_than_it_pays(look: float, asked: int) -> None:
    planner = Planner(L, E, 12, "lru", "budget:2MB", **{**OPTIONS, "look_seconds": look})
    rng, count = np.random.default_rng(0), 0
    for _ in range(200):
        planner.begin()
        count += planner.asks
        for layer in range(L):
            chance = rng.random(E) ** 4
            if planner.asks:
                planner.expect(layer, chance)
                planner.speculate(layer)
            planner.demand(layer, np.argsort(-chance)[:K])
    assert count == asked if look < 1 else asked - TRIAL <= count <= asked


@pytest.mark.parametrize("slots", [1, 2, 7, 40, 200])
@pytest.mark.parametrize("seed", [0, 1])
def test_single_keys_hit_as_in_plain_references(slots: int, seed: int) -> None:
    keys = zipf(seed)
    assert replay_keys(keys, 300, slots, "lru") == lru_hits(keys, slots)
    assert replay_keys(keys, 300, slots, "lfu") == lfu_hits(keys, slots)
    assert replay_keys(keys, 300, slots, "belady") == belady_hits(keys, slots)
    assert replay_keys(keys, 300, slots, "sieve") == sieve_hits(keys, slots)
    for policy in ("lru", "belady"):  # counted without slots, and by the planner's functions
        assert by_policy(keys, 300, slots, policy) == replay_keys(keys, 300, slots, policy)
    for eviction in ("arc", "s3fifo", "lfu-decay"):
        assert replay_keys(keys, 300, slots, eviction) <= belady_hits(keys, slots)


@pytest.mark.parametrize("policy", ["lru", "lfu", "belady", "sieve"])
def test_single_keys_hit_as_in_libcachesim(policy: str, tmp_path: Path) -> None:
    library = pytest.importorskip("libcachesim", reason="libcachesim is not installed")
    kind = {"lru": "LRU", "lfu": "LFU", "belady": "Belady", "sieve": "Sieve"}[policy]
    for slots in (5, 40, 120):
        keys = zipf(3)
        rows = np.zeros(len(keys), dtype=[("time", "<u4"), ("id", "<u8"), ("size", "<u4"), ("next", "<i8")])
        rows["id"], rows["size"], rows["next"] = keys + 1, 1, next_uses(keys)
        rows.tofile(tmp_path / "t")
        reader = library.TraceReader(str(tmp_path / "t"), library.TraceType.ORACLE_GENERAL_TRACE)
        missed, _ = getattr(library, kind)(cache_size=slots).process_trace(reader)
        assert replay_keys(keys, 300, slots, policy) == round((1 - missed) * len(keys))


def test_slots_per_layer_are_caches_of_their_own() -> None:
    stream, _ = random_stream(seed=2)
    counts = replay(stream, L, E, 20, "lru", per_layer=True, top_k=K)
    for layer in range(L):
        alone = replay(stream.at(layer), 1, E, 5, "lru", top_k=K)
        assert counts.misses[layer] == alone.misses[0]
    assert counts.demanded == len(stream.experts)


def test_a_stream_demands_each_pass_union_once() -> None:
    experts = np.array([[[1, 2], [0, -1]], [[2, 3], [-1, -1]], [[0, 1], [4, 5]]])
    stream = stream_of(experts, np.array([0, 0, 1]), np.array([0, 0, 0]))
    assert stream.layer.tolist() == [0, 1, 0, 1]
    assert stream.opens.tolist() == [2, 0, 1, 0]
    sets = [stream.experts[a:b].tolist() for a, b in itertools.pairwise(stream.starts)]
    assert sets == [[1, 2, 3], [0], [0, 1], [4, 5]]


def test_prefetch_texts() -> None:
    assert prefetch("top:2") == prefetch("top:n=2") == Top(2)
    assert prefetch("threshold:0.6") == Threshold(0.6)
    assert prefetch("budget:200MiB") == Budget("200MiB")
    assert Budget("200MiB").limit == 200 * 2**20
    assert set(PREFETCH) == set(AHEAD)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"eviction": "fifo"}, "there is no 'fifo'.*; choose one of arc, belady"),
        ({"eviction": "belady"}, "belady needs the future"),
        ({"eviction": "lfu-decay:half_life=0"}, "half_life is 0.0"),
        ({"eviction": "static", "profile": None}, "static needs a profile"),
        ({"eviction": "static", "profile": np.ones((2, 2))}, "shape \\(2, 2\\); it must be 4 x 12"),
        ({"prefetch": "soon"}, "there is no 'soon'"),
        ({"prefetch": "top:0"}, "n is 0"),
        ({"prefetch": "top:many"}, "must be a whole number"),
        ({"prefetch": "threshold:1.5"}, "p is 1.5"),
        ({"prefetch": "threshold:nan"}, "p is nan"),
        ({"prefetch": "budget:"}, "budget:200MiB"),
        ({"prefetch": "budget:9parsecs"}, "'9parsecs' is not a size in bytes"),
        ({"prefetch": "budget:1GB", "read_seconds": None}, "budget needs read_seconds"),
        ({"prefetch": "budget:1GB", "window_seconds": float("nan")}, "window_seconds is nan"),
        ({"slots": 2}, "2 slots are too few; a layer that routes to 3 experts needs at least 3"),
        ({"slots": 1, "top_k": 1}, "needs at least 2"),
        ({"num_layers": 0}, "0 layers of 12 experts"),
    ],
)
def test_bad_input_gets_a_sentence(given: dict[str, Any], sentence: str) -> None:
    arguments = {"num_layers": L, "num_experts": E, "slots": 12, **OPTIONS, **given}
    with pytest.raises(ChoiceError, match=sentence):
        Planner(**arguments)


def random_stream(seed: int) -> tuple[Stream, Any]:
    """Decoding and prefills of a few sequences, and middling chances for each set."""
    rng = np.random.default_rng(seed)
    T = 50
    step = np.cumsum(rng.random(T) < 0.7)
    sequence = np.searchsorted(np.unique(step), step) // 20
    liking = rng.dirichlet(np.full(E, 0.4), L) + 0.01
    experts = np.array([[rng.choice(E, K, replace=False, p=p / p.sum()) for p in liking] for _ in range(T)])
    stream = stream_of(experts, step, sequence)
    chance = rng.random((len(stream.layer), E)).astype(np.float32)
    for s in range(len(chance)):
        chance[s, stream.experts[stream.starts[s] : stream.starts[s + 1]]] += 0.5
    return stream, np.minimum(chance, 1)


def zipf(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return np.minimum(rng.zipf(1.2, 20_000) - 1, 299).astype(np.int32)


def next_uses(keys: Any) -> Any:
    seen: dict[int, int] = {}
    future = np.full(len(keys), -1, np.int64)
    for i in range(len(keys) - 1, -1, -1):
        future[i] = seen.get(int(keys[i]), -1)
        seen[int(keys[i])] = i
    return future


def lru_hits(keys: Any, slots: int) -> int:
    order: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for key in keys.tolist():
        hits += key in order
        if key not in order and len(order) == slots:
            order.popitem(last=False)
        order[key] = None
        order.move_to_end(key)
    return hits


def lfu_hits(keys: Any, slots: int) -> int:
    uses: Counter[int] = Counter()
    last: dict[int, int] = {}
    queue: list[tuple[int, int, int]] = []
    hits = 0
    for i, key in enumerate(keys.tolist()):
        hits += key in last
        if key not in last and len(last) == slots:
            while True:
                count, when, gone = heapq.heappop(queue)
                if last.get(gone) == when and uses[gone] == count:
                    break
            del last[gone], uses[gone]
        uses[key] += 1
        last[key] = i
        heapq.heappush(queue, (uses[key], i, key))
    return hits


def belady_hits(keys: Any, slots: int) -> int:
    future = np.where(next_uses(keys) < 0, len(keys), next_uses(keys)).tolist()
    there: dict[int, int] = {}
    hits = 0
    for i, key in enumerate(keys.tolist()):
        hits += key in there
        if key not in there and len(there) == slots:
            del there[max(there, key=there.__getitem__)]
        there[key] = future[i]
    return hits


def sieve_hits(keys: Any, slots: int) -> int:
    queue: list[int] = []  # oldest first
    visited: dict[int, bool] = {}
    hand, hits = 0, 0
    for key in keys.tolist():
        if key in visited:
            visited[key] = True
            hits += 1
            continue
        if len(queue) == slots:
            hand = hand if hand < len(queue) else 0
            while visited[queue[hand]]:
                visited[queue[hand]] = False
                hand = (hand + 1) % len(queue)
            del visited[queue.pop(hand)]
            at_end = hand >= len(queue)
            hand = 0 if at_end else hand
        queue.append(key)
        visited[key] = False
    return hits
