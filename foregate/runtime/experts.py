"""How each family's experts are computed from weights that lie in slots. Fetches nothing, decides nothing.

The module's own forward does all the arithmetic, so that what comes out is what the family's `eager` experts give, bit
for bit. It is called once for all experts where they are there, and else once for each expert, on the rows that were
routed to it, in whatever order the experts arrive. What such a call hands to `index_add_` is that expert's
contribution; added up in ascending order of experts, as the whole forward does, the sum is the same to the last bit.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, final

import numpy as np

from foregate.arrays import Int64
from foregate.errors import need
from foregate.models import MixtureLayer

SMALL = 64  # ids: fewer are told apart quicker in Python than in numpy


class Run(Protocol):
    """Brings a layer's experts into slots and has them computed: see `foregate.runtime.runner.Runner.run`."""

    def __call__(self, layer: int, work: "Work") -> Any:
        """The layer's output."""


# --- where a module looks for weights --------------------------------------------------------------------------------


@final
class SlotWeights:
    """Stands where a module's stacked parameter stood: indexed by an expert, it gives that expert's weights.

    held  expert -> its weights by name; shared by the parameters of a layer
    """

    def __init__(self, name: str, held: dict[int, dict[str, Any]]) -> None:
        self._name, self._held = name, held

    def __getitem__(self, expert: Any) -> Any:
        return self._held[int(expert)][self._name]

    def view(self, *shape: Any) -> "SlotWeights":
        """DBRX's experts lie one below the other, and it makes a stack of them first."""
        return self


@final
class Stacked:
    """A module whose parameters hold all experts, one behind the other."""

    def __init__(self, module: Any, names: tuple[str, ...]) -> None:
        self._held: dict[int, dict[str, Any]] = {}
        for name in names:
            inner, _, last = name.rpartition(".")
            owner = module.get_submodule(inner)
            owner._parameters.pop(last, None)
            vars(owner)[last] = SlotWeights(name, self._held)

    def hold(self, expert: int, weights: dict[str, Any]) -> None:
        """From now on the expert's weights are these."""
        self._held[expert] = weights

    def release(self) -> None:
        """No expert's weights are known any more: what a slot holds next is another's."""
        self._held.clear()


@final
class Listed:
    """A list of modules, one for each expert."""

    def __init__(self, module: Any, names: tuple[str, ...]) -> None:
        self._places: list[list[tuple[dict[str, Any], str, str]]] = []  # per expert: attributes, attribute, name
        self._lent: list[tuple[dict[str, Any], str, str]] = []
        for expert in (key for key in module if key.startswith("expert")):
            places = []
            for name in names:
                inner, _, last = name.rpartition(".")
                owner = module[expert].get_submodule(inner)
                owner._parameters.pop(last, None)
                vars(owner)[last] = None
                places.append((vars(owner), last, name))
            self._places.append(places)

    def hold(self, expert: int, weights: dict[str, Any]) -> None:
        """From now on the expert's weights are these."""
        for attributes, attribute, name in self._places[expert]:
            attributes[attribute] = weights[name]
        self._lent += self._places[expert]

    def release(self) -> None:
        """No expert's weights are known any more."""
        for attributes, attribute, _ in self._lent:
            attributes[attribute] = None
        self._lent.clear()


# --- what a family's experts are called with -------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """How a family calls its experts.

    ids    (module, arguments) -> ids [T, j] of the experts that the module runs on each of T rows of the first
           argument; others than its own are absent
    part   (layer, arguments, row [n], place [n], expert) -> its contribution to each of these rows [n, D], by weights
           that the module holds
    whole  whether the module's forward touches no other experts than these
    own    attribute of the module that says how many of the ids name experts with weights; None: all
    block  whether the module is the block around several modules of experts
    enter  (layer, arguments) -> what stands for the arguments above, where these are others
    leave  (layer, arguments, output) -> the module's output, where that is another
    """

    ids: Callable[[Any, tuple[Any, ...]], Any]
    part: Callable[["Layer", tuple[Any, ...], Any, Any, int], Any]
    whole: bool = True
    own: str | None = None
    block: bool = False
    enter: Callable[["Layer", tuple[Any, ...]], tuple[Any, ...]] | None = None
    leave: Callable[["Layer", tuple[Any, ...], Any], Any] | None = None


def _second(module: Any, values: tuple[Any, ...]) -> Any:
    return values[1]


def _alone(layer: "Layer", values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
    """The module's own forward, for one expert."""
    hidden, ids, weights = values
    rows = hidden.reshape(-1, hidden.shape[-1])[row]
    return layer.contribution(rows, ids.new_full((len(row), 1), expert), weights[row, place, None])


def _switch_ids(module: Any, values: tuple[Any, ...]) -> Any:
    mask = values[1]  # [T, 1, E]
    return mask.argmax(-1).masked_fill(mask.sum(-1) == 0, -1)


def _switch(layer: "Layer", values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
    hidden, mask, weights = values
    alone = mask.new_zeros((len(row), 1, layer.total))
    alone[:, :, expert] = 1
    return layer.contribution(hidden[row], alone, weights[row, place, None])


def _longcat(layer: "Layer", values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
    """Its own forward cannot be given one place a row."""
    linear, module = need("torch", "models").nn.functional.linear, layer.module
    hidden, _, weights = values
    state = hidden[row]
    if expert < layer.own:
        gate, up = linear(state, module.gate_up_proj[expert]).chunk(2, dim=-1)
        state = linear(module.act_fn(gate) * up, module.down_proj[expert])
    return (state * weights[row, place, None]).to(hidden.dtype)


def _llama4_ids(module: Any, values: tuple[Any, ...]) -> Any:
    """Every expert has a row for every token; where that is not sent to it, zero, and so is the answer."""
    rows = values[0].reshape(module.num_experts, -1)
    used = rows.any(dim=1)
    ids = need("torch", "models").arange(module.num_experts, device=rows.device).masked_fill(~used, -1)
    return ids.repeat_interleave(len(values[0]) // module.num_experts)[:, None]


def _llama4(layer: "Layer", values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
    """Its own forward multiplies all experts at once."""
    module = layer.module
    gate, up = (values[0][row] @ module.gate_up_proj[expert]).chunk(2, dim=-1)
    return (up * module.act_fn(gate)) @ module.down_proj[expert]


def _jetmoe_enter(layer: "Layer", values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Two modules hold the experts, and the block sorts its tokens by expert before it calls them."""
    hidden = values[0].reshape(-1, values[0].shape[-1])
    routed = layer.module.router(hidden)
    ids, _ = layer.mixture.adapter.decided(layer.module.router, routed)
    sizes = need("torch", "models").tensor(routed[3], device=hidden.device)
    return hidden, ids, routed[1], routed[2], sizes.cumsum(0)


def _jetmoe(layer: "Layer", values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
    linear, block = need("torch", "models").nn.functional.linear, layer.module
    hidden, _, token, gate, end = values
    mine = slice(int(end[expert - 1]) if expert else 0, int(end[expert]))  # of the sorted tokens
    first, second = linear(hidden[token[mine]], block.input_linear.weight[expert]).chunk(2, dim=-1)
    part = linear(block.activation(first) * second, block.output_linear.weight[expert]) * gate[mine, None]
    return part[token[mine].argsort()][row.argsort().argsort()]


def _jetmoe_leave(layer: "Layer", values: tuple[Any, ...], output: Any) -> Any:
    return output.view(values[0].shape) + layer.module.bias


GENERIC = Family(_second, _alone)
FAMILIES = {
    "LongcatFlashExperts": Family(_second, _longcat, own="num_routed_experts"),
    "SwitchTransformersExperts": Family(_switch_ids, _switch),
    "Llama4TextExperts": Family(_llama4_ids, _llama4, whole=False),
    "JetMoeParallelExperts": Family(
        _second, _jetmoe, whole=False, block=True, enter=_jetmoe_enter, leave=_jetmoe_leave
    ),
}
"""By the class of the experts' module; all others are called with (hidden [T, D], ids [T, k], weights [T, k])."""


# --- one call --------------------------------------------------------------------------------------------------------


@final
class Work:
    """One call of a layer's experts: what is to be computed, as a whole or expert by expert.

    experts  [m] the experts with weights that it needs, ascending
    """

    def __init__(self, layer: "Layer", values: tuple[Any, ...]) -> None:
        self._layer, self._values = layer, values
        self._ids = layer.family.ids(layer.module, values)
        named = _unique(self._ids)
        self.experts: Int64 = np.array([e for e in named if 0 <= e < layer.own], dtype=np.int64)
        self._order = [e for e in named if 0 <= e < layer.total]
        self._found: dict[int, tuple[Any, Any]] = {}  # contributions that wait for those of lower experts
        self._sum: Any = None

    def hold(self, expert: int, weights: dict[str, Any]) -> None:
        """The expert's weights are there."""
        self._layer.weights.hold(expert, weights)

    def release(self) -> None:
        """The weights may go."""
        self._layer.weights.release()

    def whole(self) -> Any:
        """The experts' output, all weights being held."""
        if self._layer.family.whole:
            return self._layer.eager(*self._values)
        for expert in self.experts.tolist():
            self.compute(expert)
        return self.result()

    def compute(self, expert: int) -> None:
        """One expert's part of the output, its weights being held."""
        place, row = (self._ids == expert).T.nonzero(as_tuple=True)  # ordered as the whole forward orders them
        self._found[expert] = (row, self._layer.family.part(self._layer, self._values, row, place, expert))
        self._add()

    def result(self) -> Any:
        """The sum, once every expert was computed."""
        for expert in [e for e in self._order if e >= self._layer.own]:  # these need no weights
            self.compute(expert)
        assert not self._order, f"experts {self._order} were not computed"
        hidden = self._values[0]
        return self._sum.to(hidden.dtype).view(hidden.shape)

    def _add(self) -> None:
        while self._order and (found := self._found.pop(self._order[0], None)) is not None:
            self._order.pop(0)
            row, part = found
            if self._sum is None:
                self._sum = part.new_zeros((len(self._ids), part.shape[-1]))
            self._sum.index_add_(0, row, part)


@final
class Layer:
    """The experts of one mixture layer; called in place of their module's `forward`."""

    def __init__(self, layer: int, mixture: MixtureLayer, names: tuple[str, ...], run: Run) -> None:
        experts = mixture.experts[0]
        self.family = FAMILIES.get(type(experts).__name__, GENERIC)
        self.layer, self.mixture = layer, mixture
        self.module = mixture.block if self.family.block else experts
        self.total = mixture.num_experts
        self.own = self.total if self.family.own is None else int(getattr(experts, self.family.own))
        self.eager = inspect.unwrap(type(self.module).forward).__get__(self.module)
        self.weights: Stacked | Listed = (Listed if hasattr(experts, "keys") else Stacked)(self.module, names)
        self._run = run
        self.module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the module's forward would return."""
        family, given = self.family, (*args, *kwargs.values())
        work = Work(self, given if family.enter is None else family.enter(self, given))
        if not len(work.experts) and family.whole:
            return work.whole()
        output = self._run(self.layer, work)
        return output if family.leave is None else family.leave(self, given, output)

    def contribution(self, *values: Any) -> Any:
        """What the module's forward would add to its output, called for one expert."""
        with _additions()() as additions:
            self.eager(*values)
        (found,) = additions.found
        return found


def _unique(ids: Any) -> list[int]:
    if ids.numel() <= SMALL:
        return sorted(set(ids.flatten().tolist()))
    found: list[int] = np.unique(ids.cpu().numpy()).tolist()
    return found


@cache
def _additions() -> Any:
    """The class of contexts that keep what is handed to `index_add_` in them, instead of adding it."""
    torch = need("torch", "models")

    class Additions(torch.overrides.TorchFunctionMode):  # type: ignore[misc, name-defined]
        def __enter__(self) -> Any:
            self.found: list[Any] = []
            return super().__enter__()

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.Tensor.index_add_:
                self.found.append(args[3])
                return args[0]
            return func(*args, **(kwargs or {}))

    return Additions
