"""How large a model is, as far as time and memory depend on it: its experts' bytes and all others'. No weights, no
times.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from foregate.errors import ChoiceError, ModelError, TraceError
from foregate.hardware.profile import Profile
from foregate.models import Stack, stacks
from foregate.spec import MoESpec

OF_A_MODEL = ("expert", "dense", "head")
"""Kinds of work that were timed on one model, and say nothing of another's."""


@final
@dataclass(frozen=True)
class ModelShape:
    """One stack of mixture layers.

    layers, experts, top_k   of the stack; experts and top_k of a layer
    dtype                    of the experts' weights
    expert_bytes             [L] one expert's
    dense_bytes              [L] all that a token reads on its way from the mixture layer before to this one's end, but
                             routed experts: attention, norms, routers, shared experts, layers without experts between
    head_bytes               the output embedding's
    hidden                   width of the residual stream; None where the source does not say
    source                   where the numbers are from
    """

    name: str
    layers: int
    experts: int
    top_k: int
    dtype: str
    expert_bytes: tuple[int, ...]
    dense_bytes: tuple[int, ...]
    head_bytes: int
    source: str
    hidden: int | None = None

    def __post_init__(self) -> None:
        assert len(self.expert_bytes) == len(self.dense_bytes) == self.layers > 0
        if min(self.expert_bytes) < 1 or min(self.dense_bytes) < 0 or self.head_bytes < 0:
            raise ChoiceError(f"{self.name} would have experts of {min(self.expert_bytes)} bytes; give 1 or more")

    @property
    def slot_bytes(self) -> int:
        """Bytes of a slot that takes any expert: the largest expert's."""
        return max(self.expert_bytes)

    @property
    def all_experts(self) -> int:
        """How many experts there are in all layers."""
        return self.layers * self.experts


@final
@dataclass(frozen=True)
class Published:
    """Dimensions as a configuration gives them; parameters are counted without norms and attention's biases.

    inner      an expert's width
    matrices   of an expert: 3 where one of them gates, else 2
    attention  parameters of one layer's attention
    shared     parameters that every token of a mixture layer goes through: shared experts and their gate
    before     parameters of the layers without experts before the first mixture layer
    between    the same before each mixture layer
    bits       of an expert's weight, scales included; biases and all other parameters have 16, or `dense_bits`
    biases     numbers beside an expert's matrices
    """

    layers: int
    experts: int
    top_k: int
    hidden: int
    inner: int
    vocabulary: int
    attention: int
    source: str
    matrices: int = 3
    shared: int = 0
    before: int = 0
    between: int = 0
    dtype: str = "bfloat16"
    bits: float = 16
    dense_bits: int = 16
    biases: int = 0

    @property
    def expert_bytes(self) -> int:
        """Of one expert."""
        return int(self.matrices * self.hidden * self.inner * self.bits + self.biases * self.dense_bits) // 8

    def shape(self, name: str) -> ModelShape:
        """The same as bytes."""
        router = self.experts * self.hidden
        dense = self.attention + self.shared + router + self.between
        first = (dense + self.before, *[dense] * (self.layers - 1))
        return ModelShape(
            name,
            self.layers,
            self.experts,
            self.top_k,
            self.dtype,
            (self.expert_bytes,) * self.layers,
            tuple(parameters * self.dense_bits // 8 for parameters in first),
            self.vocabulary * self.hidden * self.dense_bits // 8,
            self.source,
            self.hidden,
        )


def _grouped(hidden: int, heads: int, keys: int, width: int) -> int:
    """Parameters of attention whose `heads` share `keys` key-value heads, all of one width."""
    return 2 * hidden * heads * width + 2 * hidden * keys * width


def _switch(hidden: int, inner: int, attention: int) -> int:
    """A decoder's layer without experts: attention to itself and to the encoder, and a feed-forward block."""
    return 2 * attention + 2 * hidden * inner


PUBLISHED: dict[str, Published] = {
    "mixtral-8x7b": Published(
        32, 8, 2, 4096, 14336, 32000, _grouped(4096, 32, 8, 128),
        "config.json of mistralai/Mixtral-8x7B-v0.1: 32 layers, 8 experts, 2 per token, 4096 x 14336, bfloat16",
    ),
    "switch-base-128": Published(
        6, 128, 1, 768, 3072, 32128, 2 * _grouped(768, 12, 12, 64),
        "config.json of google/switch-base-128: decoder of 12 layers, every other one sparse, 128 experts, 1 per "
        "token, 768 x 3072, float32; its encoder has as many",
        matrices=2, between=_switch(768, 3072, _grouped(768, 12, 12, 64)),
        dtype="float32", bits=32, dense_bits=32,
    ),
    "switch-large-128": Published(
        12, 128, 1, 1024, 4096, 32128, 2 * _grouped(1024, 16, 16, 64),
        "config.json of google/switch-large-128: decoder of 24 layers, every other one sparse, 128 experts, 1 per "
        "token, 1024 x 4096, float32; its encoder has as many",
        matrices=2, between=_switch(1024, 4096, _grouped(1024, 16, 16, 64)),
        dtype="float32", bits=32, dense_bits=32,
    ),
    "qwen1.5-moe-a2.7b": Published(
        24, 60, 4, 2048, 1408, 151936, _grouped(2048, 16, 16, 128),
        "config.json of Qwen/Qwen1.5-MoE-A2.7B: 24 layers, 60 experts, 4 per token, 2048 x 1408, shared 5632, bfloat16",
        shared=3 * 2048 * 5632 + 2048,
    ),
    "deepseek-v2-lite": Published(
        26, 64, 6, 2048, 1408, 102400,
        # latent attention: queries of 16 x (128 + 64), keys and values by way of 512 + 64, 16 x 128 out
        2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048,
        "config.json of deepseek-ai/DeepSeek-V2-Lite: 27 layers, the first dense (10944), 64 experts, 6 per token, "
        "2048 x 1408, 2 shared, bfloat16",
        shared=3 * 2048 * 2816,
        before=2048 * 16 * 192 + 2048 * 576 + 512 * 16 * 256 + 16 * 128 * 2048 + 3 * 2048 * 10944,
    ),
    "qwen3-30b-a3b": Published(
        48, 128, 8, 2048, 768, 151936, _grouped(2048, 32, 4, 128),
        "config.json of Qwen/Qwen3-30B-A3B: 48 layers, 128 experts, 8 per token, 2048 x 768, bfloat16",
    ),
    "olmoe-1b-7b": Published(
        16, 64, 8, 2048, 1024, 50304, _grouped(2048, 16, 16, 128),
        "config.json of allenai/OLMoE-1B-7B-0924: 16 layers, 64 experts, 8 per token, 2048 x 1024, bfloat16",
    ),
    "gpt-oss-120b": Published(
        36, 128, 4, 2880, 2880, 201088, _grouped(2880, 64, 8, 64),
        "config.json of openai/gpt-oss-120b: 36 layers, 128 experts, 4 per token, 2880 x 2880; experts in MXFP4, 4 "
        "bits and a scale of 8 for every 32 (4.25), biases and all else bfloat16",
        dtype="mxfp4", bits=4.25, biases=3 * 2880,
    ),
}  # fmt: skip
"""Name -> its published configuration."""

MODELS: dict[str, ModelShape] = {name: published.shape(name) for name, published in PUBLISHED.items()}
"""Name -> the same as bytes."""


def find_shape(text: str | None, spec: MoESpec) -> ModelShape:
    """The shape of the model that a trace is of.

    text  a preset, or a folder or Hugging Face name, whose experts' sizes count then; None: whose name the trace bears,
          else what the trace itself says

    Raises: ChoiceError where nothing says how large an expert is; TraceError for a trace of other layers; ModelError.
    """
    if text is not None:
        shape = MODELS[text] if text in MODELS else of_config(text, stack=spec.stack)
        return replace(_matched(shape, spec), expert_bytes=shape.expert_bytes)
    preset = preset_of(spec.model)
    if preset is not None:
        return _matched(MODELS[preset], spec)
    if Path(spec.model).is_dir():
        return _matched(of_config(spec.model, stack=spec.stack), spec)
    return of_spec(spec)


def preset_of(model: str) -> str | None:
    """The preset that a model's name begins with: "DeepSeek-V2-Lite-Chat" is a deepseek-v2-lite."""
    plain = re.sub(r"[_\s]+", "-", Path(model).name.lower())
    return next((name for name in MODELS if plain == name or plain.startswith(f"{name}-")), None)


def of_spec(spec: MoESpec, expert_bytes: int | None = None) -> ModelShape:
    """What a trace says of its model, which is nothing of what is not an expert.

    expert_bytes  where the trace does not say

    Raises: ChoiceError if nobody says.
    """
    sizes = spec.expert_bytes or (None if expert_bytes is None else (expert_bytes,) * spec.num_layers)
    if sizes is None:
        raise ChoiceError(
            f"the trace of {spec.model} does not say how large an expert is; give --model, a folder or one of "
            f"{', '.join(MODELS)}"
        )
    L = spec.num_layers
    source = "the trace; what is not an expert is not counted"
    return ModelShape(spec.model, L, spec.num_experts, spec.top_k, "unknown", sizes, (0,) * L, 0, source)


def of_config(name: str, stack: str = "decoder", *, trust_remote_code: bool = False) -> ModelShape:
    """The shape by a model's configuration, as loaded; no weights are read.

    name  folder or Hugging Face name

    Raises: ModelError if there is none, or it is of a dense model.
    """
    from foregate.hardware.compute import outline

    return of_model(outline(name, trust_remote_code=trust_remote_code).model, name, stack)


def of_model(model: Any, name: str, stack: str = "decoder") -> ModelShape:
    """The same of a model that is there, on the meta device or another. Raises: ModelError if the stack is dense."""
    found = next((s for s in stacks(model, name) if s.name == stack), None)
    if found is None:
        raise ModelError(f"{name} has no mixture layers in its {stack}")
    layers = found.layers
    head = model.get_output_embeddings()
    first = next(p for module in layers[0].experts for p in module.parameters())
    return ModelShape(
        name,
        len(layers),
        max(layer.num_experts for layer in layers),
        max(layer.top_k for layer in layers),
        str(first.dtype).removeprefix("torch."),
        tuple(layer.expert_bytes for layer in layers),
        tuple(_dense_bytes(found)),
        0 if head is None else _bytes(head.weight),
        f"the configuration of {name}",
        int(model.config.get_text_config().hidden_size),
    )


def timed_on(profile: Profile, shape: ModelShape) -> Profile:
    """The profile without the times of experts, dense layers and head where these are another model's: what they take
    follows then from memory and arithmetic.
    """
    timed = profile.model
    if timed is None or not any(profile.of(kind) for kind in OF_A_MODEL):
        return profile
    same = (timed.layers, timed.experts) == (shape.layers, shape.experts) and shape.hidden in (None, timed.hidden)
    if same:
        return profile
    note = (
        f"computing was timed on {timed.name}, not on {shape.name}: its times follow from the memory's speed, which "
        "real kernels do not reach (derived)"
    )
    kept = tuple(t for t in profile.timings if t.kind not in OF_A_MODEL)
    return replace(profile, timings=kept, model=None, notes=(*profile.notes, note))


def _matched(shape: ModelShape, spec: MoESpec) -> ModelShape:
    """The model's shape, with what only the trace knows: how many experts were recorded, and their size as they ran."""
    if (shape.layers, shape.experts) != (spec.num_layers, spec.num_experts):
        raise TraceError(
            f"the trace of {spec.model} has {spec.num_layers} {spec.stack} layers of {spec.num_experts} experts, "
            f"{shape.name} has {shape.layers} of {shape.experts}; simulate a trace of all layers, or name its --model"
        )
    return replace(shape, top_k=spec.top_k, expert_bytes=spec.expert_bytes or shape.expert_bytes)


def _dense_bytes(stack: Stack) -> list[int]:
    """[L] bytes of the transformer layers up to each mixture layer's, from the one before, without experts."""
    experts = {id(p) for layer in stack.layers for module in layer.experts for p in module.parameters()}
    entries = {id(layer.entry) for layer in stack.layers}
    sizes, size = [], 0
    for child in stack.holder:
        size += sum(_bytes(p) for p in child.parameters() if id(p) not in experts)
        if id(child) in entries:
            sizes.append(size)
            size = 0
    return sizes


def _bytes(tensor: Any) -> int:
    return int(tensor.numel() * tensor.element_size())
