"""A model without its experts' weights: all else is loaded, by transformers itself. Reads no expert, runs nothing.

The class of the model is given a constructor that forgets the experts' parameters before transformers looks for what
to load. Their tensors in the checkpoint then belong to nothing, and tensors that belong to nothing are never read.
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, final

from foregate.errors import need
from foregate.models import MixtureLayer, Stack, auto_class, fetch, find_device, find_dtype, stacks
from foregate.store.skeleton import refuse_quantised


@dataclass(frozen=True)
class Weight:
    """One parameter that was left on disk.

    module  dotted name of the module of experts in the model
    name    dotted name of the parameter in that module: `gate_up_proj`; in a list of modules `expert_3.wi.weight`
    shape   of all experts together; in a list of modules of one expert
    dtype   as it would have been loaded, a torch.dtype
    """

    module: str
    name: str
    shape: tuple[int, ...]
    dtype: Any

    @property
    def bytes(self) -> int:
        """Bytes, as it would have been loaded."""
        return int(need("torch", "models").Size(self.shape).numel() * self.dtype.itemsize)


@dataclass(frozen=True, eq=False)
class HollowModel:
    """A model in evaluation mode, whole but for the experts' weights; its experts are computed by `eager`.

    stacks   its mixture layers, found while the experts were there (`foregate.models.stacks` needs them to look)
    missing  what was left on disk, per mixture layer, in the order of the stacks and their layers
    """

    model: Any
    tokenizer: Any
    stacks: tuple[Stack, ...]
    missing: tuple[tuple[Weight, ...], ...]

    @property
    def layers(self) -> tuple[MixtureLayer, ...]:
        """All mixture layers, in one count: the encoder's first."""
        return tuple(layer for stack in self.stacks for layer in stack.layers)

    @property
    def expert_bytes(self) -> tuple[int, ...]:
        """Bytes of one expert of each layer, as it would have been loaded."""

        def of_one(weight: Weight, layer: MixtureLayer) -> int:
            stacked = len(weight.shape) == 3  # LongCat's stacks hold its identity experts too, but not all of them do
            return weight.bytes // (weight.shape[0] if stacked else layer.num_experts)

        pairs = zip(self.missing, self.layers, strict=True)
        return tuple(sum(of_one(w, layer) for w in weights) for weights, layer in pairs)

    @property
    def dense_bytes(self) -> int:
        """Bytes of all that was loaded; what is shared counts once."""
        tensors = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        return sum(int(t.numel() * t.element_size()) for t in tensors.values())


def load_hollow(name: str, *, dtype: str = "auto", device: str = "cpu", trust_remote_code: bool = False) -> HollowModel:
    """Load all of a model but its experts' weights.

    Raises: ModelError if it cannot be had, is dense, is quantised, or is not stored as safetensors.
    """
    torch, transformers = need("torch", "models"), need("transformers", "models")
    kind, place = find_dtype(torch, dtype), find_device(torch, device)
    config = fetch(transformers.AutoConfig, name, "config", trust_remote_code=trust_remote_code)
    auto = auto_class(transformers, config, name)
    refuse_quantised(config, name)
    with torch.device("meta"):
        outline = auto.from_config(config, trust_remote_code=trust_remote_code)
    stacks(outline, name)  # a dense model is refused before its weights are read
    tokenizer = fetch(transformers.AutoTokenizer, name, "tokenizer", trust_remote_code=trust_remote_code)
    found: list[tuple[tuple[Stack, ...], tuple[tuple[Weight, ...], ...]]] = []
    model = fetch(
        _hollow_class(type(outline), name, found),
        name,
        "weights",
        config=outline.config,
        dtype=kind,
        experts_implementation="eager",
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
    model.__class__ = type(outline)
    assert not any(t.is_meta for t in (*model.parameters(), *model.buffers()))
    return HollowModel(model.to(place).eval(), tokenizer, *found[-1])


def _hollow_class(kind: Any, name: str, found: list[Any]) -> Any:
    """`kind`, whose instances lose the experts' weights when they are made; what they lost is appended to `found`.

    Files are read, not mapped: mapped weights would leave memory under pressure, and converting them to another dtype
    would keep the originals in it.
    """

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it is one
        kind.__init__(self, *args, **kwargs)
        there = stacks(self, name)
        missing = tuple(tuple(weights_of(self, layer)) for stack in there for layer in stack.layers)
        for layer, weights in zip((layer for stack in there for layer in stack.layers), missing, strict=True):
            _forget(self, layer, weights)
        found.append((there, missing))

    def _load_pretrained_model(model: Any, weights: Any, files: Any, *args: Any, **kwargs: Any) -> Any:
        safetensors = need("safetensors", "models")
        with ExitStack() as opened:
            read = [opened.enter_context(safetensors.safe_open(f, "pt", backend="pread")) for f in files]
            weights = {key: _OnDisk(file, key) for file in read for key in file.keys()}  # noqa: SIM118 - no dict
            return kind._load_pretrained_model(model, weights, None, *args, **kwargs)

    changed = {"__init__": __init__, "_load_pretrained_model": staticmethod(_load_pretrained_model)}
    return type(kind.__name__, (kind,), {**changed, "__module__": kind.__module__, "__doc__": kind.__doc__})


@final
class _OnDisk:
    """A tensor that is read when it is indexed. A slice of safetensors would do, but takes twice the memory to read."""

    def __init__(self, file: Any, key: str) -> None:
        self._file, self._key = file, key

    def __getitem__(self, where: Any) -> Any:
        return self._file.get_tensor(self._key)[where]


def weights_of(model: Any, layer: MixtureLayer) -> Iterator[Weight]:
    """The parameters of a layer's experts."""
    torch = need("torch", "models")
    paths = {id(module): path for path, module in model.named_modules()}
    plan = model._get_dtype_plan(torch.get_default_dtype())  # what a family keeps in 32 bits
    for experts in layer.experts:
        path = paths[id(experts)]
        for name, parameter in experts.named_parameters():
            kept = (dtype for pattern, dtype in plan.items() if re.search(pattern.replace("*", ".*"), f"{path}.{name}"))
            yield Weight(path, name, tuple(parameter.shape), next(kept, parameter.dtype))


def _forget(model: Any, layer: MixtureLayer, weights: tuple[Weight, ...]) -> None:
    """Take the parameters out of their modules, and keep transformers from making new ones or speaking of them."""
    for weight in weights:
        where, _, name = f"{weight.module}.{weight.name}".rpartition(".")
        del model.get_submodule(where)._parameters[name]
        whole = f"{where}.{name}".removeprefix(f"{model.base_model_prefix}.")  # which a checkpoint may leave out
        model._keys_to_ignore_on_load_unexpected.add(rf"(^|\.){re.escape(whole)}$")
    for module in (inner for experts in layer.experts for inner in experts.modules()):
        module._is_hf_initialized = True
    if hasattr(layer.experts[0], "keys"):  # the block of a list of modules fills them itself
        layer.block._is_hf_initialized = True
