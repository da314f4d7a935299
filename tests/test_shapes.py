"""A model's shape is what its configuration says, wherever it is taken from."""

from dataclasses import replace
from pathlib import Path

import pytest

from foregate.errors import ChoiceError, TraceError
from foregate.hardware.machine import Machine
from foregate.hardware.profile import ModelShape as Timed
from foregate.hardware.profile import Profile, Timing
from foregate.simulation.shapes import (
    MODELS,
    PUBLISHED,
    ModelShape,
    find_shape,
    of_config,
    of_model,
    of_spec,
    preset_of,
    timed_on,
)
from foregate.spec import MoESpec

TINY = Path(__file__).parent.parent / "models" / "tiny"

# One expert's matrices as [rows, columns] each, written out from the models' cards, and their bytes a number.
MATRICES = {
    "mixtral-8x7b": ([(14336, 4096), (4096, 14336), (14336, 4096)], 2),
    "switch-base-128": ([(768, 3072), (3072, 768)], 4),
    "switch-large-128": ([(1024, 4096), (4096, 1024)], 4),
    "qwen1.5-moe-a2.7b": ([(1408, 2048), (2048, 1408), (1408, 2048)], 2),
    "deepseek-v2-lite": ([(1408, 2048), (2048, 1408), (1408, 2048)], 2),
    "qwen3-30b-a3b": ([(768, 2048), (2048, 768), (768, 2048)], 2),
    "olmoe-1b-7b": ([(1024, 2048), (2048, 1024), (1024, 2048)], 2),
}
# All parameters, as the models' cards give them, in billions; of the Switch models both stacks.
BILLIONS = {
    "mixtral-8x7b": 46.7,
    "qwen1.5-moe-a2.7b": 14.3,
    "deepseek-v2-lite": 15.7,
    "qwen3-30b-a3b": 30.5,
    "olmoe-1b-7b": 6.92,
    "gpt-oss-120b": 116.8,
}


@pytest.mark.parametrize("name", MATRICES)
def test_an_experts_bytes_follow_from_its_matrices(name: str) -> None:
    matrices, size = MATRICES[name]
    assert MODELS[name].expert_bytes[0] == sum(rows * columns for rows, columns in matrices) * size


def test_four_bit_experts_count_their_scales_and_biases() -> None:
    weights = 3 * 2880 * 2880
    assert MODELS["gpt-oss-120b"].expert_bytes[0] == weights // 2 + weights // 32 + 3 * 2880 * 2


@pytest.mark.parametrize("name", BILLIONS)
def test_all_parts_add_up_to_the_published_parameters(name: str) -> None:
    p = PUBLISHED[name]
    experts = p.layers * p.experts * p.matrices * p.hidden * p.inner
    dense = sum(p.shape(name).dense_bytes) * 8 // p.dense_bits
    whole = experts + dense + 2 * p.vocabulary * p.hidden
    assert whole / 1e9 == pytest.approx(BILLIONS[name], rel=0.005)


@pytest.mark.parametrize("name", MODELS)
def test_every_preset_says_where_it_is_from(name: str) -> None:
    shape = MODELS[name]
    assert "config.json" in shape.source
    assert len(shape.expert_bytes) == len(shape.dense_bytes) == shape.layers


def configured(name: str) -> object:
    transformers = pytest.importorskip("transformers")
    experts: dict[str, object] = {
        "mixtral-8x7b": transformers.MixtralConfig,
        "switch-base-128": lambda: transformers.SwitchTransformersConfig(
            d_model=768, d_ff=3072, num_layers=12, num_decoder_layers=12, num_sparse_encoder_layers=6,
            num_sparse_decoder_layers=6, num_heads=12, num_experts=128,
        ),
        "switch-large-128": lambda: transformers.SwitchTransformersConfig(
            d_model=1024, d_ff=4096, num_layers=24, num_decoder_layers=24, num_sparse_encoder_layers=12,
            num_sparse_decoder_layers=12, num_heads=16, num_experts=128,
        ),
        "qwen1.5-moe-a2.7b": transformers.Qwen2MoeConfig,
        "deepseek-v2-lite": lambda: transformers.DeepseekV2Config(
            hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408, num_hidden_layers=27,
            num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None, num_experts_per_tok=6,
            first_k_dense_replace=1, mlp_layer_types=["dense"] + ["sparse"] * 26,
        ),
        "qwen3-30b-a3b": lambda: transformers.Qwen3MoeConfig(num_hidden_layers=48, head_dim=128),
        "olmoe-1b-7b": lambda: transformers.OlmoeConfig(intermediate_size=1024, num_experts_per_tok=8),
        "gpt-oss-120b": transformers.GptOssConfig,
    }  # fmt: skip
    return experts[name]()  # type: ignore[operator]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_a_preset_is_what_transformers_builds(name: str) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    preset = MODELS[name]
    config = configured(name)
    auto = transformers.AutoModelForSeq2SeqLM if "switch" in name else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, dtype=torch.float32 if "switch" in name else torch.bfloat16)
    built = of_model(model, name)
    assert (built.layers, built.experts, built.top_k, built.hidden) == (
        preset.layers, preset.experts, preset.top_k, preset.hidden,
    )  # fmt: skip
    if preset.dtype != "mxfp4":  # transformers builds it with 16 bits
        assert built.expert_bytes == preset.expert_bytes
    assert built.head_bytes == preset.head_bytes
    # Norms and attention's biases are left out of presets.
    assert built.dense_bytes == pytest.approx(preset.dense_bytes, rel=0.01)


def test_a_folder_gives_what_its_weights_hold() -> None:
    pytest.importorskip("transformers")
    from safetensors import safe_open

    shape = of_config(str(TINY))
    with safe_open(str(TINY / "model.safetensors"), "pt") as file:
        sizes = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    layers = sum(size for name, size in sizes.items() if ".layers." in name)
    assert sum(shape.expert_bytes) * shape.experts == experts
    assert sum(shape.dense_bytes) == layers - experts


SPEC = MoESpec("DeepSeek-V2-Lite-Chat", "decoder", tuple(range(1, 27)), 64, 6)


def test_a_traces_name_finds_its_preset() -> None:
    assert find_shape(None, SPEC) == MODELS["deepseek-v2-lite"]
    assert preset_of("mistralai/Mixtral-8x7B-Instruct-v0.1") == "mixtral-8x7b"
    assert preset_of("Mixtral-8x70B") is None


def test_what_the_trace_says_of_its_experts_wins_unless_a_model_is_named() -> None:
    spec = replace(SPEC, top_k=4, expert_bytes=tuple(range(1000, 1026)))
    shape = find_shape(None, spec)
    assert (shape.top_k, shape.expert_bytes) == (4, spec.expert_bytes)
    assert shape.slot_bytes == 1025
    named = find_shape("deepseek-v2-lite", spec)
    assert (named.top_k, named.expert_bytes) == (4, MODELS["deepseek-v2-lite"].expert_bytes)


def test_a_trace_that_lacks_layers_of_the_model_is_refused() -> None:
    spec = MoESpec("Qwen1.5-MoE-A2.7B-Chat", "decoder", (0, 8, 12, 18, 23), 60, 4)
    with pytest.raises(TraceError, match="has 5 decoder layers of 60 experts, qwen"):
        find_shape(None, spec)


def test_a_trace_of_unknown_sizes_asks_for_a_model() -> None:
    spec = MoESpec("nobody", "decoder", (0, 1), 8, 2)
    with pytest.raises(ChoiceError, match="give --model"):
        find_shape(None, spec)
    assert of_spec(spec, 100).expert_bytes == (100, 100)
    with pytest.raises(ChoiceError, match="0 bytes"):
        of_spec(replace(spec, expert_bytes=(0, 0)))


def test_times_of_another_model_are_not_taken_for_this_ones() -> None:
    timings = (Timing("read", 100, 1.0, "measured"), Timing("expert", 1, 1.0, "measured"))
    measured = Profile("here", Machine(), timings, Timed("mixtral", "bfloat16", 32, 8, 4096, 352321536))
    mixtral: ModelShape = MODELS["mixtral-8x7b"]
    assert timed_on(measured, mixtral) is measured
    other = timed_on(measured, MODELS["olmoe-1b-7b"])
    assert other.of("read")
    assert not other.of("expert")
    assert "not on olmoe-1b-7b" in other.notes[-1]
