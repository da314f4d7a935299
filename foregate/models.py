"""The one file that knows architectures: where a model's routers, norms and experts are. Records nothing.

How a family hands its decision over is in adapters.py.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foregate.adapters import ADAPTERS, GENERIC, Adapter
from foregate.arrays import Float32
from foregate.errors import ModelError, need

ROUTER_NAMES = ("router", "gate")
TOP_K_NAMES = ("top_k", "num_experts_per_tok", "moe_topk", "top_k_experts", "moe_k", "num_selected_experts")
NOT_TEXT = {"vision", "visual", "vision_moe", "vision_tower", "audio_tower", "image_tower"}


@dataclass(frozen=True, eq=False)
class MixtureLayer:
    """One mixture layer of a model.

    layer_id  the model's own number of the layer
    path      dotted name of the block, the module that calls both router and experts
    experts   the modules that hold the experts' weights (nearly always one)
    entry     the transformer layer around the block: what it is given is the residual stream, before its attention
              (models that give attention a layer of its own, as Nemotron-H, have had it by then)
    """

    layer_id: int
    stack: str
    path: str
    block: Any
    entry: Any
    router: Any
    experts: tuple[Any, ...]
    num_experts: int
    top_k: int
    adapter: Adapter

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert, as loaded."""
        return sum(_bytes_of_one(module) for module in self.experts)


@dataclass(frozen=True, eq=False)
class Stack:
    """The mixture layers of one stack, and the module whose forward call carries the tokens through them."""

    name: str
    root: Any
    layers: tuple[MixtureLayer, ...]

    @property
    def holder(self) -> Any:
        """The list of transformer layers, those without experts too."""
        torch, entry = need("torch", "models"), self.layers[0].entry
        return next(m for m in self.root.modules() if isinstance(m, torch.nn.ModuleList) and entry in list(m))

    @property
    def notes(self) -> tuple[str, ...]:
        """What the layers' adapters want to be known."""
        return tuple(dict.fromkeys(layer.adapter.note for layer in self.layers if layer.adapter.note))


# --- loading ---------------------------------------------------------------------------------------------------------


def load(name: str, *, dtype: str = "auto", device: str | None = None, trust_remote_code: bool = False) -> Any:
    """The model, in evaluation mode, and its tokenizer.

    Raises: ModelError if it cannot be had, or is dense.
    """
    torch, transformers = need("torch", "models"), need("transformers", "models")
    kind, place = find_dtype(torch, dtype), find_device(torch, device)
    config = fetch(transformers.AutoConfig, name, "config", trust_remote_code=trust_remote_code)
    auto = auto_class(transformers, config, name)
    if not trust_remote_code:
        with torch.device("meta"):  # a dense model is refused before its weights are read
            stacks(auto.from_config(config), name)
    tokenizer = fetch(transformers.AutoTokenizer, name, "tokenizer", trust_remote_code=trust_remote_code)
    model = fetch(auto, name, "weights", dtype=kind, trust_remote_code=trust_remote_code)
    return model.to(place).eval(), tokenizer


def fetch(kind: Any, name: str, what: str, **options: Any) -> Any:
    """`kind.from_pretrained(name, **options)`, whose many errors become one.

    Raises: ModelError that says what of the model cannot be had, and why.
    """
    if Path(name).is_absolute() or name.startswith((".", "~")):
        name = str(Path(name).expanduser())
        if not Path(name).is_dir():
            raise ModelError(f"there is no model folder {name}; give one with a config.json, or a Hugging Face name")
    broken = need("safetensors", "models").SafetensorError
    try:
        return kind.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError, KeyError, TypeError, broken) as error:
        reason = " ".join(str(error).split())[:160].rstrip(". ")
        if Path(name).is_dir():
            raise ModelError(f"{name} has no {what} that transformers can read ({reason})") from error
        raise ModelError(
            f"cannot get the {what} of {name}: it is no local folder, and the Hugging Face hub does not have it or "
            f"cannot be reached ({reason})"
        ) from error


def auto_class(transformers: Any, config: Any, name: str) -> Any:
    """The auto class whose model of this configuration generates text. Raises: ModelError if there is none."""
    order = ["CausalLM", "Seq2SeqLM", "ImageTextToText", "MultimodalLM"]
    if getattr(config, "is_encoder_decoder", False):
        order = ["Seq2SeqLM"]
    for task in order:
        auto = getattr(transformers, f"AutoModelFor{task}", None)
        known = auto is not None and type(config) in auto._model_mapping
        if known or (auto is not None and f"AutoModelFor{task}" in getattr(config, "auto_map", {})):
            return auto
    raise ModelError(f"{name} ({config.model_type}) is no language model that generates text")


def find_device(torch: Any, name: str | None) -> Any:
    """The device of that name, or the best there is. Raises: ModelError if it is not there."""
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"there is no device {name!r} here ({str(error).splitlines()[0][:80]})") from error
    return name or ("cuda" if torch.cuda.is_available() else "cpu")


def find_dtype(torch: Any, name: str) -> Any:
    """What transformers takes as `dtype`. Raises: ModelError for a name that is none."""
    kinds = {"auto": "auto", **{k: getattr(torch, k) for k in ("float32", "float16", "bfloat16")}}
    if name not in kinds:
        raise ModelError(f"there is no dtype {name!r}; choose one of {', '.join(kinds)}")
    return kinds[name]


# --- finding mixture layers ------------------------------------------------------------------------------------------


def stacks(model: Any, name: str | None = None) -> tuple[Stack, ...]:
    """The model's stacks that hold mixture layers: the decoder, or encoder and decoder.

    Raises: ModelError for a dense model, or experts that foregate does not know how to read.
    """
    name = name or getattr(model.config, "_name_or_path", "") or type(model).__name__
    if model.config.is_encoder_decoder:
        roots = [("encoder", model.get_encoder()), ("decoder", model.get_decoder())]
    else:
        roots = [("decoder", model)]
    found = tuple(Stack(stack, root, tuple(_layers(model, root, stack, name))) for stack, root in roots)
    found = tuple(s for s in found if s.layers)
    if not found:
        raise ModelError(
            f"{name} ({type(model).__name__}) has no experts to record; foregate needs a Mixture-of-Experts model"
        )
    return found


def mixture_layers(model: Any, stack: str = "decoder") -> tuple[MixtureLayer, ...]:
    """The mixture layers of one stack, in order.

    Raises: ModelError if there are none.
    """
    for found in stacks(model):
        if found.name == stack:
            return found.layers
    raise ModelError(f"{type(model).__name__} has no mixture layers in its {stack}")


def _layers(model: Any, root: Any, stack: str, name: str) -> Iterator[MixtureLayer]:
    text = root.get_decoder() if root is model else root
    inside = {id(module) for module in text.modules()}
    by_path = dict(model.named_modules())
    for path, module in by_path.items():
        if id(module) not in inside or NOT_TEXT & set(path.split(".")) or not _holds_experts(path, module):
            continue
        block_path = path.rpartition(".")[0]
        yield _layer(by_path, module, block_path, stack, name)


def _holds_experts(path: str, module: Any) -> bool:
    kind = type(module).__name__
    if (
        kind == "JetMoeParallelExperts"
    ):  # two per block; its attention is a mixture too, which is no place for offloading
        return path.endswith("mlp.input_linear")
    return kind.endswith("Experts") and path.endswith(".experts")  # shared experts go by another name


def _layer(by_path: dict[str, Any], experts: Any, path: str, stack: str, name: str) -> MixtureLayer:
    block = by_path[path]
    adapter = ADAPTERS.get(type(experts).__name__, GENERIC)
    router = next((getattr(block, n) for n in ROUTER_NAMES if hasattr(block, n)), None)
    numbered = re.match(r"(?:.*?\.)??(\d+)(?=\.|$)", path)  # up to the layer's number in the list of layers
    if router is None or numbered is None:
        raise ModelError(f"{name} keeps experts in {path}, but foregate finds no router beside them")
    holders = (experts, block.output_linear) if type(experts).__name__ == "JetMoeParallelExperts" else (experts,)
    return MixtureLayer(
        layer_id=int(numbered[1]),
        stack=stack,
        path=path,
        block=block,
        entry=by_path[numbered[0]],
        router=router,
        experts=holders,
        num_experts=_num_experts(experts, path),
        top_k=adapter.top_k or _top_k(block, router, experts, path),
        adapter=adapter,
    )


def _num_experts(experts: Any, path: str) -> int:
    if hasattr(experts, "keys"):
        return sum(key.startswith("expert") for key in experts)
    for parameter in (*experts.parameters(), *experts.buffers()):
        if parameter.dim() >= 3:
            return int(parameter.shape[0])
    if isinstance(count := getattr(experts, "num_experts", None), int):
        return count
    raise ModelError(f"the experts in {path} are neither one tensor nor a list of modules; foregate cannot count them")


def _top_k(block: Any, router: Any, experts: Any, path: str) -> int:
    places = (router, block, *(getattr(m, "config", None) for m in (router, block, experts)))
    for place in places:
        for name in TOP_K_NAMES:
            if isinstance(value := getattr(place, name, None), int):
                return value
    raise ModelError(f"foregate finds no top-k of the router in {path}")


def _bytes_of_one(experts: Any) -> int:
    if hasattr(experts, "keys"):
        one = next(iter(experts.values()))
        return sum(int(p.numel() * p.element_size()) for p in one.parameters())
    stacked = [p for p in experts.parameters() if p.dim() >= 2]
    if all(p.dim() == 2 for p in stacked):  # experts one below the other, as in DBRX
        return sum(int(p.numel() * p.element_size()) for p in stacked) // int(experts.num_experts)
    return sum(int(p.numel() * p.element_size() // p.shape[0]) for p in stacked)


# --- gates as tables -------------------------------------------------------------------------------------------------


def next_gate_tables(model: Any, stack: str = "decoder") -> tuple[Float32, Float32, Float32 | None]:
    """What applies a later layer's gate to this layer's residual stream: gain [L, D], router [L, E, D], bias [L, E].

    A layer's router input is gain * x / rms(x) of the residual stream x, and its logits are router @ input + bias (None
    if no layer has one). What a family does between logits and choice (correction biases, groups) is not in the tables.
    They are measured by feeding each norm and router, not read by parameter name, so norms that multiply by 1 + weight
    and routers that scale come out right.

    Raises: ModelError that names the layer where a router is not linear, reads more than hidden states, or does not
    read the output of an RMSNorm.
    """
    import numpy as np

    layers = mixture_layers(model, stack)
    calls = _router_calls(model, layers)
    norms = [_gain(layer, call) for layer, call in zip(layers, calls, strict=True)]
    gates = [_gate(model, layer, call) for layer, call in zip(layers, calls, strict=True)]
    biases = np.stack([bias for _, bias in gates])
    return np.stack(norms), np.stack([weight for weight, _ in gates]), biases if biases.any() else None


@dataclass(frozen=True, eq=False)
class _RouterCall:
    """How one router was called on two tokens, and the norm whose output it was given, if any."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    norm: Any | None


def _router_calls(model: Any, layers: tuple[MixtureLayer, ...]) -> list[_RouterCall]:
    torch = need("torch", "models")
    calls: dict[int, _RouterCall] = {}
    last: list[Any] = []  # the latest outputs of norms, with the norm

    def note_norm(norm: Any, args: Any, output: Any) -> None:
        if torch.is_tensor(output):
            last[:] = [*last[-3:], (norm, output)]

    def note_router(router: Any, args: Any, kwargs: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        same = (
            n for n, out in reversed(last) if out.numel() == given.numel() and torch.equal(out.view_as(given), given)
        )
        calls[id(router)] = _RouterCall(args, kwargs, next(same, None))

    kinds = (m for m in model.modules() if type(m).__name__.lower().endswith(("norm", "layernorm")))
    hooks = [norm.register_forward_hook(note_norm) for norm in kinds]
    hooks += [layer.router.register_forward_pre_hook(note_router, with_kwargs=True) for layer in layers]
    try:
        with torch.no_grad():
            tokens = torch.tensor([[0, 1]], device=model.device)
            decoded = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
            model.eval()(input_ids=tokens, **decoded, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return [calls[id(layer.router)] for layer in layers]


def _gain(layer: MixtureLayer, call: _RouterCall) -> Float32:
    """[D]: what the norm multiplies a vector of RMS 1 by."""
    torch = need("torch", "models")
    if call.norm is None:
        raise ModelError(f"the router in {layer.path} does not read the output of a norm; next-gate does not apply")
    given = call.args[0] if call.args else call.kwargs["hidden_states"]
    width, kind = given.shape[-1], {"dtype": given.dtype, "device": given.device}
    probe = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(**kind)
    with torch.no_grad():
        gain = call.norm(torch.ones(1, width, **kind))[0].float()
        expected = gain * probe.float() / probe.float().pow(2).mean(-1, keepdim=True).sqrt()
        if not torch.allclose(call.norm(probe).float(), expected, rtol=3e-2, atol=1e-3 * float(gain.abs().max())):
            raise ModelError(f"the norm before {layer.path} ({type(call.norm).__name__}) is no RMSNorm")
    table: Float32 = gain.cpu().numpy()
    return table


def _gate(model: Any, layer: MixtureLayer, call: _RouterCall) -> tuple[Float32, Float32]:
    """[E, D] and [E]: the router's logits as a linear function of its input."""
    torch = need("torch", "models")
    given = call.args[0] if call.args else call.kwargs["hidden_states"]
    own = {id(t) for t in (*model.parameters(), *model.buffers())}
    others = [v for v in (*call.args[1:], *call.kwargs.values()) if torch.is_tensor(v) and v is not given]
    if any(id(v) not in own for v in others):
        raise ModelError(f"the router in {layer.path} reads more than hidden states; next-gate does not apply")
    width, kind = given.shape[-1], {"dtype": given.dtype, "device": given.device}
    random = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(**kind)
    inputs = torch.cat([torch.zeros(1, width, **kind), torch.eye(width, **kind), random])
    shaped = inputs.view(*[1] * (given.dim() - 2), -1, width)
    with torch.no_grad():
        if call.args:
            output = layer.router.forward(shaped, *call.args[1:], **call.kwargs)
        else:
            output = layer.router.forward(**{**call.kwargs, "hidden_states": shaped})
    for values in output if isinstance(output, tuple) else (output,):
        if torch.is_tensor(values) and values.is_floating_point() and values.numel() == len(inputs) * layer.num_experts:
            logits = values.reshape(len(inputs), -1).float()
            bias, weight = logits[0], logits[1 : width + 1] - logits[0]
            expected = random.float() @ weight + bias
            if torch.allclose(logits[width + 1 :], expected, rtol=3e-2, atol=1e-2 * float(expected.abs().max())):
                return weight.T.contiguous().cpu().numpy(), bias.cpu().numpy()
    raise ModelError(
        f"the router in {layer.path} ({type(layer.router).__name__}) returns no logits linear in its input"
    )
