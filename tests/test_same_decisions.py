"""The simulator decides what the runtime decides: on the same routing both issue the identical list of transfers."""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar, Self, final

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402
from offloading import Pair, written  # noqa: E402

from foregate.arrays import Bool, Float32  # noqa: E402
from foregate.history import Query  # noqa: E402
from foregate.memory.eviction import EVICTION, eviction  # noqa: E402
from foregate.memory.planner import Transfers  # noqa: E402
from foregate.memory.prefetch import TRIAL, prefetch  # noqa: E402
from foregate.predictors.base import Need, Predictor  # noqa: E402
from foregate.runtime.telemetry import PLACE  # noqa: E402
from foregate.runtime.wish import Wish, find  # noqa: E402
from foregate.simulation.chances import chances_of  # noqa: E402
from foregate.simulation.costs import Costs  # noqa: E402
from foregate.simulation.passes import passes_of  # noqa: E402
from foregate.simulation.simulate import Setting, play  # noqa: E402
from foregate.spec import MoESpec  # noqa: E402
from foregate.traces.schema import Trace  # noqa: E402

PROMPTS = torch.tensor([[5, 9, 23, 44, 7, 8, 100, 3], [12, 14, 90, 91, 92, 93, 94, 95]])
EVICTIONS = sorted(name for name, kind in EVICTION.items() if not kind.needs_future)
PREFETCHES = ["none", "top:2", "threshold:0.3", "budget:1MiB"]
SECONDS = {"expert_bytes": 1 << 16, "read_seconds": 1e-3, "window_seconds": 2e-3}
SLOTS = [4, 9, 20]  # of 32 experts: the fewest of a top-2 model, and more


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Four layers, 8 experts, top-2."""
    torch.set_num_threads(1)
    return Pair.of("mixtral", tmp_path_factory.mktemp("mixtral"), model=tiny_models.mixtral(num_hidden_layers=4))


@cache
def spec_of(pair: Pair) -> MoESpec:
    with pair.engine() as engine:
        return engine._passes["decoder"].spec


def ran(engine: Any, prompts: Any) -> tuple[np.ndarray, Trace]:
    """What the engine's planner had read, [n, 4] of key, slot, evicted, speculative; and the routing."""
    issued: list[tuple[int, int, int, bool]] = []
    issue = engine._fetch.issue

    def noted(transfers: Transfers) -> None:
        columns = (transfers.key, transfers.slot, transfers.evicted)
        issued.extend((*row, transfers.speculative) for row in zip(*(c.tolist() for c in columns), strict=True))
        issue(transfers)

    engine._fetch.issue = noted
    for prompt in prompts:
        written(engine.generate, prompt, max_new_tokens=14, eos_token_id=None)
    return np.array(issued).reshape(-1, 4), engine.record()


@final
@dataclass
class Entered(Predictor):
    """Asked as a layer is entered, like those that read the residual stream; it looks back, and reads nothing."""

    inner: Predictor
    probabilities: ClassVar[bool] = True
    needs: ClassVar[frozenset[Need]] = frozenset({"residual"})

    def fit(self, trace: Trace, validation: Trace | None = None) -> Self:
        self.inner.fit(trace, validation)
        return self

    def predict(self, query: Query) -> Float32:
        return self.inner.predict(query)

    def covers(self, query: Query) -> Bool:
        return self.inner.covers(query)


def simulated(trace: Trace, setting: Setting, predictor: Predictor | None, distance: int) -> np.ndarray:
    passes = passes_of(trace)
    one = np.ones((1, 2))
    costs = Costs(np.full(passes.layers, 1 << 16), np.ones((2, passes.layers, 2)), one, one, np.ones(2), np.ones(2))
    said = None if predictor is None else chances_of(predictor, trace, passes, distance)
    entered = predictor is not None and "residual" in predictor.needs
    moves = play(passes, costs, setting, chances=said, entered=entered, transfers=True).transfers
    assert moves is not None
    return moves[:, 1:]


def check(pair: Pair, evict: str, policy: str, slots: int, *, distance: int = 2, **options: Any) -> Any:
    """Returns: seconds that the predictor took in each pass of the runtime, 0 where it was not asked."""
    usage = np.random.default_rng(0).integers(0, 9, (4, 8))
    guessing = policy != "none" or evict == "predicted"
    text = f"multi-layer,{policy},distance={distance}" if guessing else None
    seconds = {**SECONDS, "look_seconds": options.pop("look_seconds", 0.0)}
    spare = {name: seconds[name] for name in ("read_seconds", "window_seconds", "look_seconds")}
    prompts = options.pop("prompts", [PROMPTS[:1], PROMPTS[1:]])
    host_slots, entered = options.pop("host_slots", 0), options.pop("entered", False)
    wish = Wish.of(text)
    if text is not None:
        predictor = find(wish, spec_of(pair), lambda: None)
        assert predictor is not None
        wish = replace(wish, predictor=Entered(predictor) if entered else predictor)
    predictor = wish.predictor
    with pair.engine(slots, wish=wish, evict=evict, host_slots=host_slots, **spare) as engine:
        size = engine._store.layout.slot_bytes
        issued, trace = ran(engine, prompts)
        asked = engine.passes()[1][:, :, PLACE["predictor"]].sum(axis=1)
    given = {**seconds, "expert_bytes": size, "profile": usage if evict == "static" else None}
    setting = Setting(slots, eviction(evict), prefetch(policy), host_slots, given)
    found = simulated(trace, setting, predictor, distance)
    assert len(issued) > slots
    if policy in ("top:2", "threshold:0.3") and slots > 4:
        assert issued[:, 3].any(), "nothing was read ahead: the test says nothing of guesses"
    np.testing.assert_array_equal(found, issued)
    return asked


@pytest.mark.parametrize("slots", SLOTS)
@pytest.mark.parametrize("policy", PREFETCHES)
@pytest.mark.parametrize("evict", EVICTIONS)
def test_the_simulator_moves_what_the_runtime_moves(pair: Pair, evict: str, policy: str, slots: int) -> None:
    check(pair, evict, policy, slots)


@pytest.mark.parametrize("evict", ["lru", "predicted"])
def test_budget_stops_asking_where_answers_cost_more_than_they_gain(pair: Pair, evict: str) -> None:
    asked = check(pair, evict, "budget:1MiB", 20, look_seconds=1.0)
    assert (asked[:TRIAL] > 0).all()
    assert (asked[TRIAL:] == 0).all()
    assert len(asked) > TRIAL
    assert (check(pair, evict, "budget:1MiB", 20, look_seconds=1e-9) > 0).sum() > TRIAL


@pytest.mark.parametrize("policy", ["none", "top:2", "threshold:0.3"])
@pytest.mark.parametrize("evict", ["lru", "predicted"])
def test_a_batch_moves_what_the_runtime_moves(pair: Pair, evict: str, policy: str) -> None:
    check(pair, evict, policy, 20, prompts=[PROMPTS])


@pytest.mark.parametrize("policy", ["none", "top:2"])
@pytest.mark.parametrize("evict", ["lru", "predicted"])
def test_memory_between_disk_and_slots_changes_no_move(pair: Pair, evict: str, policy: str) -> None:
    check(pair, evict, policy, 9, host_slots=14)


@pytest.mark.parametrize("policy", ["top:2", "threshold:0.3"])
@pytest.mark.parametrize("evict", ["lru", "predicted"])
def test_who_is_asked_as_a_layer_is_entered_moves_the_same_too(pair: Pair, evict: str, policy: str) -> None:
    check(pair, evict, policy, 9, entered=True)
