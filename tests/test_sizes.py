"""Sizes mean what they say, a plan adds up and fits, and the cache of keys and values is exact or unknown."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foregate.errors import ChoiceError
from foregate.runtime.sizes import MemoryPlan, minimum_slots, plan_memory
from foregate.sizes import Size, parse_size, size_text

NEEDS: dict[str, Any] = {
    "dense": 10**9,
    "cache": 2**28,
    "context": 4096,
    "slot": 50 * 2**20,
    "experts": 128,
    "top_k": 2,
}


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("6GiB", Size(bytes=6 * 2**30)),
        ("500MB", Size(bytes=500_000_000)),
        ("1.5G", Size(bytes=1_500_000_000)),
        (" .5 tib ", Size(bytes=2**39)),
        ("4096B", Size(bytes=4096)),
        ("2k", Size(bytes=2000)),
        ("25%", Size(percent=25.0)),
        ("0.5 %", Size(percent=0.5)),
        ("100%", Size(percent=100.0)),
    ],
)
def test_a_size_is_what_is_typed(text: str, size: Size) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "6", "GiB", "-1GB", "1e9B", "nan", "6 GiBs", "1i", "1.2.3GB", "101%", "25%%"])
def test_what_is_no_size_is_a_sentence_with_the_text(text: str) -> None:
    with pytest.raises(ChoiceError, match=r"give") as caught:
        parse_size(text)
    assert repr(text) in str(caught.value)


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_a_choice_error(text: str) -> None:
    try:
        size = parse_size(text)
    except ChoiceError:
        return
    assert (size.bytes is None) != (size.percent is None)


@given(
    memory=st.integers(0, 2**40),
    dense=st.integers(0, 2**34),
    cache=st.none() | st.integers(0, 2**32),
    overhead=st.integers(0, 2**30),
    slot=st.integers(1, 2**28),
    experts=st.integers(1, 20_000),
    top_k=st.integers(1, 16),
)
def test_a_plan_never_takes_more_than_there_is(memory: int, experts: int, top_k: int, **sizes: Any) -> None:
    given_ = {"context": 1, "experts": experts, "top_k": min(top_k, experts), **sizes}
    fixed = sizes["dense"] + (sizes["cache"] or 0) + sizes["overhead"]
    least = minimum_slots(given_["top_k"], experts)
    if memory < fixed + least * sizes["slot"]:
        with pytest.raises(ChoiceError):
            plan_memory(Size(bytes=memory), **given_)
        return
    plan = plan_memory(Size(bytes=memory), **given_)
    assert least <= plan.slots <= experts
    assert plan.remaining >= 0
    assert plan.remaining < plan.slot or plan.slots == experts
    assert fixed + plan.slots * plan.slot + plan.remaining == memory


@given(percent=st.floats(0, 100), experts=st.integers(1, 5000))
def test_a_share_counts_slots_and_the_memory_follows(percent: float, experts: int) -> None:
    try:
        plan = plan_memory(Size(percent=percent), **{**NEEDS, "experts": experts, "top_k": 1})
    except ChoiceError:
        assert percent * experts / 100 < 2
        return
    assert abs(plan.slots - percent * experts / 100) < 1
    assert plan.remaining == 0


def test_a_quarter_of_the_experts_is_a_quarter_of_the_experts() -> None:
    assert plan_memory(parse_size("25%"), **NEEDS).slots == 32
    assert plan_memory(parse_size("100%"), **NEEDS).slots == 128
    assert plan_memory(parse_size("14.3%"), **{**NEEDS, "experts": 1000}).slots == 143


@pytest.mark.parametrize("text", ["1GiB", "0B", "1%", "0%"])
def test_too_little_is_refused_with_sizes_that_would_do(text: str) -> None:
    with pytest.raises(ChoiceError, match="too little memory") as caught:
        plan_memory(parse_size(text), **NEEDS)
    words = str(caught.value).split()
    enough = words[words.index("needs") + 1], words[words.index("or") + 1]
    for size in enough:
        assert plan_memory(parse_size(size), **NEEDS).slots >= minimum_slots(2, 128)


def test_host_memory_holds_whole_experts_or_is_refused() -> None:
    assert plan_memory(Size(percent=25), parse_size("2GiB"), **NEEDS).host_slots == 40
    assert plan_memory(Size(percent=25), parse_size("50%"), **NEEDS).host_slots == 64
    assert plan_memory(Size(percent=25), parse_size("1TB"), **NEEDS).host_slots == 128
    with pytest.raises(ChoiceError, match="at least 50MiB"):
        plan_memory(Size(percent=25), parse_size("1MB"), **NEEDS)


def test_a_plan_says_every_part_and_does_not_guess_the_cache() -> None:
    plan = plan_memory(parse_size("4GiB"), parse_size("2GiB"), **{**NEEDS, "cache": None}, overhead=2**28)
    text = plan.text()
    for said in ("4.00 GiB", "953.67 MiB", "256.00 MiB", "unknown", f"{plan.slots} slots", size_text(plan.remaining)):
        assert said in text
    values = plan.to_json()
    assert MemoryPlan(**{k: v for k, v in values.items() if k != "remaining"}) == plan
    assert values["remaining"] == plan.remaining


# --- keys and values -------------------------------------------------------------------------------------------------

EXACT = [
    "afmoe", "aria", "beam", "cohere2_moe", "dbrx", "dots1", "ernie4_5_moe", "exaone_moe", "flex_olmo", "gemma4",
    "glm4_moe", "gpt_oss", "granitemoe", "hy_v3", "jetmoe", "laguna", "llama4", "mellum", "minimax_m2", "mixtral",
    "olmoe", "phimoe", "qwen2_moe", "qwen3_moe", "qwen3_vl_moe", "step3p7",
]  # fmt: skip
UNKNOWN = [
    "axk2", "bailing_hybrid", "deepseek_v2", "deepseek_v3", "deepseek_v4", "glm4_moe_lite", "granitemoehybrid", "hy_v4",
    "jamba", "lfm2_moe", "longcat_flash", "mimo_v2_flash", "minimax", "nemotron_h", "nllb_moe", "qwen3_5_moe",
    "qwen3_next", "switch_transformers", "zaya",
]  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_the_cache_is_as_large_as_the_models_own(name: str) -> None:
    torch = pytest.importorskip("torch")
    tiny_models = pytest.importorskip("tiny_models")
    from foregate.runtime.kv_cache import cache_bytes

    model = tiny_models.family(name)
    for tokens in (9, 40):  # within and beyond the sliding windows of 16
        with torch.no_grad():
            cache = model(input_ids=torch.arange(3, 3 + tokens)[None], use_cache=True).past_key_values
        held = [t for layer in cache.layers for t in (layer.keys, layer.values)]
        assert cache_bytes(model.config, tokens, 4) == sum(4 * t.numel() for t in held)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_cache_of_another_kind_is_unknown(name: str) -> None:
    tiny_models = pytest.importorskip("tiny_models")
    from foregate.runtime.kv_cache import cache_bytes

    assert cache_bytes(tiny_models.family(name).config, 100, 4) is None
