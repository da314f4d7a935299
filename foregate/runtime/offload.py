"""From what a user asks for to an engine: which store, how many slots, whose guesses. Runs nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from foregate.arrays import Int
from foregate.errors import SourceError, need
from foregate.memory.eviction import eviction
from foregate.memory.prefetch import prefetch as prefetch_of
from foregate.models import MixtureLayer, find_device, stacks
from foregate.predictors.base import Predictor
from foregate.runtime.engine import Engine
from foregate.runtime.kv_cache import cache_bytes
from foregate.runtime.loading import load_hollow
from foregate.runtime.sizes import MemoryPlan, plan_memory
from foregate.runtime.warm import warm
from foregate.runtime.wish import Wish, refuse
from foregate.sizes import Size, parse_size
from foregate.store.base import ExpertStore
from foregate.store.checkpoint import CheckpointStore
from foregate.store.headers import read_headers, weight_files
from foregate.store.packed import PackedStore
from foregate.store.reader import readers
from foregate.store.skeleton import fetch_config, fetch_folder, skeleton
from foregate.store.source import fingerprint


def offload(
    model: str,
    *,
    memory: str = "50%",
    host_memory: str | None = None,
    evict: str = "lru",
    prefetch: str | None = None,
    speculation_mode: str | None = None,
    predictor: Predictor | None = None,
    store: str | Path | None = None,
    device: str | None = None,
    dtype: str = "auto",
    context: int = 2048,
    threads: int | None = None,
    usage: Int | None = None,
    read_seconds: float | None = None,
    window_seconds: float | None = None,
    look_seconds: float = 0.0,
    trust_remote_code: bool = False,
    on_plan: Callable[[MemoryPlan], None] = lambda plan: None,
    on_step: Callable[[str], None] = lambda what: None,
) -> Engine:
    """A model that runs in less memory than its experts need; what it writes is what the whole model would write.

    model             folder, or name on the Hugging Face hub
    memory            all there is for it, as "6GiB"; or only that of its experts, as "25%" of them
    host_memory       experts kept in the host's memory in front of the disk, for a device: as `memory`
    evict             which expert leaves: "lru", "lfu-decay:half_life=500", "predicted", ...
    prefetch          "probe.npz,threshold:0.6,distance=2": whose guesses, which of them, how many layers ahead
    speculation_mode  a name for whose guesses, instead
    predictor         a fitted one, instead
    store             folder made by `foregate pack`; else experts are read where the model is
    device            where experts are computed; the best there is
    context           tokens that keys and values are planned for
    threads           that read; one into the processor's memory, two that feed a device
    usage             [L, E] how often each expert was used, for the eviction "static"
    read_seconds, window_seconds, look_seconds
                      to read one expert, of a layer at work, of a predictor's answer, for the prefetch "budget"
    on_plan           called with the memory plan, before anything is loaded
    on_step           called with what is about to be done, in words, where that may take a while

    Raises: ChoiceError for options that cannot be, or too little memory, saying the least; ModelError; SourceError for
    a damaged checkpoint, store or predictor, or a store of another model; StorageError.
    """
    torch = need("torch", "models")
    wish = Wish.of(prefetch, speculation_mode, predictor)
    eviction(evict), prefetch_of(wish.policy)  # what cannot be is refused before anything is loaded
    refuse(wish, evict)
    place = str(find_device(torch, device))
    experts, outline = _opened(model, store, dtype, trust_remote_code)
    try:
        sizes = parse_size(memory), None if host_memory is None else parse_size(host_memory)
        threads = threads or readers(device=place != "cpu")
        plan = _planned(outline, _layers(outline, model), experts, sizes, place=place, context=context, threads=threads)
        on_plan(plan)
        on_step("getting the planner ready (compiled at its first use, which takes a minute or two)")
        warm(evict, wish.policy, usage=usage, read_seconds=read_seconds, window_seconds=window_seconds)
        on_step("loading the weights that are no experts'")
        hollow = load_hollow(model, dtype=dtype, device=place, trust_remote_code=trust_remote_code)
        return Engine(
            hollow,
            experts,
            plan.slots,
            host_slots=plan.host_slots,
            evict=evict,
            wish=wish,
            plan=plan,
            threads=threads,
            device=place,
            usage=usage,
            read_seconds=read_seconds,
            window_seconds=window_seconds,
            look_seconds=look_seconds,
        )
    except BaseException:
        experts.close()
        raise


def _opened(name: str, packed: str | Path | None, dtype: str, trusted: bool) -> tuple[ExpertStore, Any]:
    """The store, and the model without weights."""
    if packed is None:
        in_place = CheckpointStore(name, dtype=dtype, trust_remote_code=trusted)
        return in_place, in_place.model
    folder = fetch_folder(name)
    config = fetch_config(folder, name, trust_remote_code=trusted)
    tensors = read_headers(weight_files(folder, getattr(config, "transformers_weights", None)))
    outline = skeleton(config, name, dtype, tensors, trust_remote_code=trusted)
    store = PackedStore(packed)
    try:
        store.check_source(fingerprint(tensors), name)
        layers = _layers(outline, name)
        if store.num_layers != len(layers):
            raise SourceError(f"{packed} holds {store.num_layers} layers, {name} has {len(layers)}; pack {name} again")
    except BaseException:
        store.close()
        raise
    return store, outline


def _planned(
    outline: Any,
    layers: list[MixtureLayer],
    store: ExpertStore,
    sizes: tuple[Size, Size | None],
    *,
    place: str,
    context: int,
    threads: int,
) -> MemoryPlan:
    inside = {id(p) for layer in layers for module in layer.experts for p in module.parameters()}
    dense = [t for t in (*outline.parameters(), *outline.buffers()) if id(t) not in inside]
    return plan_memory(
        *sizes,
        dense=sum(int(t.numel() * t.element_size()) for t in dense),
        cache=cache_bytes(outline.config, context, next(iter(dense)).element_size()),
        context=context,
        slot=store.layout.slot_bytes,
        experts=store.num_layers * store.num_experts,
        top_k=max(layer.top_k for layer in layers),
        overhead=_in_use() + threads * store.beside if place == "cpu" else 0,
    )


def _layers(outline: Any, name: str) -> list[MixtureLayer]:
    return [layer for stack in stacks(outline, name) for layer in stack.layers]


def _in_use() -> int:
    """Bytes that this process holds already: Python and its libraries. 0 where the system does not say."""
    try:
        fields = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    lines = [line.split() for line in fields if line.startswith("VmRSS:")]
    return int(lines[0][1]) * 1024 if lines else 0
