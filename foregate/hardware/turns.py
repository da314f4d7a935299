"""What the runtime itself takes: for an expert beside its arithmetic, for a mixture layer beside its dense part, for a
pass beside its layers, for asking a predictor, for reading an expert beside its bytes. It runs a few layers of a model
on random weights; nothing is read from a disk.

Planner, hooks and transformers' own Python are most of it. Where experts are small they are most of a token's time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from foregate.arrays import Float64
from foregate.errors import need
from foregate.hardware.compute import (
    COLD,
    few,
    materialise,
    random_numbers,
    refused,
    stopwatch,
    without_weights,
)
from foregate.hardware.profile import Timing
from foregate.hardware.sampling import timing
from foregate.models import Stack, fetch, stacks
from foregate.runtime.engine import Engine
from foregate.runtime.loading import HollowModel, weights_of
from foregate.runtime.sizes import minimum_slots
from foregate.runtime.telemetry import PLACE
from foregate.runtime.wish import Wish
from foregate.store.base import Buffer, ExpertStore
from foregate.store.direct import aligned
from foregate.store.layout import SLOT_ALIGNMENT, Layout
from foregate.store.pieces import held_experts, layout_of

WORDS = 256  # of the vocabulary that is left: the output embedding is timed by itself
PROMPT = 8  # tokens
SKIPPED = 4  # decoded tokens that are not timed: first calls are slow
TOKENS = 40  # decoded and timed, at most
LONG_ENOUGH = 4.0  # seconds
ASKED = Wish("repeat", "top:1")  # whose answers take some 10 us
LEAST = 1e-9  # seconds: no time is zero or less, whatever a difference of two measurements says


@final
class Pool(ExpertStore):
    """Random experts, a few of them, whose turn comes slot by slot. Reading one is nothing."""

    def __init__(self, model: Any, name: str, cold: int = COLD) -> None:
        torch = need("torch", "models")
        layers = [layer for stack in stacks(model, name) for layer in stack.layers]
        self.num_layers = len(layers)
        self.num_experts, layout = layout_of(model, held_experts(model, layers), name)
        self.layout, self.bits = Layout((), SLOT_ALIGNMENT), 16
        count = max(1, min(-(-cold // layout.slot_bytes), self.num_layers * self.num_experts))
        buffers = torch.from_numpy(aligned(count * layout.slot_bytes)).view(count, -1)  # as the slots are
        self._experts = [layout.tensors(buffer) for buffer in buffers]
        for expert in self._experts:
            for part in expert.values():
                part.copy_(random_numbers(torch, part.numel(), like=part).view(part.shape))
        self._given = 0

    def read_into(self, layer: int, expert: int, buffer: Buffer) -> int:
        """Nothing lies in a buffer."""
        return 0

    def views(self, buffer: Any) -> dict[str, Any]:
        """The next expert, whatever the buffer."""
        self._given += 1
        return self._experts[self._given % len(self._experts)]

    def close(self) -> None:
        """Nothing is held open."""


def time_turns(name: str, known: Sequence[Timing], device: str, *, trust_remote_code: bool = False) -> list[Timing]:
    """What is left of a decoded token once the arithmetic is taken away.

    known  has "expert" and "dense" for one token, timed a moment ago

    Raises: ModelError where the family cannot be run so.
    """
    alone = {t.kind: t.seconds for t in known if t.size == 1}
    with refused(f"the runtime cannot run {name} on random weights"):
        spent = _spent(name, device, trust_remote_code=trust_remote_code)
    left = {
        "expert-turn": spent.expert - alone["expert"],
        "layer-turn": spent.layer - alone["dense"],
        "pass-turn": spent.rest,
        "look-turn": spent.look,
        "read-turn": spent.read,
    }
    return [timing(kind, 1, [np.maximum(seconds, LEAST)], basis="derived") for kind, seconds in left.items()]


@final
@dataclass(frozen=True, eq=False)
class Spent:
    """Seconds of each decoded token [N]: of one of its experts, of a mixture layer beside its experts and their
    arrival, of all beside the mixture layers, of looking one layer ahead, of reading an expert of no bytes.
    """

    expert: Float64
    layer: Float64
    rest: Float64
    look: Float64
    read: Float64


def _spent(name: str, device: str, *, trust_remote_code: bool) -> Spent:
    model, repeated = _few_layers(name, device, trust_remote_code=trust_remote_code)
    found = stacks(model, name)
    every = [layer for stack in found for layer in stack.layers]
    hollow = HollowModel(model, None, found, tuple(tuple(weights_of(model, layer)) for layer in every))
    store = Pool(model, name)
    whole, mixture, others, there = _decoded(hollow, store, store.num_layers * store.num_experts, device)
    _, slowly, _, missing = _decoded(hollow, store, minimum_slots(every[-1].top_k, store.num_experts), device)
    layers = len(found[-1].layers)  # the decoder's, where there are two stacks
    waiting = np.median(slowly) - np.median(mixture)
    return Spent(
        expert=there["compute"] / there["demanded"],
        layer=(mixture - there["compute"] - there["stall"] - there["predictor"]) / layers,
        rest=whole - mixture - others + repeated * others,
        look=there["predictor"] / layers,
        read=waiting / np.maximum(missing["read"], 1),
    )


def _decoded(
    hollow: HollowModel, store: ExpertStore, slots: int, device: str
) -> tuple[Float64, Float64, Float64, dict[str, Float64]]:
    """Seconds of each token [N]: of all, in mixture layers, in others; and what the runtime counted of it, by field."""
    ids = need("torch", "models").arange(PROMPT, device=device)[None] % WORDS
    options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    laps = _Laps({id(layer.entry) for stack in hollow.stacks for layer in stack.layers})
    layers = [layer for stack in hollow.stacks for layer in stack.holder]
    with Engine(hollow, store, slots, wish=ASKED, device=device) as engine, stopwatch(layers, laps.layer):
        began = time.perf_counter()
        engine.generate(ids, max_new_tokens=1 + SKIPPED, **options)
        each = (time.perf_counter() - began) / (1 + SKIPPED)
        count = max(SKIPPED, min(TOKENS, int(LONG_ENOUGH / each)))
        engine.generate(ids, max_new_tokens=1 + SKIPPED + count, streamer=laps, **options)
        numbers = engine.passes()[1][-count:].sum(axis=1)
    return *laps.tokens(count), {name: numbers[:, place] for name, place in PLACE.items()}


@final
class _Laps:
    """A streamer that takes the time of each token, and is told what the layers of its pass take.

    mixtures  the ids of the mixture layers' modules
    """

    def __init__(self, mixtures: set[int]) -> None:
        self._mixtures = mixtures
        self._marks: list[float] = []
        self._passes: list[list[float]] = []  # after each mark: seconds in mixture layers, in others

    def put(self, value: Any) -> None:
        """The prompt, then a token; a pass follows each but the last."""
        self._marks.append(time.perf_counter())
        self._passes.append([0.0, 0.0])

    def end(self) -> None:
        """All is written."""

    def layer(self, module: Any, seconds: float) -> None:
        """A layer ran; before the first mark it is an encoder's, or of tokens that nobody times."""
        if self._passes:
            self._passes[-1][id(module) not in self._mixtures] += seconds

    def tokens(self, count: int) -> tuple[Float64, Float64, Float64]:
        """Seconds of the last `count` tokens [count]: of all, in mixture layers, in other layers."""
        passes = np.array(self._passes[-count - 1 : -1])
        return np.diff(self._marks)[-count:], passes[:, 0], passes[:, 1]


def _few_layers(name: str, device: str, *, trust_remote_code: bool) -> tuple[Any, float]:
    """The model on random weights, but for its experts, which have none, cut off after a few mixture layers. And how
    many times its layers without experts it has.
    """
    torch, transformers = need("torch", "models"), need("transformers", "models")
    config = fetch(transformers.AutoConfig, name, "config", trust_remote_code=trust_remote_code)
    for part in (config, config.get_text_config()):
        part.pad_token_id = 0
        for key in [key for key in vars(part) if key.startswith("vocab_size")]:
            setattr(part, key, WORDS)
    model = without_weights(config, name)
    plain = _plain_layers(stacks(model, name))
    for stack in stacks(model, name):
        layers = stack.holder
        del layers[list(layers).index(few([layer.entry for layer in stack.layers])[-1]) + 1 :]
    found = stacks(model, name)
    experts = {id(m) for stack in found for layer in stack.layers for e in layer.experts for m in e.modules()}
    for module in model.modules():
        if id(module) not in experts:
            materialise(torch, module, device)
    return model, plain / max(_plain_layers(found), 1)


def _plain_layers(found: tuple[Stack, ...]) -> int:
    """How many layers without experts there are in the stacks' lists."""
    return sum(len(stack.holder) - len(stack.layers) for stack in found)
