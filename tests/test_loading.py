"""A hollow model is the whole one without its experts' weights, and these are never read."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from foregate.errors import ModelError

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402

from foregate import models  # noqa: E402
from foregate.runtime.loading import HollowModel, load_hollow  # noqa: E402

# The families that issue 5 names, and those that hold experts in a way of their own.
OFTEN = [
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss", "phimoe", "granitemoe",
    "glm4_moe", "qwen3_next", "jamba", "switch_transformers", "nllb_moe", "dbrx", "llama4", "jetmoe", "longcat_flash",
    "gemma4", "nemotron_h", "deepseek_v4", "minimax", "step3p7", "qwen3_vl_moe",
]  # fmt: skip
FAMILIES = [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in tiny_models.FAMILIES]


@contextmanager
def transformers_says() -> Iterator[list[str]]:
    """What it logs meanwhile."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


def saved(model: Any, folder: Path, shard: str = "60kB") -> str:
    model.save_pretrained(folder, max_shard_size=shard)
    tiny_models.tokenizer().save_pretrained(folder)
    return str(folder)


def tensors(model: Any) -> dict[str, Any]:
    return {**model.state_dict(keep_vars=True), **dict(model.named_buffers())}


def lost(hollow: HollowModel) -> dict[str, Any]:
    return {f"{w.module}.{w.name}": w for weights in hollow.missing for w in weights}


@pytest.mark.parametrize("name", FAMILIES)
def test_all_but_the_experts_is_as_transformers_loads_it(name: str, tmp_path: Path) -> None:
    folder = saved(tiny_models.family(name), tmp_path)
    with transformers_says() as whole_said:
        whole, _ = models.load(folder, dtype="bfloat16")
    with transformers_says() as said:
        hollow = load_hollow(folder, dtype="bfloat16")
    expected, there, gone = tensors(whole), tensors(hollow.model), lost(hollow)
    assert gone
    assert set(expected) - set(there) == set(gone)
    assert set(there) <= set(expected)
    for key, value in there.items():
        assert value.dtype == expected[key].dtype
        assert value.device.type == "cpu"
        assert torch.equal(value.nan_to_num(), expected[key].nan_to_num()), key
    for key, weight in gone.items():
        assert (weight.shape, weight.dtype) == (tuple(expected[key].shape), expected[key].dtype)
    layers = [layer for stack in models.stacks(whole) for layer in stack.layers]
    assert [layer.path for layer in hollow.layers] == [layer.path for layer in layers]
    assert hollow.expert_bytes == tuple(layer.expert_bytes for layer in layers)
    assert type(hollow.model) is type(whole)
    assert not hollow.model.training
    assert hollow.model.config._experts_implementation == "eager"
    assert hollow.model.generation_config.to_dict() == whole.generation_config.to_dict()
    assert [text for text in said if "UNEXPECTED" in text] == [text for text in whole_said if "UNEXPECTED" in text]


def test_weights_that_a_family_keeps_in_32_bits_are_described_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.MixtralForCausalLM, "_keep_in_fp32_modules_strict", ["experts.down_proj"])
    folder = saved(tiny_models.mixtral(), tmp_path)
    whole, _ = models.load(folder, dtype="float16")
    gone = lost(load_hollow(folder, dtype="float16"))
    assert {weight.dtype for weight in gone.values()} == {torch.float16, torch.float32}
    assert all(weight.dtype == tensors(whole)[key].dtype for key, weight in gone.items())


def test_shards_make_no_difference(tmp_path: Path) -> None:
    model = tiny_models.mixtral()
    one, many = saved(model, tmp_path / "one", "1GB"), saved(model, tmp_path / "many", "20kB")
    assert len(list(Path(many).glob("*.safetensors"))) > 3
    a, b = load_hollow(one), load_hollow(many)
    assert a.missing == b.missing
    assert all(torch.equal(value, tensors(b.model)[key]) for key, value in tensors(a.model).items())


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    hollow = load_hollow(saved(tiny_models.mixtral(tie_word_embeddings=True), tmp_path))
    assert hollow.model.lm_head.weight is hollow.model.model.embed_tokens.weight
    assert hollow.dense_bytes < sum(t.numel() * t.element_size() for t in tensors(hollow.model).values())


def test_other_tensors_that_belong_to_nothing_are_still_spoken_of(tmp_path: Path) -> None:
    model = tiny_models.mixtral()
    model.save_pretrained(tmp_path, state_dict={**model.state_dict(), "stray.weight": torch.ones(2)})
    tiny_models.tokenizer().save_pretrained(tmp_path)
    with transformers_says() as said:
        load_hollow(str(tmp_path))
    assert re.findall(r"(\S+)\s*\|.*UNEXPECTED", "\n".join(said)) == ["stray.weight"]


@pytest.mark.gpu
def test_everything_is_on_the_device_that_was_asked_for(tmp_path: Path) -> None:
    hollow = load_hollow(saved(tiny_models.mixtral(), tmp_path), device="cuda")
    assert {value.device.type for value in tensors(hollow.model).values()} == {"cuda"}


# --- memory ----------------------------------------------------------------------------------------------------------

PEAK = """
import re, sys
from pathlib import Path
import torch, transformers, safetensors
from transformers import AutoConfig, AutoTokenizer, MixtralForCausalLM
from foregate.runtime.loading import load_hollow

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = peak()
print(load_hollow(sys.argv[1], dtype=sys.argv[2]).dense_bytes, peak() - before)
"""


def large_mixtral(folder: Path) -> int:
    """A checkpoint of zeros, holes on disk, with 4 x 8 experts of 31 MB as the hub has them. Returns their bytes."""
    sizes = {"hidden_size": 1024, "intermediate_size": 5120, "num_hidden_layers": 4, "vocab_size": 32000}
    heads = {"head_dim": 64, "num_attention_heads": 16, "num_key_value_heads": 16, "dtype": "bfloat16"}
    config = transformers.MixtralConfig(**sizes, **heads, architectures=["MixtralForCausalLM"])
    config.save_pretrained(folder)
    tiny_models.tokenizer().save_pretrained(folder)
    with torch.device("meta"):
        model = transformers.MixtralForCausalLM(config)
    shapes = {key: list(value.shape) for key, value in model.state_dict().items() if ".experts." not in key}
    width, inner = config.hidden_size, config.intermediate_size
    parts = {"w1": [inner, width], "w2": [width, inner], "w3": [inner, width]}
    for layer in range(config.num_hidden_layers):
        for expert in range(config.num_local_experts):
            path = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
            shapes |= {f"{path}.{part}.weight": shape for part, shape in parts.items()}
    header, end, experts = {}, 0, 0
    for key in sorted(shapes):  # experts stand between the dense weights
        start, end = end, end + 2 * int(torch.Size(shapes[key]).numel())
        header[key] = {"dtype": "BF16", "shape": shapes[key], "data_offsets": [start, end]}
        experts += (end - start) * (".experts." in key)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return experts


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize("dtype", [pytest.param("auto", marks=pytest.mark.slow), "float32"])
def test_peak_memory_is_that_of_the_dense_weights(dtype: str, tmp_path: Path) -> None:
    experts = large_mixtral(tmp_path)
    command = [sys.executable, "-c", PEAK, str(tmp_path), dtype]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    dense, grown = map(int, printed.split())
    assert experts > 1e9
    assert dense > 1e8
    assert grown < 1.15 * dense + 100e6


# --- what cannot be had ----------------------------------------------------------------------------------------------


def test_a_wrong_path_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="there is no model folder"):
        load_hollow(str(tmp_path / "nothing"))


def test_a_dense_model_is_refused_before_its_weights_are_read(tmp_path: Path) -> None:
    small = tiny_models.small(transformers.LlamaConfig)
    transformers.LlamaConfig(**small, architectures=["LlamaForCausalLM"]).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no experts"):
        load_hollow(str(tmp_path))


def test_a_quantised_checkpoint_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tiny_models.mixtral(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantised \(fp8\).*16 or 32 bits"):
        load_hollow(folder)


def test_a_checkpoint_without_safetensors_is_a_sentence(tmp_path: Path) -> None:
    folder = saved(tiny_models.mixtral(), tmp_path)
    for file in tmp_path.glob("model*"):
        file.unlink()
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="has no weights that transformers can read"):
        load_hollow(folder)


@pytest.mark.parametrize(("option", "value"), [("device", "cuda:99"), ("dtype", "int3")])
def test_what_is_not_there_cannot_be_chosen(option: str, value: str, tmp_path: Path) -> None:
    folder = saved(tiny_models.mixtral(), tmp_path)
    with pytest.raises(ModelError, match=re.escape(repr(value))):
        load_hollow(folder, **{option: value})
