"""Hidden states: recorded as they were, handed over unchanged, and what learns from them learns what stands in them."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_trace

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from foregate.comparison import choose  # noqa: E402
from foregate.components import build  # noqa: E402
from foregate.errors import ChoiceError, ForegateError, ModelError, TraceError  # noqa: E402
from foregate.evaluation import evaluate  # noqa: E402
from foregate.history import History, Replay  # noqa: E402
from foregate.layers import some_layers  # noqa: E402
from foregate.models import mixture_layers, stacks  # noqa: E402
from foregate.predictors import PREDICTORS  # noqa: E402
from foregate.predictors.chances import shares  # noqa: E402
from foregate.predictors.hidden.gating_networks import NETWORKS, Shape, membership  # noqa: E402
from foregate.predictors.hidden.heads import Pairs, place_of, ranking  # noqa: E402
from foregate.spec import MoESpec  # noqa: E402
from foregate.traces.batches import NO_RESIDUAL  # noqa: E402
from foregate.traces.prompts import PromptText  # noqa: E402
from foregate.traces.record_transformers import Options, batches, record  # noqa: E402
from foregate.traces.schema import Trace, concat  # noqa: E402
from foregate.traces.storage import read_trace, write_trace  # noqa: E402

PROMPTS = [PromptText(f"p/{i}", "p", " ".join(f"w{(i * 13 + j * 5) % 120}" for j in range(3 + i))) for i in range(4)]
HIDDEN = ("pre-attention", "probe", "probe:rank=2", "gating", "gating:preset=transformer", "gating:preset=hierarchical")
D = 6


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_models.mixtral()


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("tiny") / "mixtral"
    model.save_pretrained(where)
    tiny_models.tokenizer().save_pretrained(where)
    return where


def recorded(model: Any, stack: str = "decoder", **options: Any) -> Trace:
    options = {"max_new_tokens": 0, "hidden": True, **options}
    found = batches(model, tiny_models.tokenizer(), PROMPTS, Options(**options), name="tiny")
    return concat([batch.traces[stack] for batch in found])


# --- recording -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "gpt_oss", "switch_transformers", "nllb_moe"])
def test_the_residual_is_what_the_layers_were_given(name: str) -> None:
    model = tiny_models.family(name)
    for stack in stacks(model):
        given: dict[int, list[Any]] = defaultdict(list)
        inside = stack.root.get_decoder() if stack.root is model else stack.root
        blocks = getattr(inside, "layers", None) or inside.block
        handles = [
            blocks[mixture.layer_id].register_forward_pre_hook(
                lambda m, args, i=i: given[i].append(args[0].flatten(0, 1).numpy().copy())  # type: ignore[misc] # noqa: B023
            )
            for i, mixture in enumerate(stack.layers)
        ]
        trace = recorded(model, stack.name, max_new_tokens=0 if stack.name == "decoder" else 2)
        for handle in handles:
            handle.remove()
        assert trace.residual is not None
        assert trace.residual.dtype == np.float16
        for layer in range(trace.spec.num_layers):
            assert np.array_equal(trace.residual[:, layer], np.concatenate(given[layer]).astype(np.float16))


def test_the_first_layer_is_entered_by_the_embedding(model: Any) -> None:
    trace = recorded(model, max_new_tokens=5, batch_size=4)
    embedding = model.get_input_embeddings().weight.detach().numpy()[trace.token_id]
    assert trace.residual is not None
    assert np.array_equal(trace.residual[:, 0], embedding.astype(np.float16))


def test_without_hidden_no_residual_is_kept(model: Any) -> None:
    trace = recorded(model, hidden=False)
    assert trace.hidden is None
    assert trace.residual is None


@pytest.mark.parametrize("name", ["deepseek_v4", "qwen4_exp", "hy_v4"])
def test_models_of_several_streams_say_that_they_have_no_residual(name: str, tmp_path: Path) -> None:
    file, *_ = record(
        tiny_models.family(name), tiny_models.tokenizer(), PROMPTS, tmp_path / "t.parquet", Options(hidden=True)
    )
    trace = read_trace(file)
    assert trace.hidden is not None
    assert trace.residual is None
    assert NO_RESIDUAL in trace.provenance.notes


def test_a_residual_too_large_for_float16_is_kept_in_float32(model: Any, tmp_path: Path) -> None:
    """Norms forget scale, so routers still see numbers that fit."""
    large = tiny_models.mixtral()
    with torch.no_grad():
        large.get_input_embeddings().weight.mul_(1e7)
    (file,) = record(large, tiny_models.tokenizer(), PROMPTS, tmp_path / "t.parquet", Options(hidden=True))
    trace = read_trace(file)
    assert trace.residual is not None
    assert trace.residual.dtype == np.float32
    assert np.abs(trace.residual).max() > 1e5


def test_the_entry_of_a_layer_holds_its_block() -> None:
    for name in ("jamba", "step3p7", "granitemoehybrid"):
        for layer in mixture_layers(tiny_models.family(name)):
            assert any(module is layer.block for module in layer.entry.modules())
            assert layer.entry is not layer.block


# --- on disk, in parts, in queries -----------------------------------------------------------------------------------


def test_a_residual_comes_back_from_disk_or_stays_there(tmp_path: Path) -> None:
    trace = make_trace(hidden=D)
    write_trace(trace, tmp_path / "t.parquet")
    assert read_trace(tmp_path / "t.parquet").equals(trace)
    without = read_trace(tmp_path / "t.parquet", hidden=False)
    assert without.hidden is None
    assert without.residual is None
    assert without.equals(trace.without(hidden=True))


def test_older_traces_have_hidden_states_alone(tmp_path: Path) -> None:
    older = replace(make_trace(hidden=D), residual=None)
    write_trace(older, tmp_path / "t.parquet")
    again = read_trace(tmp_path / "t.parquet")
    assert again.equals(older)
    with pytest.raises(ChoiceError, match="no residual stream"):
        choose(again, ["pre-attention"])
    assert "next-gate" in choose(again, ["next-gate"])[0]


def test_a_residual_goes_with_its_rows_and_layers() -> None:
    trace = make_trace(hidden=D)
    assert trace.residual is not None
    part = some_layers(trace.take(slice(3, 40, 2)), 1, 3)
    assert part.residual is not None
    np.testing.assert_array_equal(part.residual, trace.residual[3:40:2, 1:4])
    twice = concat([trace, trace])
    assert twice.residual is not None
    assert len(twice.residual) == 2 * len(trace)
    assert concat([trace, replace(trace, residual=None)]).residual is None
    with pytest.raises(TraceError, match="residual has shape"):
        replace(trace, residual=trace.residual[:, 1:])


def test_a_query_holds_what_enters_the_layer_after_the_last_routed_one() -> None:
    trace = make_trace(hidden=D)
    assert trace.residual is not None
    replay = Replay(trace.take(slice(0, 12)), as_decode=True)
    for layer, target in ((-1, 0), (-1, 3), (2, 3), (2, 4)):
        query = replay.query(layer, target, slice(2, 7))
        np.testing.assert_array_equal(query.residual, trace.residual[2:7, layer + 1])


def test_live_a_residual_is_known_once_it_was_handed_over() -> None:
    trace = make_trace(hidden=D).take(slice(0, 3))
    assert trace.residual is not None
    live = History(trace.spec, hidden=True, capacity=1)
    for n in range(3):
        live.begin(trace.token_id[n : n + 1])
        assert live.query(0).residual is None
        for layer in range(trace.spec.num_layers):
            live.enter(layer, trace.residual[n : n + 1, layer])
            np.testing.assert_array_equal(live.query(layer).residual, trace.residual[n : n + 1, layer])
            live.observe(layer, trace.experts[n : n + 1, layer])
            if layer + 1 < trace.spec.num_layers:
                assert live.query(layer + 1).residual is None
    past = live.query(4).past.residual
    assert past is not None
    np.testing.assert_array_equal(past[:3], trace.residual)


def test_a_history_that_keeps_no_hidden_states_takes_none() -> None:
    live = History(MoESpec("m", "decoder", (0, 1), 4, 1))
    live.begin(np.array([1]))
    live.enter(0, np.ones((1, D)))
    assert live.query(0).residual is None
    assert live.query(0).past.residual is None


# --- what learns from them -------------------------------------------------------------------------------------------


def planted(*, by: str, seed: int = 0) -> Trace:
    """Each layer's routed set is the top 2 of a linear map of a state: the router input of the layer before it (by
    "hidden"), the residual stream that enters it ("residual"), or the token before's ("past").
    """
    trace = make_trace(prompts=40, tokens=30, layers=3, experts=8, hidden=D, seed=seed)
    assert trace.hidden is not None
    assert trace.residual is not None
    experts = trace.experts.copy()
    for layer in range(1, 3):
        state = trace.hidden[:, layer - 1] if by == "hidden" else trace.residual[:, layer]
        if by == "past":
            state = np.concatenate([state[:1], state[:-1]])
        logits = state.astype(np.float32) @ np.random.default_rng(7 + layer).normal(size=(D, 8))
        experts[:, layer] = np.argsort(-logits, axis=1)[:, :2]
    return replace(trace, experts=experts)


def recall(name: str, trace: Trace, test: Trace) -> float:
    predictor = build(PREDICTORS, name, batch=32).fit(trace)
    tally = evaluate(predictor, test, budgets=(2,), as_decode=True)
    return float(np.nanmean(tally.mean("recall@2")[1:]))


@pytest.mark.parametrize(
    ("name", "by", "least"),
    [
        ("probe:epochs=30,learning_rate=0.02", "hidden", 0.85),
        ("probe:epochs=30,learning_rate=0.02,rank=6", "hidden", 0.85),
        ("gating:epochs=20,width=32", "hidden", 0.8),
        ("gating:epochs=20,width=32,preset=hierarchical", "hidden", 0.8),
        ("gating:epochs=20,width=32,preset=transformer", "hidden", 0.8),
        ("pre-attention:epochs=30,rank=64,learning_rate=0.01,dropout=0", "residual", 0.8),
        ("pre-attention:epochs=30,rank=64,learning_rate=0.01,loss=entropy,dropout=0", "residual", 0.8),
        ("pre-attention:epochs=30,rank=64,learning_rate=0.01,dropout=0", "past", 0.8),
    ],
)
def test_a_planted_map_is_found(name: str, by: str, least: float) -> None:
    """Chance is 0.25."""
    assert recall(name, planted(by=by), planted(by=by, seed=1)) > least


def test_without_the_past_what_only_the_token_before_tells_stays_unknown() -> None:
    trace, test = planted(by="past"), planted(by="past", seed=1)
    assert recall("pre-attention:epochs=5,rank=32,past=false", trace, test) < 0.4


def test_next_gate_sees_the_residual_that_enters_the_target(model: Any, folder: Path) -> None:
    """Where attention adds nothing, the layer's own norm and router on what enters it are its decision."""
    quiet = tiny_models.mixtral()
    with torch.no_grad():
        for layer in quiet.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    quiet.save_pretrained(folder.parent / "quiet")
    tiny_models.tokenizer().save_pretrained(folder.parent / "quiet")
    trace = recorded(quiet, max_new_tokens=12)
    gates = f"next-gate:model={folder.parent / 'quiet'}"
    scores = {
        state: evaluate(build(PREDICTORS, f"{gates},state={state}").fit(trace), trace, budgets=(2,)).mean("recall@2")[1]
        for state in ("router", "residual")
    }
    assert scores["residual"] > 0.98  # float16 may turn a near tie
    assert scores["router"] < scores["residual"]


def test_the_first_layer_is_predicted_before_anything_ran(folder: Path, model: Any) -> None:
    trace = make_trace(hidden=D)
    query = Replay(trace.take(slice(0, 12)), as_decode=True).query(-1, 0)
    assert build(PREDICTORS, "pre-attention:epochs=1,rank=4").fit(trace).covers(query).all()
    assert not build(PREDICTORS, "probe:epochs=1").fit(trace).covers(query).any()


def test_probabilities_are_those_of_a_temperature_that_judging_prompts_chose() -> None:
    """A ranking loss leaves scores without scale; what comes out must not be much worse than cross entropy's."""
    trace, test = planted(by="residual"), planted(by="residual", seed=1)
    losses = {}
    for loss in ("ranking", "entropy"):
        fitted = build(PREDICTORS, f"pre-attention:loss={loss},epochs=10,rank=64,learning_rate=0.01").fit(trace)
        losses[loss] = float(np.nanmean(evaluate(fitted, test, as_decode=True).mean("log_loss")[1:]))
    assert losses["ranking"] < losses["entropy"] + 0.15


@pytest.mark.parametrize("name", HIDDEN)
def test_a_seed_gives_the_same_weights(name: str) -> None:
    trace = make_trace(hidden=D)
    query = Replay(trace.take(slice(0, 12)), as_decode=True).query(1, 2)
    scores = [build(PREDICTORS, name, epochs=2, seed=seed).fit(trace).predict(query) for seed in (3, 3, 4)]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize("horizon", [1, 2, 4])
@pytest.mark.parametrize("first", [-1, 0])
def test_every_pair_is_found_in_its_place(horizon: int, first: int) -> None:
    trace = make_trace(hidden=D)
    replay, pairs = Replay(trace.take(slice(0, 1))), Pairs.of(trace.spec, horizon, first)
    for place, (layer, target) in enumerate(zip(pairs.layer.tolist(), pairs.target.tolist(), strict=True)):
        assert place_of(replay.query(layer, target), horizon, first) == place
    farther = first + horizon + 1
    if farther < trace.spec.num_layers:
        assert place_of(replay.query(first, farther), horizon, first) is None


@pytest.mark.parametrize("preset", sorted(NETWORKS))
def test_numpy_answers_as_torch_does(preset: str) -> None:
    rng = np.random.default_rng(0)
    spec = MoESpec("m", "decoder", tuple(range(4)), 6, 2)
    pairs, shape = Pairs.of(spec, 2, first=0), Shape(hidden=D, experts=6, context=3, width=8, dropout=0.1)
    module = NETWORKS[preset].module(shape, pairs).eval()
    hidden, gates = rng.normal(size=(5, 4, D)), (rng.random((5, 4, 3, 6)) < 0.3)
    tensors = [torch.from_numpy(a.astype(np.float32)) for a in (hidden, gates)]
    expected = module(*tensors).detach().numpy()
    for place, layer in enumerate(pairs.layer.tolist()):
        weights = {name: tensor.numpy()[place] for name, tensor in module.state_dict().items()}
        own = [tensor.numpy()[:, layer] for tensor in tensors]
        np.testing.assert_allclose(NETWORKS[preset].forward(weights, *own), expected[place], rtol=1e-4, atol=1e-5)


def test_every_expert_is_of_one_group() -> None:
    for experts, groups in ((8, 3), (7, 7), (16, 4), (5, 1)):
        member = membership(experts, groups)
        assert (member.sum(axis=0) == 1).all()
        assert member.sum(axis=1).max() - member.sum(axis=1).min() <= 1


@pytest.mark.parametrize("k", [1, 2, 6, 8])
@pytest.mark.parametrize("scale", [0.01, 1, 100, 10_000])
def test_shares_are_chances_of_a_set_of_k(k: int, scale: float) -> None:
    logits = (np.random.default_rng(k).normal(size=(50, 8)) * scale).astype(np.float32)
    found = shares(logits, k)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert (found >= 0).all()
    assert (k * found <= 1 + 1e-4).all()
    if k < 8:
        ordered = np.take_along_axis(found, np.argsort(-logits, axis=1), axis=1)
        assert (np.diff(ordered, axis=1) <= 0).all()
    np.testing.assert_allclose(shares(np.zeros((1, 8), np.float32), k), 1 / 8)


def test_the_ranking_loss_by_hand() -> None:
    logits = torch.tensor([[[2.0, 0.5, 1.2, -1.0]]])
    answers = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    # 2.0 stands 0.8 above 1.2: short by 0.2; 0.5 stands 0.7 below 1.2: short by 1.7; both are clear of -1.0
    assert float(ranking(logits, answers)) == pytest.approx((0.2 + 1.7) / 2)
    assert float(ranking(logits, torch.zeros_like(answers))) == 0.0


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*HIDDEN, "next-gate", "next-gate:state=residual"])
def test_missing_hidden_states_are_answered_with_a_sentence(name: str) -> None:
    trace = make_trace()
    with pytest.raises(TraceError, match="--hidden"):
        build(PREDICTORS, name).fit(trace)
    with pytest.raises(ChoiceError, match="--hidden"):
        choose(trace, [name])


@pytest.mark.parametrize("name", HIDDEN)
def test_a_horizon_beyond_the_last_layer_is_answered_with_a_sentence(name: str) -> None:
    with pytest.raises(ChoiceError, match="horizon 5 does not fit 5 layers"):
        build(PREDICTORS, name, horizon=5).fit(make_trace(hidden=D))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gating:preset=deep", "choose one of contextual, transformer, hierarchical"),
        ("gating:width=6", "multiple of 4"),
        ("gating:context=0", "at least 1"),
        ("pre-attention:loss=square", "choose one of ranking, entropy"),
        ("pre-attention:rank=0", "at least 1"),
        ("probe:rank=-1", "0 .a full map. or more"),
        ("next-gate:state=embedding", "choose one of router, residual"),
    ],
)
def test_a_wrong_option_is_answered_with_a_sentence(name: str, message: str) -> None:
    with pytest.raises(ForegateError, match=message):
        build(PREDICTORS, name).fit(make_trace(hidden=D))


def test_next_gate_refuses_a_model_of_another_shape(folder: Path) -> None:
    with pytest.raises(ModelError, match="name the model that it was recorded from"):
        build(PREDICTORS, f"next-gate:model={folder}").fit(make_trace(hidden=D))


def test_train_reads_the_states_that_its_predictor_needs(tmp_path: Path) -> None:
    from foregate.cli.train import command
    from foregate.predictors.storage import load

    write_trace(make_trace(prompts=12, hidden=D), tmp_path / "t.parquet")
    for name in ("probe:epochs=1", "pre-attention:epochs=1,rank=4", "gating:epochs=1,width=8"):
        command(name, [tmp_path / "t.parquet"], output=tmp_path / "p.npz", distance=2, overwrite=True)
        query = Replay(make_trace(hidden=D).take(slice(0, 12)), as_decode=True).query(0, 2)
        assert load(tmp_path / "p.npz").covers(query).all()
