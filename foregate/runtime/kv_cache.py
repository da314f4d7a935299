"""How large the keys and values of a context are. Says unknown (None) where a model keeps anything else."""

from typing import Any

from foregate.errors import need

# What shows in a configuration that attention keeps something other than a key and a value of `head_dim` a head.
OTHERWISE = ("kv_lora_rank", "v_head_dim", "swa_head_dim", "index_topk")


def cache_bytes(config: Any, context: int, element_bytes: int) -> int | None:
    """Bytes of the keys and values of one sequence of `context` tokens, as transformers' dynamic cache holds them.

    None for a model of which this cannot be said from its configuration: with latent or linear attention, with state
    spaces, or with an encoder (whose keys follow the input's length).
    """
    transformers = need("transformers", "models")
    if config.is_encoder_decoder:
        return None
    text = config.get_text_config(decoder=True)
    sizes = zip(transformers.DynamicCache(config=config).layers, text.per_layer_config, strict=True)
    kept = [_values(layer, part, context) for layer, part in sizes]
    return None if None in kept else element_bytes * sum(n for n in kept if n is not None)


def _values(layer: Any, config: Any, context: int) -> int | None:
    """How many numbers a layer of the cache keeps of `context` tokens."""
    kind = type(layer).__name__
    if kind == "DummyLayer":  # another layer's keys and values, or no attention
        return 0
    if kind not in ("DynamicLayer", "DynamicSlidingWindowLayer") or any(getattr(config, o, None) for o in OTHERWISE):
        return None
    queries = getattr(config, "num_attention_heads", None)
    heads = getattr(config, "num_key_value_heads", None) or queries
    width = getattr(config, "head_dim", None) or (config.hidden_size // queries if queries else None)
    if not isinstance(heads, int) or not isinstance(width, int):
        return None
    window = getattr(layer, "sliding_window", None)
    tokens = context if window is None else min(context, window - 1)
    return 2 * tokens * heads * width
