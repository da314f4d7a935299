"""Tiny random models of the MoE families of transformers, and a tokenizer, made in memory. No tests here."""

# ruff: noqa: C408 - configurations are written the way they are called

import inspect
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

WORDS = [f"w{i}" for i in range(120)]

# Families spell their sizes differently; whatever a configuration has of these is set.
SMALL: dict[str, Any] = dict(
    vocab_size=128, hidden_size=32, d_model=32, intermediate_size=48, moe_intermediate_size=16, ffn_hidden_size=48,
    expert_ffn_hidden_size=16, num_hidden_layers=3, num_layers=3, n_layers=3, num_attention_heads=4, n_heads=4,
    num_key_value_heads=2, head_dim=8, num_experts=8, num_local_experts=8, n_routed_experts=8, moe_num_experts=8,
    num_experts_per_tok=2, moe_topk=2, top_k_experts=2, moe_k=2, n_group=2, topk_group=1, n_shared_experts=1,
    num_shared_experts=1, moe_num_shared_experts=1, shared_expert_intermediate_size=16, shared_intermediate_size=16,
    first_k_dense_replace=1, num_dense_layers=1, moe_layer_start_index=1, q_lora_rank=16, kv_lora_rank=16,
    qk_nope_head_dim=8, qk_rope_head_dim=8, v_head_dim=8, qk_head_dim=16, max_position_embeddings=256,
    pad_token_id=0, eos_token_id=1, bos_token_id=2, sliding_window=16, linear_num_key_heads=2,
    linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, mamba_d_state=8, mamba_n_heads=8,
    mamba_d_head=8, mamba_num_heads=8, mamba_head_dim=8, ssm_state_size=8, mamba_dt_rank=4, mamba_n_groups=1,
    n_groups=1, chunk_size=8, mamba_chunk_size=8, index_topk=8, index_n_heads=2, index_head_dim=16,
    initializer_range=0.2, init_std=0.2, depth=1, out_hidden_size=32, num_heads=4, rms_norm_eps=1e-6,
)  # fmt: skip

# What a family needs beyond that.
MLA: dict[str, Any] = dict(num_key_value_heads=4, head_dim=8)
EXTRA: dict[str, dict[str, Any]] = {
    "axk1": MLA,
    "axk2": MLA,
    "bailing_hybrid": {**MLA, "layer_group_size": 3},
    "beam": dict(mlp_layer_types=["dense", "sparse", "sparse"]),
    "dbrx": dict(
        attn_config=dict(kv_n_heads=2, rope_theta=10000.0, clip_qkv=8.0),
        ffn_config=dict(hidden_size=32, ffn_hidden_size=16, moe_num_experts=8, moe_top_k=2),
        max_seq_len=256,
    ),
    "deepseek_v2": MLA,
    "deepseek_v3": MLA,
    "deepseek_v32": MLA,
    "deepseek_v4": dict(mlp_layer_types=["hash_moe", "moe", "moe"]),
    "gemma4": dict(
        enable_moe_block=True, vocab_size_per_layer_input=128, hidden_size_per_layer_input=8, global_head_dim=8
    ),
    "glm4_moe_lite": MLA,
    "glm_moe_dsa": MLA,
    "granitemoehybrid": dict(layer_types=["mamba", "attention", "mamba"]),
    "jamba": dict(attn_layer_period=3, attn_layer_offset=1),
    "kimi_linear": {
        **MLA, "linear_head_dim": 8, "linear_num_heads": 4,
        "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    },
    "lfm2_moe": dict(layer_types=["conv", "full_attention", "conv"]),
    "longcat_flash": {**MLA, "zero_expert_num": 4, "num_layers": 2},
    "mistral4": {**MLA, "head_dim": 16},
    "nllb_moe": dict(
        encoder_layers=2, decoder_layers=2, encoder_ffn_dim=32, decoder_ffn_dim=32, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_sparse_step=1, decoder_sparse_step=1, decoder_start_token_id=2,
    ),
    "qwen3_5_moe": dict(num_hidden_layers=4),
    "qwen3_next": dict(num_hidden_layers=4),
    "qwen4_exp": dict(
        num_hidden_layers=4, indexer_n_heads=2, indexer_kv_heads=1, indexer_head_dim=8, indexer_budget=8,
        indexer_compress_ratio=2, hc_lowrank=8,
    ),
    "step3p7": dict(text_config=dict(mlp_layer_types=["dense", "sparse", "sparse"])),
    "switch_transformers": dict(
        d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=2, num_sparse_encoder_layers=2, num_sparse_decoder_layers=2,
        decoder_start_token_id=0,
    ),
    "zaya": dict(num_experts_per_tok=1, router_hidden_size=16),
}  # fmt: skip


def tokenizer() -> Any:
    """Words w0..w119 are tokens 3..122; 0 = pad, 1 = end, 2 = begin."""
    import tokenizers

    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<bos>", *WORDS])}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<eos>"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<eos>"
    )


def small(kind: Any, **extra: Any) -> dict[str, Any]:
    """The sizes that a configuration class takes, and those of the configurations inside it."""
    taken = inspect.signature(kind).parameters
    values = {name: value for name, value in SMALL.items() if name in taken}
    for name, inner in getattr(kind, "sub_configs", {}).items():
        if name in taken and inspect.isclass(inner) and hasattr(inner, "model_type"):
            values[name] = small(inner)
    for name, value in extra.items():
        inner_values = values.get(name)
        values[name] = (
            {**inner_values, **value} if isinstance(inner_values, dict) and isinstance(value, dict) else value
        )
    return values


def family(name: str, seed: int = 0) -> Any:
    """A tiny random model of the family (a folder of transformers.models)."""
    config_name, model_name = FAMILIES[name]
    kind = getattr(transformers, config_name)
    config = kind(**small(kind, **EXTRA.get(name, {})))
    torch.manual_seed(seed)
    model = getattr(transformers, model_name)(config).eval()
    _shake(model)
    return model


def _shake(model: Any) -> None:
    """Biases of routers begin at zero, where they cannot be told from absent ones; fill every zero or empty tensor."""
    with torch.no_grad():
        for name, table in model.named_buffers():
            if name.endswith("tid2eid"):  # which experts a token id goes to, in DeepSeek-V4's first layers
                table.copy_(torch.rand(len(table), 8).argsort(dim=1)[:, : table.shape[1]])
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point() and tensor.numel() > 1 and (not tensor.isfinite().all() or not tensor.any()):
                tensor.normal_(0, 0.1)


def mixtral(seed: int = 0, **options: Any) -> Any:
    """Two layers, 8 experts, top-2."""
    torch.manual_seed(seed)
    values = {**small(transformers.MixtralConfig), "num_hidden_layers": 2, "sliding_window": None, **options}
    return transformers.MixtralForCausalLM(transformers.MixtralConfig(**values)).eval()


# Folder of transformers.models: configuration and model.
FAMILIES: dict[str, tuple[str, str]] = {
    "afmoe": ("AfmoeConfig", "AfmoeForCausalLM"),
    "aria": ("AriaTextConfig", "AriaTextForCausalLM"),
    "axk1": ("AXK1Config", "AXK1ForCausalLM"),
    "axk2": ("AXK2Config", "AXK2ForCausalLM"),
    "bailing_hybrid": ("BailingHybridConfig", "BailingHybridForCausalLM"),
    "beam": ("BeamConfig", "BeamForCausalLM"),
    "cohere2_moe": ("Cohere2MoeConfig", "Cohere2MoeForCausalLM"),
    "dbrx": ("DbrxConfig", "DbrxForCausalLM"),
    "deepseek_v2": ("DeepseekV2Config", "DeepseekV2ForCausalLM"),
    "deepseek_v3": ("DeepseekV3Config", "DeepseekV3ForCausalLM"),
    "deepseek_v32": ("DeepseekV32Config", "DeepseekV32ForCausalLM"),
    "deepseek_v4": ("DeepseekV4Config", "DeepseekV4ForCausalLM"),
    "dots1": ("Dots1Config", "Dots1ForCausalLM"),
    "ernie4_5_moe": ("Ernie4_5_MoeConfig", "Ernie4_5_MoeForCausalLM"),
    "exaone_moe": ("ExaoneMoeConfig", "ExaoneMoeForCausalLM"),
    "flex_olmo": ("FlexOlmoConfig", "FlexOlmoForCausalLM"),
    "flint": ("FlintConfig", "FlintForCausalLM"),
    "gemma4": ("Gemma4TextConfig", "Gemma4ForCausalLM"),
    "glm4_moe": ("Glm4MoeConfig", "Glm4MoeForCausalLM"),
    "glm4_moe_lite": ("Glm4MoeLiteConfig", "Glm4MoeLiteForCausalLM"),
    "glm_moe_dsa": ("GlmMoeDsaConfig", "GlmMoeDsaForCausalLM"),
    "gpt_oss": ("GptOssConfig", "GptOssForCausalLM"),
    "granitemoe": ("GraniteMoeConfig", "GraniteMoeForCausalLM"),
    "granitemoe_swa": ("GraniteMoeSWAConfig", "GraniteMoeSWAForCausalLM"),
    "granitemoehybrid": ("GraniteMoeHybridConfig", "GraniteMoeHybridForCausalLM"),
    "granitemoeshared": ("GraniteMoeSharedConfig", "GraniteMoeSharedForCausalLM"),
    "hunyuan_v1_moe": ("HunYuanMoEV1Config", "HunYuanMoEV1ForCausalLM"),
    "hy_v3": ("HYV3Config", "HYV3ForCausalLM"),
    "hy_v4": ("HYV4Config", "HYV4ForCausalLM"),
    "inkling": ("InklingTextConfig", "InklingForCausalLM"),
    "inkling2": ("Inkling2TextConfig", "Inkling2ForCausalLM"),
    "jamba": ("JambaConfig", "JambaForCausalLM"),
    "jetmoe": ("JetMoeConfig", "JetMoeForCausalLM"),
    "kimi_linear": ("KimiLinearConfig", "KimiLinearForCausalLM"),
    "kolibri1": ("Kolibri1Config", "Kolibri1ForCausalLM"),
    "laguna": ("LagunaConfig", "LagunaForCausalLM"),
    "lfm2_moe": ("Lfm2MoeConfig", "Lfm2MoeForCausalLM"),
    "llama4": ("Llama4TextConfig", "Llama4ForCausalLM"),
    "longcat_flash": ("LongcatFlashConfig", "LongcatFlashForCausalLM"),
    "mellum": ("MellumConfig", "MellumForCausalLM"),
    "mimo_v2_flash": ("MiMoV2FlashConfig", "MiMoV2FlashForCausalLM"),
    "minimax": ("MiniMaxConfig", "MiniMaxForCausalLM"),
    "minimax_m2": ("MiniMaxM2Config", "MiniMaxM2ForCausalLM"),
    "minimax_m3_vl": ("MiniMaxM3VLTextConfig", "MiniMaxM3VLForCausalLM"),
    "mistral4": ("Mistral4Config", "Mistral4ForCausalLM"),
    "mixtral": ("MixtralConfig", "MixtralForCausalLM"),
    "nemotron_h": ("NemotronHConfig", "NemotronHForCausalLM"),
    "nllb_moe": ("NllbMoeConfig", "NllbMoeForConditionalGeneration"),
    "olmoe": ("OlmoeConfig", "OlmoeForCausalLM"),
    "phimoe": ("PhimoeConfig", "PhimoeForCausalLM"),
    "qwen2_moe": ("Qwen2MoeConfig", "Qwen2MoeForCausalLM"),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM"),
    "qwen3_moe": ("Qwen3MoeConfig", "Qwen3MoeForCausalLM"),
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM"),
    "qwen3_vl_moe": ("Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration"),
    "qwen4_exp": ("Qwen4ExpTextConfig", "Qwen4ExpForCausalLM"),
    "solar_open": ("SolarOpenConfig", "SolarOpenForCausalLM"),
    "step3p7": ("Step3p7Config", "Step3p7ForConditionalGeneration"),
    "switch_transformers": ("SwitchTransformersConfig", "SwitchTransformersForConditionalGeneration"),
    "zaya": ("ZayaConfig", "ZayaForCausalLM"),
}
