"""The recorder's promises: the right tokens at the right places, files whole or resumable, mistakes in a sentence."""

import json
import lzma
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from foregate.errors import ChoiceError, ForegateError, ModelError, SourceError, StorageError  # noqa: E402
from foregate.models import load, mixture_layers, next_gate_tables  # noqa: E402
from foregate.traces.capture import Capture  # noqa: E402
from foregate.traces.prompts import PromptText, read_prompts  # noqa: E402
from foregate.traces.record_transformers import Options, batches, record  # noqa: E402
from foregate.traces.schema import Trace, concat  # noqa: E402
from foregate.traces.storage import parts, read_trace  # noqa: E402

PROMPTS = [
    PromptText(f"p/{i}", "p", " ".join(f"w{(i * 13 + j * 5) % 120}" for j in range(2 + 3 * i))) for i in range(5)
]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small run fastest so, above all beside other programs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_models.mixtral()


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_models.tokenizer()


@pytest.fixture(scope="module")
def folder(model: Any, tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model on disk."""
    where = tmp_path_factory.mktemp("tiny") / "mixtral"
    model.save_pretrained(where)
    tokenizer.save_pretrained(where)
    return where


def whole(model: Any, tokenizer: Any, options: Options, stack: str = "decoder") -> Trace:
    return concat([b.traces[stack] for b in batches(model, tokenizer, PROMPTS, options)])


def same_routing(a: Trace, b: Trace) -> bool:
    names = ("sequence", "position", "token_id", "experts")
    return a.prompts == b.prompts and all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)


def routed_by_hand(model: Any, tokens: Any) -> list[Any]:
    """Ids of each layer for one whole sequence, from the routers' outputs."""
    ids: list[Any] = []
    hooks = [layer.mlp.gate.register_forward_hook(lambda m, a, out: ids.append(out[2])) for layer in model.model.layers]
    with torch.no_grad():
        model(input_ids=torch.from_numpy(tokens.astype(np.int64))[None], use_cache=False)
    for hook in hooks:
        hook.remove()
    return [i.numpy() for i in ids]


@pytest.mark.parametrize("batch_size", [2, 5])
def test_a_batch_records_what_single_runs_record(model: Any, tokenizer: Any, batch_size: int) -> None:
    single = whole(model, tokenizer, Options(max_new_tokens=9))
    batch = whole(model, tokenizer, Options(max_new_tokens=9, batch_size=batch_size))
    assert same_routing(single, batch)
    assert np.allclose(single.weights, batch.weights, atol=1e-4)


@pytest.mark.parametrize("padding", ["left", "right"])
def test_padding_on_either_side_is_never_recorded(model: Any, tokenizer: Any, padding: str) -> None:
    trace = whole(model, tokenizer, Options(max_new_tokens=0, batch_size=5, padding=padding))
    assert same_routing(trace, whole(model, tokenizer, Options(max_new_tokens=0)))
    vocabulary = tokenizer.get_vocab()
    words = [vocabulary[w] for p in PROMPTS for w in p.text.split()]
    assert trace.token_id.tolist() == words
    assert trace.prefill.all()


def test_a_decoder_does_not_write_on_after_padding(model: Any, tokenizer: Any) -> None:
    with pytest.raises(ChoiceError, match="padding left"):
        whole(model, tokenizer, Options(max_new_tokens=2, batch_size=2, padding="right"))


def test_decoding_routes_as_prefill_would(model: Any, tokenizer: Any) -> None:
    trace = whole(model, tokenizer, Options(max_new_tokens=12))
    for rows in trace.sequences():
        for layer, ids in enumerate(routed_by_hand(model, trace.token_id[rows])):
            assert np.array_equal(np.sort(trace.experts[rows, layer]), np.sort(ids))


def test_steps_number_forward_passes(model: Any, tokenizer: Any) -> None:
    trace = whole(model, tokenizer, Options(max_new_tokens=6, batch_size=5))
    assert (trace.step[trace.prefill] == 0).all()
    decoded = ~trace.prefill
    lengths = np.array([p.prefill for p in trace.prompts])
    assert np.array_equal(trace.step[decoded], 1 + trace.position[decoded] - lengths[trace.sequence[decoded]])


def test_what_a_batch_feeds_after_a_texts_end_is_not_recorded(tokenizer: Any) -> None:
    """Many tokens end a text, so some texts end early and are then fed padding."""
    model = tiny_models.mixtral()
    model.generation_config.eos_token_id = list(range(1, 20))
    single = whole(model, tokenizer, Options(max_new_tokens=12))
    batch = whole(model, tokenizer, Options(max_new_tokens=12, batch_size=5))
    assert same_routing(single, batch)
    lengths = np.bincount(single.sequence)
    assert len(set(lengths - [p.prefill for p in single.prompts])) > 1  # they ended at different times


@pytest.mark.parametrize("guessed", [2, 5])
def test_prompt_lookup_keeps_positions_and_drops_rejected_tokens(tokenizer: Any, guessed: int) -> None:
    model = tiny_models.mixtral(seed=1)
    repeated = [PromptText("r", "r", " ".join(["w1 w2 w3 w4 w5"] * 4)), PromptText("q", "r", "w9 w8 w9 w8 w9 w8")]
    plain, looked = Options(max_new_tokens=24), Options(max_new_tokens=24, prompt_lookup=guessed)
    a = concat([b.traces["decoder"] for b in batches(model, tokenizer, repeated, plain)])
    carried, guessing = 0, []
    for batch in batches(model, tokenizer, repeated, looked):
        guessing.append(batch.traces["decoder"])
        carried += batch.checks["decoder"].carried
    b = concat(guessing)
    assert same_routing(a, b)
    assert carried > len(b)  # some guesses were rejected
    assert len(np.unique(b.step)) < len(np.unique(a.step))  # and some were taken


@pytest.mark.parametrize("name", ["jamba", "switch_transformers"])
def test_prompt_lookup_is_refused_where_it_cannot_work(tokenizer: Any, name: str) -> None:
    with pytest.raises(ChoiceError, match="leave --prompt-lookup out"):
        whole(tiny_models.family(name), tokenizer, Options(prompt_lookup=3))


def test_hidden_states_are_the_routers_inputs(model: Any, tokenizer: Any) -> None:
    trace = whole(model, tokenizer, Options(max_new_tokens=6, hidden=True))
    assert trace.hidden is not None
    assert trace.hidden.dtype == np.float16
    agree = []
    for layer, mixture in enumerate(mixture_layers(model)):
        with torch.no_grad():
            _, _, ids = mixture.router(torch.from_numpy(trace.hidden[:, layer].astype(np.float32)))
        agree.append((np.sort(ids.numpy()) == np.sort(trace.experts[:, layer])).all(axis=1).mean())
    assert min(agree) > 0.97  # float16 may turn a near tie


def test_the_self_check_sees_a_router_that_does_not_decide(model: Any, tokenizer: Any) -> None:
    """Change the ids between router and experts: the self-check says that what ran does not follow from the routers."""
    gate = mixture_layers(model)[0].router
    handle = gate.register_forward_hook(lambda m, a, out: (out[0], out[1], (out[2] + 1) % 8))
    (batch,) = batches(model, tokenizer, PROMPTS[:1], Options(max_new_tokens=0))
    handle.remove()
    share = batch.checks["decoder"].share
    assert share is not None
    assert share < 1


def test_settings_tell_how_much_was_checked(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (file,) = record(model, tokenizer, PROMPTS, tmp_path / "t.parquet", Options(max_new_tokens=40))
    provenance = read_trace(file).provenance
    check = provenance.settings["self_check"]
    assert provenance.self_check == 1.0
    assert 0 < check["tokens"] < check["carried"] == len(read_trace(file))
    assert {"dtype", "batch_size", "max_new_tokens", "experts_implementation", "prompts"} <= set(provenance.settings)
    assert set(provenance.versions) == {"torch", "transformers", "foregate"}


def test_what_is_recorded_is_no_top_k_of_the_logits(tokenizer: Any) -> None:
    """DeepSeek-V3 adds a bias and limits groups before it chooses."""
    biased = tiny_models.family("deepseek_v3")
    logits: list[Any] = []
    layer = mixture_layers(biased)[0]
    layer.router.e_score_correction_bias.normal_(0, 1)
    handle = layer.router.register_forward_hook(lambda m, a, out: logits.append(out[0]))
    (batch,) = batches(biased, tokenizer, PROMPTS[-1:], Options(max_new_tokens=0))
    handle.remove()
    guessed = np.sort(logits[0].topk(2).indices.numpy())
    assert (np.sort(batch.traces["decoder"].experts[:, 0]) == guessed).all(axis=1).mean() < 0.9
    assert batch.checks["decoder"].share == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_lose_nothing_in_any_dtype(tokenizer: Any, dtype: Any) -> None:
    narrow = tiny_models.mixtral().to(dtype)
    handed: list[Any] = []
    experts = mixture_layers(narrow)[0].experts[0]
    handle = experts.register_forward_pre_hook(lambda m, a: handed.append(a[2].double().numpy()))
    (batch,) = batches(narrow, tokenizer, PROMPTS[-1:], Options(max_new_tokens=4, hidden=True))
    handle.remove()
    weights = batch.traces["decoder"].weights
    assert weights is not None
    assert np.array_equal(weights[:, 0].astype(np.float64), np.concatenate(handed))


def test_capture_reads_any_run_of_the_model(model: Any) -> None:
    """The hooks by themselves: a right-padded pass with no position ids."""
    from foregate.models import stacks

    tokens = torch.tensor([[5, 6, 7, 0], [8, 9, 10, 11]])
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    with Capture(stacks(model)[0]) as capture, torch.no_grad():
        model(tokens, attention_mask=mask)
        rows, check = capture.take()
    assert rows.real.tolist() == [True, True, True, False, True, True, True, True]
    assert rows.position[rows.real].tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert check.share == 1.0
    assert not model.model.layers[0].mlp.gate._forward_pre_hooks


# --- files -----------------------------------------------------------------------------------------------------------


class Stopped(Exception):  # noqa: N818 - nothing went wrong
    """A recording is broken off."""


def stop_after(prompts: int) -> Any:
    def progress(done: int, tokens: int) -> None:
        if done >= prompts:
            raise Stopped

    return progress


@pytest.fixture
def flush_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foregate.traces.record_transformers.FLUSH_SECONDS", 0.0)


@pytest.mark.parametrize(
    "options", [Options(max_new_tokens=5, hidden=True), Options(max_new_tokens=5, batch_size=2, sample=True)]
)
@pytest.mark.usefixtures("flush_each_batch")
def test_a_resumed_recording_equals_an_uninterrupted_one(
    model: Any, tokenizer: Any, tmp_path: Path, options: Options
) -> None:
    (straight,) = record(model, tokenizer, PROMPTS, tmp_path / "a.parquet", options)
    with pytest.raises(Stopped):
        record(model, tokenizer, PROMPTS, tmp_path / "b.parquet", options, progress=stop_after(2))
    left = read_trace(tmp_path / "b.parquet.partial")
    assert 2 <= len(left.prompts) < len(PROMPTS)
    with pytest.raises(StorageError, match="--resume"):
        record(model, tokenizer, PROMPTS, tmp_path / "b.parquet", options)
    (resumed,) = record(model, tokenizer, PROMPTS, tmp_path / "b.parquet", options, resume=True)
    a, b = read_trace(straight), read_trace(resumed)
    assert a.equals(b)
    assert a.provenance == b.provenance
    assert not (tmp_path / "b.parquet.partial").exists()


@pytest.mark.parametrize(
    ("changed", "names"),
    [(Options(max_new_tokens=6), "max_new_tokens"), (Options(max_new_tokens=5, weights=False), "weights")],
)
@pytest.mark.usefixtures("flush_each_batch")
def test_resuming_with_other_settings_is_refused(
    model: Any, tokenizer: Any, tmp_path: Path, changed: Options, names: str
) -> None:
    path = tmp_path / "t.parquet"
    with pytest.raises(Stopped):
        record(model, tokenizer, PROMPTS, path, Options(max_new_tokens=5), progress=stop_after(1))
    with pytest.raises(StorageError, match=names):
        record(model, tokenizer, PROMPTS, path, changed, resume=True)
    other = [replace(PROMPTS[0], text="w1"), *PROMPTS[1:]]
    with pytest.raises(StorageError, match="prompts_sha256"):
        record(model, tokenizer, other, path, Options(max_new_tokens=5), resume=True)
    with pytest.raises(StorageError, match="model"):
        record(model, tokenizer, PROMPTS, path, Options(max_new_tokens=5), resume=True, name="another")
    record(model, tokenizer, PROMPTS, path, changed, overwrite=True)


def test_an_existing_output_is_not_replaced_unasked(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    record(model, tokenizer, PROMPTS[:1], path, Options(max_new_tokens=0))
    with pytest.raises(StorageError, match="--overwrite"):
        record(model, tokenizer, PROMPTS[:1], path, Options(max_new_tokens=0))


SCRIPT = """
import sys, tiny_models
from foregate.traces import record_transformers as r
from foregate.traces.prompts import PromptText
r.FLUSH_SECONDS = 0.0
prompts = [PromptText(f"p/{i}", "p", "w1 w2 w3 w%d" % (i % 100)) for i in range(100000)]
r.record(tiny_models.mixtral(), tiny_models.tokenizer(), prompts, sys.argv[1], r.Options(max_new_tokens=4))
"""


def test_a_killed_recording_keeps_what_it_flushed(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(path)], env=environment, stderr=subprocess.DEVNULL)
    folder = path.with_name("t.parquet.partial")
    deadline = time.monotonic() + 50
    while len(parts(folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    trace = read_trace(folder)
    assert len(trace.prompts) >= 3
    assert [p.name for p in trace.prompts] == [f"p/{i}" for i in range(len(trace.prompts))]
    assert trace.provenance.self_check == 1.0
    assert not path.exists()


FULL = """
import resource, signal, sys, tiny_models
from foregate.errors import StorageError
from foregate.traces import record_transformers as r
from foregate.traces.prompts import PromptText
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails with an error, as a full disk does
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    r.record(tiny_models.mixtral(), tiny_models.tokenizer(), [PromptText("p", "p", "w1 " * 40)], sys.argv[1])
except StorageError as error:
    print(error)
"""


def test_a_full_disk_is_told_in_a_sentence(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FULL, str(tmp_path / "t.parquet")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "cannot write" in done.stdout
    assert "File too large" in done.stdout
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []


def test_an_encoder_decoder_writes_a_file_for_each_stack(tokenizer: Any, tmp_path: Path) -> None:
    model = tiny_models.family("switch_transformers")
    options = Options(max_new_tokens=6, batch_size=2)
    files = record(model, tokenizer, PROMPTS, tmp_path / "s.parquet", options)
    assert [f.name for f in files] == ["s.encoder.parquet", "s.decoder.parquet"]
    encoder, decoder = map(read_trace, files)
    assert (encoder.spec.stack, decoder.spec.stack) == ("encoder", "decoder")
    assert [p.prefill for p in encoder.prompts] == [len(p.text.split()) for p in PROMPTS]
    assert encoder.prefill.all()
    assert all(p.prefill == 1 for p in decoder.prompts)
    assert (decoder.token_id[decoder.position == 0] == 0).all()
    assert encoder.provenance.settings["padding"] == "right"
    single = whole(model, tokenizer, Options(max_new_tokens=6), "decoder")
    assert same_routing(single, decoder)
    (only,) = record(model, tokenizer, PROMPTS, tmp_path / "e.parquet", replace(options, stack="encoder"))
    assert read_trace(only).equals(encoder)


def test_an_interrupted_recording_keeps_whole_batches(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    def interrupt(done: int, tokens: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record(model, tokenizer, PROMPTS, tmp_path / "t.parquet", Options(max_new_tokens=3), progress=interrupt)
    assert len(read_trace(tmp_path / "t.parquet.partial").prompts) == 3


@pytest.mark.usefixtures("flush_each_batch")
def test_two_stacks_resume_together(tokenizer: Any, tmp_path: Path) -> None:
    """Killed between the two flushes of a batch, the longer folder is cut back to the shorter."""
    model = tiny_models.family("switch_transformers")
    options = Options(max_new_tokens=3)
    straight = record(model, tokenizer, PROMPTS, tmp_path / "a.parquet", options)
    with pytest.raises(Stopped):
        record(model, tokenizer, PROMPTS, tmp_path / "b.parquet", options, progress=stop_after(3))
    parts(tmp_path / "b.decoder.parquet.partial")[-1].unlink()
    resumed = record(model, tokenizer, PROMPTS, tmp_path / "b.parquet", options, resume=True)
    for a, b in zip(straight, resumed, strict=True):
        assert read_trace(a).equals(read_trace(b))


def test_a_stack_without_experts_is_told(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(ChoiceError, match="only in its decoder"):
        record(model, tokenizer, PROMPTS, tmp_path / "t.parquet", Options(stack="encoder"))


# --- models ----------------------------------------------------------------------------------------------------------


def test_a_dense_model_is_refused(tokenizer: Any, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**tiny_models.small(transformers.LlamaConfig))
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    tokenizer.save_pretrained(tmp_path / "dense")
    with pytest.raises(ModelError, match="has no experts to record; foregate needs a Mixture-of-Experts model"):
        load(str(tmp_path / "dense"))


def test_models_that_cannot_be_had_are_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="there is no model folder"):
        load(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="has no config"):
        load(str(tmp_path / "empty"))
    with pytest.raises(ModelError, match="no local folder, and the Hugging Face hub"):
        load("nobody/has-this-model")
    with pytest.raises(ModelError, match="no dtype 'int3'"):
        load(str(folder), dtype="int3")
    with pytest.raises(ModelError, match="no device 'cuda:99' here"):
        load(str(folder), device="cuda:99")
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        (bare / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(ModelError, match="has no tokenizer"):
        load(str(bare))
    (bare / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1000])
    (bare / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    (bare / "tokenizer_config.json").write_bytes((folder / "tokenizer_config.json").read_bytes())
    with pytest.raises(ModelError, match="has no weights"):
        load(str(bare))


def test_expert_bytes_follow_the_dtype(folder: Path) -> None:
    for dtype, width in (("float32", 4), ("bfloat16", 2)):
        loaded, _ = load(str(folder), dtype=dtype, device="cpu")
        assert [layer.expert_bytes for layer in mixture_layers(loaded)] == [3 * 32 * 48 * width] * 2


def test_gate_tables_apply_a_later_gate_to_this_layer(model: Any, tokenizer: Any) -> None:
    """Bridge a layer's residual stream: norm and gate by hand equal the tables."""
    for layer in model.model.layers:
        layer.post_attention_layernorm.weight.data.uniform_(0.5, 2.0)
    gain, router, bias = next_gate_tables(model)
    x = torch.randn(3, 32)
    with torch.no_grad():
        logits, _, _ = model.model.layers[1].mlp.gate(model.model.layers[1].post_attention_layernorm(x))
    unit = (x / x.pow(2).mean(-1, keepdim=True).sqrt()).numpy()
    assert bias is None
    assert np.allclose((gain[1] * unit) @ router[1].T, logits.numpy(), atol=1e-3)


@pytest.mark.parametrize("name", ["qwen3_next", "gpt_oss", "afmoe", "llama4"])
def test_gate_tables_give_the_routers_logits(name: str) -> None:
    """Norms that multiply by 1 + weight, routers with a bias, routers with extra arguments."""
    gain, router, bias = next_gate_tables(tiny_models.family(name))
    assert gain.shape == (len(router), 32)
    assert router.shape[1:] == (8, 32)
    assert (bias is not None) == (name == "gpt_oss")


@pytest.mark.parametrize(
    ("name", "why"), [("phimoe", "no RMSNorm"), ("dbrx", "norm"), ("gemma4", "norm"), ("deepseek_v4", "reads more")]
)
def test_gate_tables_refuse_what_they_cannot_hold(name: str, why: str) -> None:
    with pytest.raises(ModelError, match=why):
        next_gate_tables(tiny_models.family(name))


# --- prompts ---------------------------------------------------------------------------------------------------------


def test_prompts_of_a_text_file_are_its_lines(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("one\n\n  two words \n", encoding="utf-8")
    assert read_prompts(str(tmp_path / "mine.txt")) == [
        PromptText("mine/0", "mine", "one"),
        PromptText("mine/1", "mine", "two words"),
    ]
    assert len(read_prompts(str(tmp_path / "mine.txt"), limit=1)) == 1


def test_prompts_of_a_json_lines_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "name": "x", "dataset": "d"}, {"question": "b"}, {"text": "c"}]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert read_prompts(str(tmp_path / "q.jsonl")) == [
        PromptText("x", "d", "a"),
        PromptText("q/1", "q", "b"),
        PromptText("q/2", "q", "c"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "error", "says"),
    [
        ("e.txt", b"", SourceError, "holds no prompts"),
        ("e.txt", b"\xff\xfe\x00", SourceError, "not UTF-8"),
        ("e.jsonl", b'{"prompt": "a"}\n{"prompt": "b', SourceError, "e.jsonl, line 2 is not whole JSON"),
        ("e.jsonl", b'{"answer": "a"}', SourceError, "line 1 has no text in a field prompt, question or text"),
        ("e.jsonl", b"[1]", SourceError, "no JSON object"),
        ("e.jsonl", b'{"prompt":"a","name":"x"}\n{"prompt":"b","name":"x"}', SourceError, "used twice"),
        ("e.json", b"{}", SourceError, ".jsonl"),
        ("e.txt.xz", lzma.compress(b"words " * 999)[:-20], SourceError, "cut off"),
    ],
)
def test_broken_prompts_name_file_and_line(
    tmp_path: Path, name: str, content: bytes, error: type[ForegateError], says: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=says):
        read_prompts(str(tmp_path / name))


def test_unknown_prompts_are_told() -> None:
    with pytest.raises(ChoiceError, match="humaneval"):
        read_prompts("humanevil")
    with pytest.raises(SourceError, match="there is no file nowhere"):
        read_prompts("gsm8k=nowhere.jsonl")
    with pytest.raises(ChoiceError, match="--limit"):
        read_prompts("humaneval", limit=0)


@pytest.mark.parametrize(
    ("source", "file", "count", "first"),
    [
        ("humaneval", "HumanEval.jsonl.gz", 164, "HumanEval/0"),
        ("gsm8k", "gsm8k_test.jsonl.xz", 1319, "gsm8k/0"),
        ("wikitext", "wikitext-2_valid.txt.xz", None, "wikitext/0"),
    ],
)
def test_local_copies_of_known_sets(shared: Path, source: str, file: str, count: int | None, first: str) -> None:
    prompts = read_prompts(f"{source}={shared / 'prompts' / file}")
    assert prompts[0].name == first
    assert {p.dataset for p in prompts} == {source}
    assert count is None or len(prompts) == count
    assert not any(p.text.startswith("= ") for p in prompts)


def test_a_prompt_that_does_not_fit_is_told(model: Any, tokenizer: Any) -> None:
    long = [PromptText("long", "l", "w1 " * 300)]
    with pytest.raises(ChoiceError, match="--max-prompt-tokens 224"):
        list(batches(model, tokenizer, long))
    (batch,) = batches(model, tokenizer, long, Options(max_prompt_tokens=9, max_new_tokens=0))
    assert len(batch.traces["decoder"]) == 9


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_records_and_says_where_to_look_next(folder: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from foregate.cli import app

    (tmp_path / "p.txt").write_text("w1 w2 w3\nw4 w5\nw6\n", encoding="utf-8")
    out = tmp_path / "t.parquet"
    arguments = ["record", str(folder), "--prompts", str(tmp_path / "p.txt"), "-o", str(out), "--device", "cpu"]
    done = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "4", "--limit", "2", "--no-weights"])
    assert done.exit_code == 0, done.output
    assert "100.00% of the ids came again" in done.output
    assert f"next: foregate describe {out}" in done.output
    trace = read_trace(out)
    assert trace.weights is None
    assert len(trace.prompts) == 2
    assert trace.spec.model == str(folder)
    again = CliRunner().invoke(app, arguments)
    assert isinstance(again.exception, StorageError)


def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from foregate.cli import main; main()", "record", "./nothing"]
    done = subprocess.run(
        [*command, "--prompts", "nowhere", "-o", "t.parquet"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("foregate: nowhere is no file")
    assert done.stderr.count("\n") == 1
