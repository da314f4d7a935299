"""The engine at work: whatever way of generating, several times, with errors, and what it says of itself adds up."""

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402
from offloading import TWO_PROMPTS, Pair, same, written  # noqa: E402

import foregate  # noqa: E402
from foregate.errors import ChoiceError, ModelError, SourceError, StorageError, TraceError  # noqa: E402
from foregate.predictors import PREDICTORS  # noqa: E402
from foregate.predictors.base import Predictor  # noqa: E402
from foregate.predictors.chances import first_come, used, used_blindly  # noqa: E402
from foregate.predictors.storage import save  # noqa: E402
from foregate.runtime.engine import Engine  # noqa: E402
from foregate.runtime.loading import load_hollow  # noqa: E402
from foregate.runtime.slots import Slots  # noqa: E402
from foregate.runtime.tiers import behind  # noqa: E402
from foregate.runtime.wish import Wish  # noqa: E402
from foregate.store.checkpoint import CheckpointStore  # noqa: E402
from foregate.store.packing import pack, plan  # noqa: E402
from foregate.store.source import open_source  # noqa: E402
from foregate.traces.prompts import PromptText  # noqa: E402
from foregate.traces.record_transformers import Options, batches  # noqa: E402

ONE_PROMPT = TWO_PROMPTS[:1]
REPEATED = torch.tensor([[5, 9, 23, 5, 9, 23, 5, 9, 23, 5, 9]])  # what prompt lookup finds again
TINY = Path(__file__).parent.parent / "models" / "tiny"
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "temperature": 2.0, "top_k": 0},
    "beams": {"num_beams": 3},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
    "without a cache": {"use_cache": False},
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.of("mixtral", tmp_path_factory.mktemp("mixtral"), model=tiny_models.mixtral())


@pytest.fixture(scope="module")
def two_stacks(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair.of("switch_transformers", tmp_path_factory.mktemp("switch"))


# --- whatever way of generating --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("slots", [2, 5, 16])
def test_every_way_of_generating_is_the_whole_models(pair: Pair, way: str, slots: int) -> None:
    with pair.engine(slots, "multi-layer,top:2") as engine:
        assert same(written(engine.generate, **WAYS[way]), written(pair.whole.generate, **WAYS[way]))


def test_prompt_lookup_is_the_whole_models(pair: Pair) -> None:
    options = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 12}
    with pair.engine(4, "multi-layer,top:2") as engine:
        assert same(written(engine.generate, REPEATED, **options), written(pair.whole.generate, REPEATED, **options))


def test_an_assistant_model_may_guess_tokens(pair: Pair) -> None:
    options = {"assistant_model": tiny_models.mixtral(seed=0), "max_new_tokens": 8}
    with pair.engine(4, "multi-layer,top:2") as engine:
        assert same(written(engine.generate, REPEATED, **options), written(pair.whole.generate, REPEATED, **options))


def test_the_models_own_generate_works(pair: Pair) -> None:
    expected = written(pair.whole.generate)
    with pair.engine(3) as engine:
        assert same(written(engine.model.generate), expected)
        assert same(written(engine.model.generate), expected)  # and again: what was left in slots changes nothing


def test_texts_are_generated_from(pair: Pair) -> None:
    tokenizer = tiny_models.tokenizer()
    texts = ["w2 w6 w20", "w9 w11 w87 w88 w90"]
    given = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left", return_token_type_ids=False)
    options = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with pair.engine() as engine:
        assert torch.equal(engine.generate(texts, **options), pair.whole.generate(**given, **options))
        alone = pair.whole.generate(tokenizer(texts[:1], return_tensors="pt").input_ids, **options)
        assert torch.equal(engine.generate(texts[0], **options), alone)


def test_a_part_of_the_model_runs_by_itself(pair: Pair) -> None:
    """Then no pass of the whole is seen, and nothing is recorded, but it is computed as ever."""
    with pair.engine(3) as engine, torch.no_grad():
        for _ in range(2):
            found = engine.model.model(ONE_PROMPT).last_hidden_state
            assert torch.equal(found, pair.whole.model(ONE_PROMPT).last_hidden_state)


@pytest.mark.parametrize("predictor", ["previous", "repeat", "multi-layer", "next-gate", "next-gate:state=residual"])
@pytest.mark.parametrize("distance", [1, 3])
def test_guesses_are_made_and_change_nothing(pair: Pair, predictor: str, distance: int) -> None:
    with pair.engine(6, f"{predictor},top:2,distance={distance}") as engine:
        assert same(written(engine.generate), written(pair.whole.generate))
        assert engine.stats()["guessed"] > 0


def test_next_gate_sees_what_the_routers_will(tmp_path: Path) -> None:
    """With experts that add little to the residual stream, the next router asked early is mostly right."""
    model = tiny_models.mixtral(num_hidden_layers=4)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.down_proj.mul_(1e-3)
            layer.self_attn.o_proj.weight.mul_(1e-3)
    pair = Pair.of("mixtral", tmp_path, model=model)
    with pair.engine(12, "next-gate,top:2") as engine:
        written(engine.generate, ONE_PROMPT, max_new_tokens=20)
        assert engine.stats()["cold_precision"] > 0.8


def test_a_saved_predictor_and_one_at_hand_guess(pair: Pair, tmp_path: Path) -> None:
    with pair.engine() as engine:
        written(engine.generate, max_new_tokens=10)
        trace = engine.record()
    fitted = PREDICTORS["cooccur"]().fit(trace)
    save(fitted, tmp_path / "pairs.npz", trace.spec)
    for wish in (Wish.of(f"{tmp_path}/pairs.npz,threshold:0.2"), Wish.of("threshold:0.2", fitted=fitted)):
        with Engine(pair.hollow, CheckpointStore(pair.folder), 6, wish=wish) as engine:
            assert same(written(engine.generate), written(pair.whole.generate))
            assert engine.stats()["guessed"] > 0


def test_the_chance_of_use_is_that_of_any_row() -> None:
    shares = np.array([[0.5, 0.5, 0.0, 0.0], [0.25, 0.0, 0.25, 0.5]], dtype=np.float32)
    assert used(shares, 2).tolist() == [1, 1, 0.5, 1]
    assert used(shares[1:], 1).tolist() == [0.25, 0, 0.25, 0.5]
    assert used_blindly(1, 2, 4).tolist() == [0.5] * 4
    assert used_blindly(2, 2, 4).tolist() == [0.75] * 4
    assert first_come(np.array([[3.0, 9.0, 9.0, 1.0]], dtype=np.float32)).argsort()[::-1].tolist() == [1, 2, 0, 3]


# --- host memory in between ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [None, "multi-layer,top:2,distance=2"])
@pytest.mark.parametrize("host_slots", [2, 7, 16])
def test_host_memory_changes_nothing_but_what_is_read(pair: Pair, host_slots: int, prefetch: str | None) -> None:
    expected = written(pair.whole.generate, max_new_tokens=12)
    with pair.engine(4, prefetch, host_slots=host_slots) as engine:
        assert same(written(engine.generate, max_new_tokens=12), expected)
        counts = engine.stats()
    size = CheckpointStore(pair.folder).layout.slot_bytes
    assert counts["bytes"] >= (counts["read"] - counts["from_host"]) * size // 2
    if host_slots == 16:  # all of them: each expert comes from the disk once
        assert counts["from_host"] == counts["read"] - 16


def test_closing_a_host_tier_gives_its_memory_back(pair: Pair) -> None:
    store, tier = behind(CheckpointStore(pair.folder), Slots(CheckpointStore(pair.folder), 2), 5, "lru")
    assert tier is not None
    memory = weakref.ref(tier._places.bytes(0).base)
    assert memory() is not None
    store.close()
    assert memory() is None


def test_the_memory_plan_counts_the_buffers_of_threads_that_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foregate.runtime.offload._in_use", lambda: 0)
    for threads in (1, 3):
        with foregate.offload(str(TINY), memory="25%", threads=threads) as engine:
            assert engine.plan is not None
            assert engine.plan.overhead == threads * CheckpointStore(TINY).beside > 0


# --- packed stores ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_a_packed_store_gives_the_same_in_few_slots_as_in_many(tmp_path: Path, bits: int) -> None:
    source = open_source(str(TINY))
    pack(source, tmp_path / "store", plan(source, bits=bits))
    found = []
    for memory, prefetch in (("4%", None), ("30%", "multi-layer,top:2"), ("100%", None)):
        with foregate.offload(str(TINY), memory=memory, prefetch=prefetch, store=tmp_path / "store") as engine:
            found.append(written(engine.generate, max_new_tokens=8))
    assert same(found[0], found[1])
    assert same(found[0], found[2])
    if bits == 16:
        with foregate.offload(str(TINY), memory="10%") as engine:
            assert same(found[0], written(engine.generate, max_new_tokens=8))


# --- what it says of itself ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefetch", [None, "multi-layer,top:2", "previous,top:3,distance=2"])
@pytest.mark.parametrize("slots", [2, 6, 16])
def test_the_numbers_add_up(pair: Pair, slots: int, prefetch: str | None) -> None:
    with pair.engine(slots, prefetch) as engine:
        written(engine.generate, max_new_tokens=12)
        counts = engine.stats()
        tokens, passes = engine.passes()
    assert counts["demanded"] == counts["resident"] + counts["in_time"] + counts["late"] + counts["missed"]
    assert counts["demanded"] == counts["prefill"]["demanded"] + counts["decode"]["demanded"]
    assert counts["read"] >= counts["missed"]
    assert counts["read"] <= counts["missed"] + counts["guessed"] + counts["late"]
    assert counts["in_time"] + counts["wasted"] <= counts["guessed"]
    if prefetch is None:
        assert counts["read"] == counts["missed"]
        assert counts["guessed"] == counts["late"] == counts["wasted"] == 0
    one = CheckpointStore(pair.folder).read_into(0, 0, np.zeros(1 << 16, np.uint8)[:20480])
    assert counts["bytes"] == pytest.approx(counts["read"] * one, rel=0.3)  # whole blocks, so it differs by expert
    assert sum(tokens) == 24 + 2 * 11
    assert passes.shape[:2] == (12, 2)
    assert passes.sum(axis=0)[:, 0].tolist() == counts["by_layer"]["demanded"]
    assert counts["decode"]["tokens"] == 22
    assert counts["decode"]["seconds"] > 0
    assert counts["stall"] < counts["prefill"]["seconds"] + counts["decode"]["seconds"]


def test_the_planner_and_the_runtime_count_alike(pair: Pair) -> None:
    with pair.engine(6, "multi-layer,top:2") as engine:
        written(engine.generate, max_new_tokens=12)
        counts, planned = engine.stats(), engine._planner.counts()
    assert counts["missed"] == planned.misses.sum()
    assert counts["guessed"] == planned.guesses.sum()


def test_rejected_guesses_of_tokens_are_not_counted_as_written(pair: Pair) -> None:
    options = {"prompt_lookup_num_tokens": 3, "max_new_tokens": 12}
    with pair.engine(4) as engine:
        written(engine.generate, REPEATED, **options)
        trace, counts = engine.record(), engine.stats()
    assert len(trace) == REPEATED.shape[1] + 12 - 1
    assert counts["decode"]["tokens"] <= 12 + 3


def traced(model: Any, texts: list[str], options: Options) -> Any:
    prompts = [PromptText(f"p/{i}", "p", text) for i, text in enumerate(texts)]
    (batch,) = batches(model, tiny_models.tokenizer(), prompts, options)
    return batch


TEXTS = ["w2 w6 w20 w41 w4", "w9 w11", "w87 w88 w90 w2 w6 w20 w41 w4 w7"]


def same_routing(mine: Any, recorded: Any) -> None:
    assert mine.token_id.tolist() == recorded.token_id.tolist()
    assert mine.position.tolist() == recorded.position.tolist()
    assert mine.sequence.tolist() == recorded.sequence.tolist()
    assert mine.step.tolist() == recorded.step.tolist()
    assert np.array_equal(mine.experts, recorded.experts)
    assert np.array_equal(mine.weights, recorded.weights)
    assert [p.prefill for p in mine.prompts] == [p.prefill for p in recorded.prompts]
    assert replace(mine.spec, expert_bytes=None) == replace(recorded.spec, expert_bytes=None)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_next", "jamba", "deepseek_v4"])
def test_the_record_is_what_recording_the_whole_model_gives(tmp_path: Path, name: str) -> None:
    pair = Pair.of(name, tmp_path)
    options = Options(max_new_tokens=8, batch_size=3)
    with pair.engine(6, "multi-layer,top:2") as engine:
        engine.generate(TEXTS, max_new_tokens=8, do_sample=False, pad_token_id=0)
        same_routing(engine.record(), traced(pair.whole, TEXTS, options).traces["decoder"])
        with pytest.raises(TraceError, match="ran nothing"):
            engine.record()


def test_the_record_of_guessed_tokens_is_what_was_kept(pair: Pair) -> None:
    texts = ["w2 w6 w20 w2 w6 w20 w2 w6 w20 w2 w6"]
    options = Options(max_new_tokens=12, prompt_lookup=3)
    with pair.engine(6) as engine:
        engine.generate(texts, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
        mine = engine.record()
    recorded = traced(pair.whole, texts, options).traces["decoder"]
    assert mine.token_id.tolist() == recorded.token_id.tolist()
    assert np.array_equal(mine.experts, recorded.experts)


def test_what_follows_an_end_is_recorded_where_it_is_no_end(pair: Pair) -> None:
    with pair.engine(6) as engine:
        first = engine.generate(ONE_PROMPT, max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)
        assert engine.record().token_id.tolist() == first[0, :-1].tolist()
        end = int(first[0, 14])
        engine.generate(ONE_PROMPT, max_new_tokens=8, do_sample=False, eos_token_id=end, pad_token_id=0)
        place = first[0, 12:].tolist().index(end)
        assert engine.record().token_id.tolist() == first[0, : 12 + place].tolist()


def test_both_stacks_are_recorded(two_stacks: Pair) -> None:
    traces = traced(two_stacks.whole, TEXTS, Options(max_new_tokens=6, batch_size=3)).traces
    with two_stacks.engine(8) as engine:
        engine.generate(TEXTS, max_new_tokens=6, do_sample=False)
        for stack, recorded in traces.items():
            same_routing(engine.record(stack), recorded)


def test_the_live_history_of_a_prompt_is_its_replay(pair: Pair) -> None:
    """What a predictor is asked while the model runs is what it would be asked of the trace, row by row."""
    asked: list[Any] = []

    class Listener(Predictor):
        probabilities = True
        needs = frozenset()

        def fit(self, trace: Any, validation: Any = None) -> Any:
            return self

        def covers(self, query: Any) -> Any:
            return np.ones(query.rows, dtype=np.bool_)

        def predict(self, query: Any) -> Any:
            asked.append((query.layer, query.target, query.token_id.copy(), query.routed.copy(), query.seen.copy()))
            return np.full((query.rows, query.spec.num_experts), 1 / query.spec.num_experts, np.float32)

    wish = Wish(Listener(), "top:2", 1)
    with Engine(pair.hollow, CheckpointStore(pair.folder), 6, wish=wish) as engine:
        engine.generate(TEXTS, max_new_tokens=4, do_sample=False, pad_token_id=0)
        trace = engine.record()
    rows = iter(asked)
    for step in range(4):
        for layer in (-1, 0):
            for sequence in range(3):
                at = (trace.sequence == sequence) & (trace.step == step)
                seen_layer, target, token, routed, seen = next(rows)
                assert (seen_layer, target) == (layer, layer + 1)
                assert token.tolist() == trace.token_id[at].tolist()
                assert np.array_equal(routed, trace.experts[at, : layer + 1])
                assert (seen == ((trace.sequence == sequence) & (trace.step < step)).sum()).all()


# --- errors ----------------------------------------------------------------------------------------------------------


class Flaky:
    """A store whose disk can be told to refuse. It hands on everything else."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store
        self.refuses = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read_into(self, layer: int, expert: int, buffer: Any) -> int:
        if self.refuses:
            raise StorageError(f"cannot read expert {expert} of layer {layer}: input/output error")
        return self._store.read_into(layer, expert, buffer)


@pytest.mark.parametrize("prefetch", [None, "multi-layer,top:2,distance=2"])
def test_a_read_error_is_told_and_the_engine_goes_on(pair: Pair, prefetch: str | None) -> None:
    store: Any = Flaky(CheckpointStore(pair.folder))
    with Engine(pair.hollow, store, 4, wish=Wish.of(prefetch)) as engine:
        expected = written(pair.whole.generate)
        assert same(written(engine.generate), expected)
        store.refuses = True
        with pytest.raises(StorageError, match="input/output error"):
            written(engine.generate)
        store.refuses = False
        assert same(written(engine.generate), expected)


def readers() -> int:
    return sum(thread.name.startswith("reader-") for thread in threading.enumerate())


def test_closing_ends_the_threads(pair: Pair) -> None:
    engine = pair.engine(4, "multi-layer,top:2")
    written(engine.generate)
    assert readers() > 0
    engine.close()
    engine.close()
    assert readers() == 0


class Slow:
    """A store on a slow disk."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read_into(self, layer: int, expert: int, buffer: Any) -> int:
        time.sleep(2e-3)
        return self._store.read_into(layer, expert, buffer)


@pytest.mark.parametrize("place", ["demand", "issue", "wait", "_submit", "_forget", "passed"])
@pytest.mark.parametrize("after", [1, 4, 9])
def test_an_interruption_leaves_no_expert_in_anothers_place(
    pair: Pair, place: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = written(pair.whole.generate)
    store: Any = Slow(CheckpointStore(pair.folder))
    with Engine(pair.hollow, store, 4, wish=Wish.of("multi-layer,top:2,distance=2")) as engine:
        left, whole = after, getattr(engine._fetch, place)

        def broken(*args: Any, **options: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
            return whole(*args, **options)

        monkeypatch.setattr(engine._fetch, place, broken)
        with pytest.raises(KeyboardInterrupt):
            written(engine.generate)
        assert same(written(engine.generate), expected)
        assert_adds_up(engine)
    assert readers() == 0


def assert_adds_up(engine: Engine) -> None:
    """Every use and every guess is counted once."""
    counts = engine.stats()
    assert counts["demanded"] == counts["resident"] + counts["in_time"] + counts["late"] + counts["missed"]
    waiting = sum(engine._fetch._guess)
    assert counts["guessed"] == counts["used"] + counts["wasted"] + counts["dropped"] + waiting


@pytest.mark.parametrize("prefetch", ["multi-layer,top:2,distance=2", "previous,top:3,distance=2"])
@pytest.mark.parametrize("slots", [5, 7])
def test_a_guess_is_used_wasted_dropped_or_waits(pair: Pair, slots: int, prefetch: str) -> None:
    store: Any = Slow(CheckpointStore(pair.folder))  # slow, so that guesses are dropped
    with Engine(pair.hollow, store, slots, wish=Wish.of(prefetch), threads=1) as engine:
        written(engine.generate, max_new_tokens=16)
        assert engine.stats()["dropped"] > 0
        assert_adds_up(engine)


def test_threads_that_share_an_engine_take_turns(pair: Pair) -> None:
    expected, found = written(pair.whole.generate), []
    with pair.engine(4, "multi-layer,top:2") as engine:
        threads = [threading.Thread(target=lambda: found.append(written(engine.generate))) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 3
    assert all(same(one, expected) for one in found)


def test_an_engine_that_nobody_holds_ends_its_threads(pair: Pair) -> None:
    before, files = readers(), len(list(Path("/proc/self/fd").iterdir()))
    engine = Engine(load_hollow(str(pair.folder)), CheckpointStore(pair.folder), 4)
    written(engine.generate)
    del engine
    gc.collect()
    deadline = time.monotonic() + 5
    while readers() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert readers() == before
    assert len(list(Path("/proc/self/fd").iterdir())) <= files


def test_a_closed_engine_says_so(pair: Pair) -> None:
    engine = pair.engine(4)
    engine.close()
    for use in (lambda: engine.generate(ONE_PROMPT), lambda: engine.model(ONE_PROMPT)):
        with pytest.raises(ChoiceError, match="closed"):
            use()


def test_nothing_is_differentiated_through_slots(pair: Pair) -> None:
    with pair.engine(4) as engine:
        output = engine.model(ONE_PROMPT, labels=ONE_PROMPT)
        assert torch.equal(output.logits, pair.whole(ONE_PROMPT).logits)
        with pytest.raises(ModelError, match="no gradients"):
            output.loss.backward()


@pytest.mark.parametrize("wish", ["multi-layer,top:2", "next-gate:state=residual,top:2"])
def test_a_part_by_itself_asks_no_predictor(pair: Pair, wish: str) -> None:
    with pair.engine(4, wish) as engine, torch.no_grad():
        for _ in range(2):
            engine.model.model(ONE_PROMPT)
            assert same(written(engine.generate), written(pair.whole.generate))


def test_padding_is_no_token_whatever_the_mask(pair: Pair) -> None:
    traces = []
    with pair.engine(5) as engine:
        for way in ({}, WAYS["static cache"]):
            written(engine.generate, eos_token_id=None, **way)
            traces.append(engine.record())
    assert traces[0].token_id.tolist() == traces[1].token_id.tolist()


def test_a_predictor_that_answers_no_numbers_is_named(pair: Pair) -> None:
    with pair.engine(6, "multi-layer,top:2") as engine:
        engine._forecast._predictor.predict = lambda query: np.full((query.rows, 8), np.nan, np.float32)
        with pytest.raises(ChoiceError, match="not finite"):
            written(engine.generate)


def test_a_predictor_file_of_another_model_or_a_shorter_horizon_is_refused(pair: Pair, tmp_path: Path) -> None:
    other = Pair.of("mixtral", tmp_path / "other", model=tiny_models.mixtral(num_local_experts=4))
    for source, wish, says in ((other, "top:2", "another model"), (pair, "top:2,distance=2", "distance=1")):
        with source.engine() as engine:
            written(engine.generate, max_new_tokens=10)
            save(PREDICTORS["cooccur"]().fit(engine.record()), tmp_path / "pairs.npz")  # its file names no model
        with pytest.raises(ChoiceError, match=says):
            pair.engine(6, f"{tmp_path}/pairs.npz,{wish}")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"memory": "1MiB"}, "needs"),
        ({"memory": "much"}, "no size"),
        ({"evict": "best"}, "best"),
        ({"prefetch": "bank,top:2"}, "fitted"),
        ({"prefetch": "xgboost"}, "fitted"),
        ({"prefetch": "top:2"}, "nobody"),
        ({"prefetch": "previous,repeat,top:2"}, "one predictor"),
        ({"prefetch": "previous,threshold:0.5"}, "how likely"),
        ({"prefetch": "previous,top:2", "evict": "predicted"}, "how likely"),
        ({"prefetch": "multi-layer,top:2,distance=0"}, "distance=0"),
        ({"prefetch": "multi-layer,budget:1MiB"}, "read_seconds"),
        ({"prefetch": "nobody,top:2"}, "nobody"),
        ({"speculation_mode": "pattern"}, "fitted"),
        ({"speculation_mode": "learnable"}, "file"),
        ({"speculation_mode": "psychic"}, "psychic"),
        ({"speculation_mode": "multi_layer", "prefetch": "repeat,top:2"}, "one predictor"),
        ({"evict": "static"}, "profile"),
        ({"evict": "belady"}, "belady"),
        ({"device": "abacus"}, "abacus"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_with_a_sentence(options: dict[str, Any], says: str) -> None:
    with pytest.raises((ChoiceError, ModelError), match=says):
        foregate.offload(str(TINY), **options)
    assert readers() == 0


@pytest.mark.parametrize("mode", ["none", "layer_minus_1", "multi_layer"])
def test_speculation_modes_have_their_names(mode: str) -> None:
    prefetch = None if mode == "none" else "top:2"
    with foregate.offload(str(TINY), memory="20%", speculation_mode=mode, prefetch=prefetch) as engine:
        engine.generate("def main():", max_new_tokens=4, do_sample=False)
        assert (engine.stats()["guessed"] > 0) == (mode != "none")


def test_a_dense_model_is_refused(tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**tiny_models.small(transformers.LlamaConfig))
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no experts"):
        foregate.offload(str(tmp_path))


def test_a_store_of_another_model_is_refused(pair: Pair, tmp_path: Path) -> None:
    source = open_source(str(pair.folder))
    pack(source, tmp_path / "store", plan(source, bits=16))
    with pytest.raises(SourceError, match="packed from other weights"):
        foregate.offload(str(TINY), store=tmp_path / "store")


def test_the_plan_comes_before_the_model() -> None:
    plans: list[Any] = []
    with foregate.offload(str(TINY), memory="25%", on_plan=plans.append) as engine:
        assert engine.plan is plans[0]
        assert plans[0].slots == 32


# --- what it costs ---------------------------------------------------------------------------------------------------


def test_with_everything_resident_it_costs_little(pair: Pair) -> None:
    """Processor time of a layer that computes one token, against the whole model, best of interleaved rounds: at most
    a tenth of what two experts of 50 MB compute for, 10 ms.
    """
    ids = ONE_PROMPT[:, :1]
    with pair.engine(pair.experts) as engine, torch.no_grad():

        def seconds(model: Any) -> float:
            started = time.process_time()
            for _ in range(20):
                model(ids, use_cache=False)
            return (time.process_time() - started) / 20 / len(pair.hollow.layers)

        seconds(engine.model)
        rounds = [(seconds(engine.model), seconds(pair.whole)) for _ in range(7)]
    assert min(a for a, _ in rounds) - min(b for _, b in rounds) < 1e-3


@pytest.mark.gpu
@pytest.mark.parametrize("host_slots", [0, 8])
@pytest.mark.parametrize("prefetch", [None, "multi-layer,top:2"])
def test_on_a_device_it_writes_what_the_whole_model_writes(pair: Pair, host_slots: int, prefetch: str | None) -> None:
    whole = pair.whole.to("cuda")
    try:
        hollow = load_hollow(str(pair.folder), device="cuda")
        store = CheckpointStore(pair.folder)
        wish = Wish.of(prefetch)
        with Engine(hollow, store, 4, host_slots=host_slots, wish=wish, device="cuda") as engine:
            ids = TWO_PROMPTS.to("cuda")
            assert same(written(engine.generate, ids), written(whole.generate, ids))
    finally:
        pair.whole.to("cpu")
