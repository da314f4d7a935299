"""The promises of the committed model in `models/tiny` and of the recipe that trains it."""

import dataclasses
import hashlib
import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parent.parent
TINY = ROOT / "models" / "tiny"
SLICES = {"functools.py": 4000, "multiprocessing/connection.py": 4000, "colorsys.py": 4000}  # file, characters


def load_recipe():
    spec = importlib.util.spec_from_file_location("train_tiny", ROOT / "recipes" / "train_tiny.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_tiny"] = module
    spec.loader.exec_module(module)
    return module


recipe_module = load_recipe()
SMALL = recipe_module.Recipe(
    layers=2,
    hidden=32,
    heads=2,
    kv_heads=1,
    experts=4,
    expert_hidden=16,
    vocabulary=400,
    context=32,
    batch=2,
    steps=3,
    warmup=1,
)


@pytest.fixture(autouse=True)
def keep_torch_settings():
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture(scope="module")
def tokenizer():
    return transformers.AutoTokenizer.from_pretrained(TINY, local_files_only=True)


@pytest.fixture(scope="module")
def model():
    return transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32, local_files_only=True)


@pytest.fixture(scope="module")
def corpus():
    return recipe_module.read_corpus()


@pytest.fixture(scope="module")
def held_out_slices(corpus):
    missing = SLICES.keys() - corpus.held_out.keys()
    if missing:
        pytest.skip(f"this interpreter's standard library has no {', '.join(sorted(missing))} to measure on")
    return [corpus.held_out[path][:size] for path, size in SLICES.items()]


@pytest.fixture(scope="module")
def measured(model, tokenizer, held_out_slices):
    return recipe_module.measure(model, recipe_module.windows(tokenizer, held_out_slices, 256))


@pytest.fixture(scope="module")
def small_ids():
    text = Path(__file__).read_text(encoding="utf-8")
    return recipe_module.stream(recipe_module.train_tokenizer([text], SMALL.vocabulary), [text])


def weights_of(model):
    digest = hashlib.sha256()
    for name, value in model.named_parameters():
        digest.update(name.encode() + value.detach().numpy().tobytes())
    return digest.hexdigest()


def test_the_folder_is_below_16_million_bytes():
    assert sum(path.stat().st_size for path in TINY.rglob("*") if path.is_file()) < 16_000_000


def test_the_card_and_the_report_name_these_weights():
    digest = hashlib.sha256((TINY / "model.safetensors").read_bytes()).hexdigest()
    assert json.loads((TINY / "training.json").read_text(encoding="utf-8"))["weights_sha256"] == digest
    assert digest in (TINY / "README.md").read_text(encoding="utf-8")


def test_the_tokenizer_puts_one_bos_first_and_loses_nothing(tokenizer):
    text = 'def greet(name):\n\treturn f"héllo {name}"  # ✓\n\n    \n'
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 0
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2)


def test_the_model_is_an_eight_layer_mixtral(model, tokenizer):
    assert type(model).__name__ == "MixtralForCausalLM"
    config = model.config
    assert (config.num_hidden_layers, config.num_local_experts, config.num_experts_per_tok) == (8, 16, 2)
    assert config.vocab_size == len(tokenizer)


def test_held_out_source_costs_below_two_point_two_bits_per_character(measured, held_out_slices):
    assert measured.nats / math.log(2) / sum(map(len, held_out_slices)) < 2.2


def test_every_held_out_token_is_scored_once(measured, tokenizer, held_out_slices):
    assert measured.tokens == sum(len(recipe_module.encode(tokenizer, text)) for text in held_out_slices)


def test_experts_share_the_load_in_each_layer(measured):
    assert measured.loads.shape == (8, 16)
    assert measured.entropy().mean() >= 0.92


def test_no_held_out_file_is_trained_on(corpus):
    assert corpus.held_out
    assert not corpus.train.keys() & corpus.held_out.keys()
    assert not any(map(recipe_module.is_held_out, corpus.train))
    assert not {text for text in corpus.held_out.values() if text.strip()} & set(corpus.train.values())


def test_the_report_lists_no_trained_file_as_held_out(corpus):
    report = json.loads((TINY / "training.json").read_text(encoding="utf-8"))
    assert report["held_out"]["paths"]
    assert not set(report["held_out"]["paths"]) & corpus.train.keys()


def test_the_corpus_leaves_out_tests_packages_and_build_records(tmp_path):
    names = ["a.py", "sub/b.py", "test/c.py", "sub/tests/d.py", "site-packages/e.py", "_sysconfigdata_x.py", "f.txt"]
    for name in [*names, "config-3.11-x/g.py", "sub/__pycache__/h.py"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    found = recipe_module.read_corpus(tmp_path)
    assert sorted({**found.train, **found.held_out}) == ["a.py", "sub/b.py"]


def test_an_epoch_shows_no_token_twice():
    ids = torch.arange(2000)
    steps = (2000 - SMALL.context) // (SMALL.context * SMALL.batch)
    first = torch.cat([recipe_module.batch_at(ids, SMALL, step, -7) for step in range(steps)])
    assert (first[:, 0] == -7).all()
    assert first[:, 1:].unique().numel() == first[:, 1:].numel()
    assert not torch.equal(recipe_module.batch_at(ids, SMALL, 0, -7), recipe_module.batch_at(ids, SMALL, steps, -7))


def test_the_balance_loss_sees_layers_that_collapse_onto_different_experts():
    even = torch.zeros(4, 8, 4)
    even[:, torch.arange(8), torch.arange(8) % 4] = 10.0
    collapsed = torch.full((4, 8, 4), -10.0)
    collapsed[torch.arange(4), :, torch.arange(4)] = 10.0  # each layer has one favourite; pooled, they look even
    assert recipe_module.balance_loss(even, 1) == pytest.approx(1.0, abs=1e-3)
    assert recipe_module.balance_loss(collapsed, 1) == pytest.approx(4.0, abs=1e-3)


def test_the_same_recipe_gives_the_same_weights(small_ids):
    first, second = (recipe_module.train(SMALL, small_ids)[0] for _ in range(2))
    other, _ = recipe_module.train(dataclasses.replace(SMALL, seed=SMALL.seed + 1), small_ids)
    assert weights_of(first) == weights_of(second) != weights_of(other)


def test_a_resumed_run_ends_like_an_uninterrupted_one(small_ids, tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    whole, state = recipe_module.train(SMALL, small_ids, every=1)
    model = recipe_module.new_model(SMALL)
    optimizer = recipe_module.new_optimizer(model, SMALL)
    part = {"recipe": dataclasses.asdict(SMALL), "step": 0, "seconds": 0.0, "curve": []}
    next(recipe_module.learn(model, optimizer, SMALL, small_ids, state=part, every=2))
    recipe_module.save_checkpoint(checkpoint, model, optimizer, part)
    resumed, resumed_state = recipe_module.train(SMALL, small_ids, checkpoint=checkpoint, resume=True, every=1)
    assert part["step"] == 2
    assert resumed_state["step"] == state["step"] == 3
    assert weights_of(resumed) == weights_of(whole)


def test_a_checkpoint_of_another_recipe_is_refused(small_ids, tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    recipe_module.train(SMALL, small_ids, checkpoint=checkpoint)
    with pytest.raises(SystemExit, match="other settings"):
        recipe_module.train(dataclasses.replace(SMALL, steps=4), small_ids, checkpoint=checkpoint, resume=True)
