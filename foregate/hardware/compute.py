"""How long a model's experts, dense layers and output embedding compute, on random weights of its shapes. Reads no
weights.
"""

import contextlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from foregate.errors import ModelError, need
from foregate.hardware.profile import ModelShape, Timing
from foregate.hardware.sampling import Pace, Work, interleaved, timing
from foregate.models import Stack, auto_class, fetch, stacks
from foregate.store.direct import aligned

COLD = 256 << 20  # bytes of weights gone through before the same ones come again, so that no cache holds them
MOST_LAYERS = 4  # of which the dense part is timed
MOST_DENSE = 1 << 30  # bytes of them
LONG_ENOUGH = 1.5  # seconds of dense layers on so many tokens


@dataclass(frozen=True, eq=False)
class Outline:
    """A model without weights.

    model  on the meta device
    stack  the one whose experts are timed: the decoder, where it has any
    """

    model: Any
    stack: Stack
    shape: ModelShape
    device: str


def outline(name: str, *, device: str | None = None, trust_remote_code: bool = False) -> Outline:
    """What is needed of a model to time it: its configuration, no weights.

    Raises: ModelError if the configuration cannot be had, or is of a dense model.
    """
    config = fetch(need("transformers", "models").AutoConfig, name, "config", trust_remote_code=trust_remote_code)
    return outline_of(without_weights(config, name), name, device=device)


def without_weights(config: Any, name: str) -> Any:
    """The model of a configuration, on the meta device. Raises: ModelError if it does not generate text."""
    torch, transformers = need("torch", "models"), need("transformers", "models")
    dtype = config.dtype or config.get_text_config().dtype or torch.float32
    with torch.device("meta"):
        return auto_class(transformers, config, name).from_config(config, dtype=dtype).eval()


def outline_of(model: Any, name: str, *, device: str | None = None) -> Outline:
    """The same of a model that is there, on the meta device. Raises: ModelError if it is dense."""
    torch = need("torch", "models")
    stack = stacks(model, name)[-1]
    first = stack.layers[0]
    shape = ModelShape(
        name=name,
        dtype=str(model.dtype).removeprefix("torch."),
        layers=len(stack.layers),
        experts=first.num_experts,
        hidden=int(model.config.get_text_config().hidden_size),
        expert_bytes=first.expert_bytes,
    )
    return Outline(model, stack, shape, device or ("cuda" if torch.cuda.is_available() else "cpu"))


@dataclass(eq=False)
class Experts:
    """Random experts of a model's shapes, more of them than a cache holds (or all, if the model has fewer), that take
    turns. What is computed is each matrix times the tokens, and the gated activation before the last: the family's own
    arithmetic but for biases and odd activations, which cost nothing beside the matrices.
    """

    given: Outline
    cold: int = COLD
    _matrices: list[list[Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        torch = need("torch", "models")
        shape = self.given.shape
        kind = {"dtype": getattr(torch, shape.dtype), "device": self.given.device}
        count = max(1, min(-(-self.cold // shape.expert_bytes), shape.layers * shape.experts))
        sides = _sides(self.given.stack.layers[0].experts, shape.hidden)
        sizes = [rows * columns for rows, columns, _ in sides]
        for room in _as_slots(torch, count * sum(sizes), **kind).view(count, -1):
            parts = [part.copy_(random_numbers(torch, len(part), like=part)) for part in room.split(sizes)]
            made = [part.view(rows, -1) for part, (rows, *_) in zip(parts, sides, strict=True)]
            # A transposed family keeps [in, out]; F.linear is handed a view the other way round, as it hands itself.
            self._matrices.append([m.t() if turned else m for m, (_, _, turned) in zip(made, sides, strict=True)])
        self._turn = itertools.cycle(self._matrices)

    @property
    def bytes(self) -> int:
        """Of all the matrices that take turns."""
        return sum(m.numel() * m.element_size() for matrices in self._matrices for m in matrices)

    def work(self, tokens: int) -> Work:
        """Run the next expert on so many tokens."""
        torch = need("torch", "models")
        first = self._matrices[0]
        inputs = {m.shape[1]: random_numbers(torch, tokens * m.shape[1], like=m).view(tokens, -1) for m in first}
        linear, silu = torch.nn.functional.linear, torch.nn.functional.silu

        def run() -> None:
            *before, last = next(self._turn)
            inner = last.shape[1]
            with torch.inference_mode():
                made = [linear(inputs[m.shape[1]], m) for m in before]
                wide = made[0] if len(made) == 1 else torch.cat(made, dim=-1)
                gate = silu(wide[:, :inner])
                linear(gate * wide[:, inner : 2 * inner] if wide.shape[1] >= 2 * inner else gate, last)
            _wait(last)

        return run

    def time(self, tokens: Sequence[int], pace: Pace) -> list[Timing]:
        """One expert, by tokens."""
        times = interleaved([self.work(count) for count in tokens], pace)
        return [timing("expert", count, found) for count, found in zip(tokens, times, strict=True)]


def time_dense(given: Outline, tokens: Sequence[int], *, rounds: int) -> list[Timing]:
    """Mixture layers without their experts, the first few of the stack, on one token each of `tokens` sequences.

    Weights are flushed out of the caches before each pass. Raises: ModelError where the family cannot be run so.
    """
    torch = need("torch", "models")
    spent: list[float] = []
    times: dict[int, list[list[float]]] = {count: [] for count in tokens}
    with refused(f"the dense part of {given.shape.name} cannot be run by itself"):
        decoder, entries = _without_experts(given)
        with stopwatch(entries, lambda module, seconds: spent.append(seconds), wait=_wait):
            runs = {count: _pass(torch, given, decoder, count) for count in tokens}
            flush = torch.ones(COLD // 8, dtype=torch.int64)
            for run in runs.values():
                run()  # the first pays for kernels and pages
            for turn in range(rounds):
                for count, run in runs.items():
                    if turn and sum(map(sum, times[count])) * len(entries) > LONG_ENOUGH:
                        continue
                    flush.sum()
                    spent.clear()
                    run()
                    times[count].append([sum(spent) / len(spent)])  # layers may be of several kinds: their mean
    return [timing("dense", count, found) for count, found in times.items()]


def time_head(given: Outline, tokens: Sequence[int], pace: Pace) -> list[Timing]:
    """The output embedding; of a large one some rows, and the time in proportion (then it is "derived")."""
    torch = need("torch", "models")
    head = given.model.get_output_embeddings()
    if head is None:
        return []
    rows, width = head.weight.shape
    kept = min(rows, max(1, COLD // (width * head.weight.element_size())))
    weight = random_numbers(torch, kept * width, dtype=head.weight.dtype, device=given.device).view(kept, width)
    linear = torch.nn.functional.linear

    def work(count: int) -> Work:
        hidden = random_numbers(torch, count * width, like=weight).view(count, width)

        def run() -> None:
            with torch.inference_mode():
                linear(hidden, weight)
            _wait(weight)

        return run

    times = interleaved([work(count) for count in tokens], pace)
    scaled = [[[t * rows / kept for t in one] for one in found] for found in times]
    basis: Any = "measured" if kept == rows else "derived"
    return [timing("head", count, found, basis=basis) for count, found in zip(tokens, scaled, strict=True)]


def _sides(holders: Sequence[Any], hidden: int) -> list[tuple[int, int, bool]]:
    """(rows, columns, whether its input goes along the rows) of each matrix of one expert, the last one last."""
    found = []
    for module in holders:
        if hasattr(module, "keys"):  # a module for each expert
            matrices = [tuple(p.shape) for p in next(iter(module.values())).parameters() if p.dim() == 2]
        else:
            stacked = [p for p in module.parameters() if p.dim() >= 2]
            full = [p for p in stacked if p.dim() == 3]  # beside them, biases are [E, width]
            # DBRX keeps experts one below the other.
            matrices = [tuple(p.shape[1:]) for p in full] or [
                (p.shape[0] // module.num_experts, p.shape[1]) for p in stacked
            ]
        turned = getattr(module, "is_transposed", None)
        found += [(rows, columns, turned) for rows, columns in matrices]
    last = len(found) - 1
    return [
        (rows, columns, bool(turned) if turned is not None else _turned(rows, columns, hidden, last=i == last))
        for i, (rows, columns, turned) in enumerate(found)
    ]


def _turned(rows: int, columns: int, hidden: int, *, last: bool) -> bool:
    """Whether [rows, columns] reads `rows` wide vectors; the last matrix gives hidden states, the others read them."""
    return (rows != hidden) if last else (columns != hidden)


def random_numbers(torch: Any, count: int, *, like: Any = None, **kind: Any) -> Any:
    """Small random numbers; large tensors repeat a million of them, which no kernel notices."""
    if like is not None:
        kind = {"dtype": like.dtype, "device": like.device}
    some = torch.randn(min(count, 1 << 20), generator=torch.Generator().manual_seed(0)).mul_(0.02).to(**kind)
    return some if count <= len(some) else some.repeat(-(-count // len(some)))[:count]


def _as_slots(torch: Any, count: int, *, dtype: Any, device: Any) -> Any:
    """Room for so many numbers in memory as slots have it: a processor that idled finds huge pages again sooner.
    Measured with experts of 50 MB: 4.5 ms instead of 5.9.
    """
    if device != "cpu":
        return torch.empty(count, dtype=dtype, device=device)
    return torch.from_numpy(aligned(count * dtype.itemsize)).view(dtype)


def _wait(tensor: Any) -> None:
    """Until the device has done what it was told."""
    if tensor.is_cuda:
        need("torch", "models").cuda.synchronize()


@contextlib.contextmanager
def refused(sentence: str) -> Iterator[None]:
    """What running a family in a way that it was not made for may raise becomes a ModelError: the sentence, and why."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, NotImplementedError) as error:
        raise ModelError(f"{sentence} ({' '.join(str(error).split())[:120]})") from error


def _without_experts(given: Outline) -> tuple[Any, list[Any]]:
    """The decoder cut off after a few mixture layers, its experts answering zeros, and these layers' modules.

    Layers without experts hand on what they are given. The outline is of no other use afterwards.
    """
    torch = need("torch", "models")
    root = given.stack.root
    decoder = (root.get_decoder() if root is given.model else root).base_model
    entries = few([layer.entry for layer in given.stack.layers])
    holder = given.stack.holder
    end = list(holder).index(entries[-1]) + 1
    for layer in given.stack.layers[: len(entries)]:
        for experts in layer.experts:
            experts.forward = _zeros
    for layer in list(holder)[:end]:
        if layer not in entries:
            layer.forward = _hand_on
    del holder[end:]
    words = given.model.config.get_text_config().vocab_size  # tables of these are not run
    experts = {id(m) for layer in given.stack.layers for e in layer.experts for m in e.modules()}
    skipped = {id(m) for layer in holder if layer not in entries for m in layer.modules()}
    for module in decoder.modules():
        if id(module) not in experts | skipped and getattr(module, "num_embeddings", 0) < words:
            materialise(torch, module, given.device)
    return decoder, entries


def few(entries: list[Any]) -> list[Any]:
    """The first few layers, within the memory that may be spent on them."""
    size = sum(p.numel() * p.element_size() for n, p in entries[0].named_parameters() if ".experts." not in n)
    return entries[: max(1, min(MOST_LAYERS, MOST_DENSE // max(size, 1)))]


def materialise(torch: Any, module: Any, device: str) -> None:
    """A module's own parameters become random numbers on the device, its buffers a constant."""
    for name, old in list(module.named_parameters(recurse=False)):
        new = random_numbers(torch, old.numel(), dtype=old.dtype, device=device).view(old.shape)
        setattr(module, name, torch.nn.Parameter(new, requires_grad=False))
    for name, old in list(module.named_buffers(recurse=False)):
        kind = {"dtype": old.dtype, "device": device}
        setattr(module, name, torch.full(old.shape, 0.01 if old.dtype.is_floating_point else 0, **kind))


def _zeros(hidden: Any, *args: Any, **kwargs: Any) -> Any:
    return hidden.new_zeros(hidden.shape)


def _hand_on(hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
    return hidden_states


def _pass(torch: Any, given: Outline, decoder: Any, tokens: int) -> Work:
    kind = {"dtype": getattr(torch, given.shape.dtype), "device": given.device}
    hidden = random_numbers(torch, tokens * given.shape.hidden, **kind).view(tokens, 1, -1)
    options: dict[str, Any] = {"inputs_embeds": hidden, "use_cache": False}
    if given.model.config.is_encoder_decoder:
        options["encoder_hidden_states"] = hidden

    def run() -> None:
        with torch.inference_mode():
            decoder(**options)

    return run


@contextlib.contextmanager
def stopwatch(
    modules: Iterable[Any], told: Callable[[Any, float], None], *, wait: Callable[[Any], None] | None = None
) -> Iterator[None]:
    """Tells of each call of these modules the seconds that it ran.

    wait  called with a parameter of the module before the time is taken
    """
    began: dict[int, float] = {}

    def now(module: Any) -> float:
        if wait is not None:
            wait(next(module.parameters()))
        return time.perf_counter()

    def before(module: Any, args: Any) -> None:
        began[id(module)] = now(module)

    def after(module: Any, args: Any, output: Any) -> None:
        told(module, now(module) - began[id(module)])

    with contextlib.ExitStack() as hooks:
        for module in modules:
            hooks.callback(module.register_forward_pre_hook(before).remove)
            hooks.callback(module.register_forward_hook(after).remove)
        yield
