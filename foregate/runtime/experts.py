"""How a layer's experts are computed from weights that lie in slots. Fetches nothing, decides nothing, names no family.

The module's own forward does all the arithmetic, so that what comes out is what the family's `eager` experts give, bit
for bit. It is called once for all experts where they are there, and else once for each expert, on the rows that were
routed to it, in whatever order the experts arrive. What such a call hands to `index_add_` is that expert's
contribution; added up in ascending order of experts, as the whole forward does, the sum is the same to the last bit.
"""

import inspect
from functools import cache
from typing import Any, Protocol, final

import numpy as np

from foregate.arrays import Int64
from foregate.errors import ChoiceError, ModelError, need
from foregate.models import MixtureLayer
from foregate.runtime.families import FAMILIES, GENERIC

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
        """What the module's forward would return; it cannot be differentiated. Raises: ChoiceError after `close`."""
        torch, given = need("torch", "models"), (*args, *kwargs.values())
        if not (torch.is_grad_enabled() and given[0].requires_grad):
            return self._output(given)
        with torch.no_grad():
            output = self._output(given)
        return _one_way().apply(output, given[0])

    def _output(self, given: tuple[Any, ...]) -> Any:
        family = self.family
        work = Work(self, given if family.enter is None else family.enter(self, given))
        if not len(work.experts) and family.whole:
            return work.whole()
        output = self._run(self.layer, work)
        return output if family.leave is None else family.leave(self, given, output)

    def close(self) -> None:
        """No expert is computed any more."""
        self.weights.release()
        self._run = _closed

    def contribution(self, *values: Any) -> Any:
        """What the module's forward would add to its output, called for one expert."""
        with _additions()() as additions:
            self.eager(*values)
        (found,) = additions.found
        return found


@cache
def _one_way() -> Any:
    """The function that hands its first argument on, and refuses to be differentiated."""
    torch = need("torch", "models")

    class OneWay(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(context: Any, output: Any, hidden: Any) -> Any:
            return output.view_as(output)

        @staticmethod
        def backward(context: Any, *gradients: Any) -> Any:  # what the slots hold by now are other experts
            raise ModelError("experts in slots pass no gradients on; train the whole model, without foregate")

    return OneWay


def _closed(layer: int, work: Work) -> Any:
    raise ChoiceError("the engine of this model was closed, and its experts with it; offload the model again")


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
