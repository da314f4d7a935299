"""`predicted` eviction lets go of what is used last: it learns who follows whom, and believes what it is told."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from foregate.arrays import Bool, Float32, Int32, Int64
from foregate.errors import ChoiceError, SourceError, StorageError
from foregate.memory import habits as compiled_habits
from foregate.memory import predicted
from foregate.memory.experience import KEPT, load, save, watch
from foregate.memory.habits import FEATURES, NEXT, OCCASIONS, Habits, make_habits
from foregate.memory.network import HIDDEN, weights
from foregate.memory.planner import Planner
from foregate.memory.predicted import Forecast, Predicted, make_forecast
from foregate.memory.replay import replay, stream_of

L, E, K = 3, 16, 2
SLOTS = 12  # of 48 experts; a pass needs 6


# Only compiled code calls these functions.
@njit
def observe(forecast: Forecast, layer: int, experts: Int32) -> None:
    predicted.observe(forecast, layer, experts)


@njit
def expect(forecast: Forecast, layer: int, chance: Float32) -> None:
    predicted.expect(forecast, layer, chance)


@njit
def restart(forecast: Forecast) -> None:
    predicted.restart(forecast)


@njit
def victim(forecast: Forecast, slot_of: Int32, lock: Int64, floor: int) -> int:
    return predicted.victim(forecast, slot_of, lock, floor)


@njit
def remember(habits: Habits, layer: int, experts: Int32) -> None:
    compiled_habits.remember(habits, layer, experts)


@njit
def describe(habits: Habits, layer: int, experts: Int32, into: Float32) -> None:
    compiled_habits.describe(habits, layer, experts, into)


def routing(tokens: int, seed: int) -> Int32:
    """[T, L, k]: the language of every seed is the same, what is said is not: one of 24 words leads to few others."""
    grammar = np.random.default_rng(0)
    follows = grammar.integers(0, 24, (24, 2))
    spoken = np.stack([[grammar.permutation(E)[:K] for _ in range(L)] for _ in range(24)])
    rng = np.random.default_rng(seed)
    words = [0]
    while len(words) < tokens:
        words.append(int(follows[words[-1], rng.integers(2)] if rng.random() < 0.9 else rng.integers(24)))
    return spoken[words].astype(np.int32)


def misses(experts: Int32, eviction: str, slots: int = SLOTS) -> int:
    tokens = np.arange(len(experts))
    stream = stream_of(experts, tokens, np.zeros_like(tokens))
    return int(replay(stream, L, E, slots, eviction).misses.sum())


def first_of(experts: Int32) -> Bool:
    return np.arange(len(experts)) == 0


def told(passes: int = 20) -> Forecast:
    forecast = make_forecast(L, E, Predicted())
    for experts in routing(passes, 1):
        for layer in range(L):
            observe(forecast, layer, experts[layer])
    return forecast


def chosen(forecast: Forecast, key_of: list[int], count: int, locked: tuple[int, ...] = ()) -> list[int]:
    lock: Int64 = np.zeros(L * E, np.int64)
    lock[list(locked)] = 5
    slot_of = np.full(L * E, -1, np.int32)
    slot_of[key_of] = np.arange(len(key_of))
    slots: list[int] = []
    while len(slots) < count:
        slots.append(victim(forecast, slot_of, lock, 5))
        slot_of[key_of[slots[-1]]] = -1
    return slots


@pytest.mark.parametrize("slots", [9, 12, 24])
def test_it_misses_less_than_lru_where_words_lead_to_words(slots: int) -> None:
    experts = routing(2000, 1)
    lru, ours, belady = (misses(experts, eviction, slots) for eviction in ("lru", "predicted", "belady"))
    assert belady <= ours < 0.85 * lru


def test_what_it_has_seen_before_helps_from_the_first_token(tmp_path: Path) -> None:
    before, now = routing(3000, 1), routing(60, 2)
    save(watch(before, first_of(before), E), tmp_path / "seen.npz")
    assert misses(now, f"predicted:file={tmp_path / 'seen.npz'}") < misses(now, "predicted")


def test_a_file_knows_what_the_run_that_made_it_knew(tmp_path: Path) -> None:
    experts = routing(500, 1)
    forecast = make_forecast(L, E, Predicted())
    for token in experts:
        for layer in range(L):
            observe(forecast, layer, token[layer])
    save(forecast.habits, tmp_path / "seen.npz")
    again, watched = load(tmp_path / "seen.npz", L, E), watch(experts, first_of(experts), E)
    for name in KEPT:
        np.testing.assert_array_equal(getattr(again, name), getattr(forecast.habits, name))
        np.testing.assert_array_equal(getattr(again, name), getattr(watched, name))
    assert [p.name for p in tmp_path.iterdir()] == ["seen.npz"]


def test_who_followed_whom_is_counted() -> None:
    habits = make_habits(1, E)
    for experts in ([0, 1], [2, 3], [0, 5], [2, 7]):
        remember(habits, 0, np.array(experts, np.int32))
    assert habits.asked[0, 0, 0] == 2
    assert habits.follows[0, 0, 0, [2, 3, 7]].tolist() == [2, 1, 1]
    assert habits.follows[0, 1, 0].sum() == 2  # two passes after the first pass
    assert habits.follows[0, 1, 1, [0, 5]].tolist() == [1, 1]


def test_a_new_sequence_follows_from_nothing() -> None:
    forecast = told()
    before = forecast.habits.follows.copy()
    restart(forecast)
    for layer in range(L):
        observe(forecast, layer, np.array([0, 1], np.int32))
    np.testing.assert_array_equal(forecast.habits.follows, before)
    assert (forecast.habits.age == 1).all()


def test_after_the_same_set_the_likely_follower_is_worth_more() -> None:
    forecast = make_forecast(1, E, Predicted())
    for turn in range(200):
        observe(forecast, 0, np.array([[0, 1], [2, 3]][turn % 2], np.int32))
    assert forecast.value[0, [0, 1]].min() > forecast.value[0, [2, 3]].max() > forecast.value[0, 4:].max()


def test_it_believes_what_it_is_told_until_the_layer_runs() -> None:
    forecast = told()
    chance = np.zeros(E, np.float32)
    chance[7] = 1
    expect(forecast, 1, chance)
    keys = [E + e for e in range(E)]
    assert forecast.value[1].argmax() == 7
    assert chosen(forecast, keys, E - 1).count(7) == 0
    observe(forecast, 1, np.array([2, 3], np.int32))
    np.testing.assert_array_equal(forecast.value[1], forecast.own[1])


def test_of_two_certain_uses_the_later_one_leaves() -> None:
    forecast = told()
    certain = np.ones(E, np.float32)
    for layer in range(L):
        observe(forecast, layer, np.array([0, 1], np.int32))
        if layer == 0:
            expect(forecast, 1, certain)
            expect(forecast, 2, certain)
            expect(forecast, 0, certain)  # the next pass
            assert chosen(forecast, [5, E + 5, 2 * E + 5], 3) == [0, 2, 1]


def test_nobody_misses_less_than_who_is_told_the_truth() -> None:
    experts = routing(1500, 3)

    def run(tell: bool) -> int:
        planner, reads = Planner(L, E, SLOTS, "predicted", top_k=K), 0
        for token, following in itertools.pairwise(experts):
            planner.begin()
            for layer in range(L):
                reads += len(planner.demand(layer, token[layer]).transfers)
                if tell:
                    chance = np.zeros(E, np.float32)
                    chance[following[layer]] = 1
                    planner.expect(layer, chance)
        return reads

    assert misses(experts, "belady") < run(tell=True) < run(tell=False)


@pytest.mark.parametrize("count", [1, 2, 6])
def test_victims_are_different_unlocked_and_the_least_worth_first(count: int) -> None:
    forecast = told()
    key_of = np.random.default_rng(4).permutation(L * E)[:20].tolist()
    locked = tuple(key_of[3:12])
    slots = chosen(forecast, key_of, count, locked)
    values = forecast.value.reshape(-1)
    order = sorted((values[key], slot) for slot, key in enumerate(key_of) if key not in locked)
    assert slots == [slot for _, slot in order[:count]]


def test_equals_leave_by_the_lower_slot() -> None:
    forecast = make_forecast(L, E, Predicted())
    assert chosen(forecast, [2 * E + 4, 2 * E + 1, 2 * E + 9], 2) == [0, 1]


@pytest.mark.parametrize("size", [0, 1, E // 2, E])
def test_features_are_finite_whatever_was_routed(size: int) -> None:
    habits, features = make_habits(1, E), np.zeros((FEATURES, E), np.float32)
    experts = np.arange(size, dtype=np.int32)
    for _ in range(3):
        remember(habits, 0, experts)
        describe(habits, 0, experts, features)
        assert np.isfinite(features).all()
    assert (features[NEXT] <= 1).all()


def test_counters_never_overflow() -> None:
    habits = make_habits(1, E)
    for _ in range(5 * OCCASIONS):
        remember(habits, 0, np.array([0, 1], np.int32))
    assert habits.asked.max() <= OCCASIONS
    assert (habits.follows <= habits.asked[..., None]).all()
    assert (habits.own <= habits.age[:, None]).all()


def test_layers_may_be_left_out_of_a_pass() -> None:
    forecast = told()
    for layer in (0, 2, 1, 2, 2):  # passes 0 2, 1 2, 2
        observe(forecast, layer, np.array([0, 1], np.int32))
    assert np.isfinite(forecast.value).all()
    assert forecast.time.tolist() == [20 + 3, 2]


def test_the_shipped_network_has_the_shape_that_is_computed() -> None:
    first, offset, last, bias = weights()
    assert (first.shape, offset.shape, last.shape, bias.shape) == ((HIDDEN, FEATURES), (HIDDEN,), (HIDDEN,), (1,))


def test_other_evictions_pay_nothing_for_it() -> None:
    assert make_forecast(48, 512, None).habits.follows.nbytes == 0


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_broken_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.npz"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"broken\.npz"):
        make_forecast(L, E, Predicted(file=str(path)))


def test_numbers_that_cannot_be_are_refused(tmp_path: Path) -> None:
    habits = make_habits(L, E)
    habits.uses[0, 0] = np.nan
    save(habits, tmp_path / "bad.npz")
    with pytest.raises(SourceError, match="uses"):
        load(tmp_path / "bad.npz", L, E)


def test_a_file_of_another_model_is_refused(tmp_path: Path) -> None:
    save(make_habits(L, E), tmp_path / "seen.npz")
    with pytest.raises(ChoiceError, match="3 layers x 16 experts"):
        load(tmp_path / "seen.npz", L, E + 1)
    with pytest.raises(SourceError, match="does not exist"):
        Planner(L, E, SLOTS, f"predicted:file={tmp_path / 'absent.npz'}")


def test_nothing_is_left_where_the_disk_refuses(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match="taken"):
        save(make_habits(L, E), tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]
