"""A model whose experts live in slots, as its user sees it: generate, stats, record, close. offload.py makes one."""

import threading
import time
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, final

from foregate.arrays import Float64, Int
from foregate.errors import ChoiceError, need
from foregate.memory.planner import Planner
from foregate.models import Stack
from foregate.predictors.base import Predictor
from foregate.runtime.experts import Layer
from foregate.runtime.fetch import Fetch
from foregate.runtime.forecast import Forecast
from foregate.runtime.loading import HollowModel
from foregate.runtime.passes import Passes
from foregate.runtime.recorded import trace_of
from foregate.runtime.runner import Runner
from foregate.runtime.sizes import MemoryPlan
from foregate.runtime.slots import Slots
from foregate.runtime.telemetry import Telemetry
from foregate.runtime.tiers import behind
from foregate.runtime.watch import Watch
from foregate.runtime.wish import Wish, check, find, gate_tables, wants_chances
from foregate.spec import MoESpec
from foregate.store.base import ExpertStore
from foregate.store.reader import Reader, readers
from foregate.traces.schema import Trace


@final
class Engine:
    """A running model. Use it as a context, or `close` it: reading threads end then, the slots' memory is given back,
    and the model cannot run on. The same happens once nobody holds the engine or its model any more.

    Threads may share it: `generate` lets one at a time run.

    model, tokenizer  as transformers made them; `model.generate` works as ever
    plan              where the memory goes, if it was planned
    watch             what the slots hold and what happened so far, for other threads to look at while it runs
    """

    def __init__(
        self,
        hollow: HollowModel,
        store: ExpertStore,
        slots: int,
        *,
        host_slots: int = 0,
        evict: str = "lru",
        wish: Wish = Wish(),
        plan: MemoryPlan | None = None,
        threads: int | None = None,
        device: str = "cpu",
        usage: Int | None = None,
        read_seconds: float | None = None,
        window_seconds: float | None = None,
        look_seconds: float = 0.0,
    ) -> None:
        self.model, self.tokenizer, self.plan = hollow.model, hollow.tokenizer, plan
        self.model.generation_config.disable_compile = True  # what is compiled asks for no experts as it goes
        specs = [_spec(hollow, stack) for stack in hollow.stacks]
        L, E = store.num_layers, store.num_experts
        assert sum(spec.num_layers for spec in specs) == L, f"the store has {L} layers, the model another number"
        predictor = find(wish, specs[-1], lambda: gate_tables(hollow, specs[-1].stack))  # the decoder comes last
        check(predictor, wish.policy, evict)
        self._counts = Telemetry(L)
        self._planner = Planner(
            L,
            E,
            slots,
            evict,
            wish.policy,
            top_k=max(spec.top_k for spec in specs),
            profile=usage,
            expert_bytes=store.layout.slot_bytes,
            read_seconds=read_seconds,
            window_seconds=window_seconds,
            look_seconds=look_seconds,
        )
        self._slots = Slots(store, self._planner.slots, device)
        self._store, host = behind(store, self._slots, host_slots, evict)
        reader = Reader(self._store, threads=threads or readers(device=device != "cpu"))
        weakref.finalize(self, reader.stop)
        self._fetch = Fetch(reader, self._slots, E, self._counts, host)
        self.watch = Watch(specs, self._counts, self._fetch, self._slots.size)
        self._forecast: Forecast | None = None
        self._forecast_layers = range(0)
        self._runner = Runner(self._planner, self._fetch, self._slots, self._counts, self._ahead)
        names = tuple(self._slots.weights(0))
        self._layers = [Layer(i, mixture, names, self._runner.run) for i, mixture in enumerate(hollow.layers)]
        self._passes = self._watched(hollow, specs, frozenset() if predictor is None else predictor.needs)
        if predictor is not None and wants_chances(wish.policy, evict):
            self._look_ahead(predictor, wish.distance, self._passes["decoder"], L - specs[-1].num_layers)
        self._began = 0.0
        self._turn = threading.RLock()
        self._closed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()

    def generate(self, prompt: Any = None, **options: Any) -> Any:
        """Tokens, as `model.generate` gives them, of a text, a list of texts, or tokens [B, S]; options are its own.

        Raises: StorageError, SourceError if an expert cannot be read: the engine can be used again afterwards, as it
        can after an interruption (Ctrl-C); ChoiceError after `close`.
        """
        with self._turn:
            if self._closed:
                raise ChoiceError("the engine was closed; offload the model again")
            given = {**self._inputs(prompt), **options}
            output = self.model.generate(**given)
            self._trim(given, output)
        return output

    def stats(self) -> dict[str, Any]:
        """What happened so far: see `foregate.runtime.telemetry`."""
        return self._counts.totals()

    def passes(self) -> tuple[list[int], Float64]:
        """Tokens of each of the last passes, and what happened in it: numbers [passes, layers, telemetry.FIELDS]."""
        return self._counts.passes()

    def record(self, stack: str = "decoder") -> Trace:
        """The routing of what ran since the last call, a sequence for each row of each batch.

        What a search reordered between passes (beams) is recorded as it was carried, row by row.

        Raises: ChoiceError if the model has no such stack; TraceError if nothing ran.
        """
        if stack not in self._passes:
            raise ChoiceError(f"the model has no mixture layers in its {stack}; it has {' and '.join(self._passes)}")
        passes = self._passes[stack]
        return trace_of(passes.take(), passes.spec)

    def close(self) -> None:
        """Stop the reading threads and let go of the files. Twice is no mistake."""
        if self._closed:
            return
        self._closed = True
        for passes in self._passes.values():
            passes.close()
        self._fetch.close()
        self._store.close()
        for layer in self._layers:
            layer.close()
        self._slots.free()

    def _watched(self, hollow: HollowModel, specs: list[MoESpec], needs: frozenset[str]) -> dict[str, Passes]:
        """Hooks on each stack; states are kept of the decoder alone, which is what predictors are asked about."""
        found = {}
        for stack, spec in zip(hollow.stacks, specs, strict=True):
            wanted = needs if stack.name == "decoder" else frozenset()
            found[stack.name] = Passes(
                stack,
                spec,
                hidden="hidden" in wanted,
                residual="residual" in wanted,
                on_begin=self._on_begin(stack, alone=len(specs) == 1),
                on_end=self._on_end,
                on_back=self._counts.take_back,
            )
        return found

    def _look_ahead(self, predictor: Predictor, distance: int, passes: Passes, first: int) -> None:
        forecast = Forecast(
            predictor,
            passes,
            distance=distance,
            first=first,
            planner=self._planner,
            fetch=self._fetch,
            counts=self._counts,
        )
        if "residual" in predictor.needs:  # known as a layer is entered, before its attention
            passes.on_enter = lambda layer: forecast.look(layer - 1)
        else:
            self._forecast = forecast
            self._forecast_layers = range(first, first + passes.spec.num_layers)

    def _ahead(self, layer: int) -> None:
        if self._forecast is not None and layer in self._forecast_layers:
            self._forecast.look(layer - self._forecast_layers.start)

    def _on_begin(self, stack: Stack, *, alone: bool) -> Callable[[int, bool], None]:
        leads = alone or stack.name == "encoder"  # an encoder's pass begins what its decoder goes on with

        def begin(tokens: int, fresh: bool) -> None:
            self._began = time.perf_counter()
            self._counts.begin(tokens, prefill=fresh and leads)
            self._runner.begin(reset=fresh and leads)
            if self._forecast is not None and (alone or stack.name == "decoder"):
                self._forecast.look(-1)

        return begin

    def _on_end(self) -> None:
        self._runner.end()
        self._counts.end(time.perf_counter() - self._began)

    def _inputs(self, prompt: Any) -> dict[str, Any]:
        torch = need("torch", "models")
        if prompt is None:
            return {}
        if isinstance(prompt, str) or (isinstance(prompt, list) and prompt and isinstance(prompt[0], str)):
            texts = [prompt] if isinstance(prompt, str) else prompt
            options: dict[str, Any] = {}
            if len(texts) > 1:
                side = "right" if self.model.config.is_encoder_decoder else "left"
                options = {"padding": True, "padding_side": side}
            encoded = self.tokenizer(texts, return_tensors="pt", return_token_type_ids=False, **options)
            return {name: values.to(self.model.device) for name, values in encoded.items()}
        ids = torch.as_tensor(prompt)
        return {"input_ids": (ids[None] if ids.ndim == 1 else ids).to(self.model.device)}

    def _trim(self, given: dict[str, Any], output: Any) -> None:
        """What was carried beyond the texts' ends, or guessed and rejected at last, is not what was written."""
        tokens = getattr(output, "sequences", output)
        passes = self._passes.get("decoder")
        if passes is None or len(tokens) != len(passes.sequences):
            return
        fed = given.get("input_ids", given.get("inputs"))
        if fed is None:
            return
        prompt = 1 if self.model.config.is_encoder_decoder else fed.shape[1]
        ends = given.get("eos_token_id", self.model.generation_config.eos_token_id)
        known = set(ends if isinstance(ends, list) else [ends])
        lengths = []
        for sequence, row in zip(passes.sequences, tokens.tolist(), strict=True):
            written = next((i + 1 for i, token in enumerate(row[prompt:]) if token in known), len(row) - prompt)
            lengths.append(sequence.prefill + max(written - 1, 0))
        passes.trim(lengths)


def _spec(hollow: HollowModel, stack: Stack) -> MoESpec:
    name = getattr(hollow.model.config, "_name_or_path", "") or type(hollow.model).__name__
    sizes = dict(zip((id(layer) for layer in hollow.layers), hollow.expert_bytes, strict=True))
    return MoESpec(
        model=name,
        stack=stack.name,
        layer_ids=tuple(layer.layer_id for layer in stack.layers),
        num_experts=max(layer.num_experts for layer in stack.layers),
        top_k=max(layer.top_k for layer in stack.layers),
        expert_bytes=tuple(sizes[id(layer)] for layer in stack.layers),
    )
