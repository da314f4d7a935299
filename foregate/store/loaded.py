"""The experts of a model that is in memory, as a store; and which of their weights a family multiplies transposed."""

from typing import Any, final

from foregate.errors import ModelError, need
from foregate.models import stacks
from foregate.store.base import Buffer, ExpertStore
from foregate.store.layout import ITEM_BYTES
from foregate.store.pieces import held_experts, layout_of

# Experts modules that compute x @ w and do not say so in `is_transposed`; the parts of which that is true.
TRANSPOSED: dict[str, tuple[str, ...]] = {
    "DbrxExperts": ("mlp.w2",),
    "Llama4TextExperts": ("gate_up_proj", "down_proj"),
}


@final
class LoadedStore(ExpertStore):
    """Reads from the parameters of a loaded model, for checkpoints that cannot be read in place.

    Raises: ModelError for a dense model, experts that differ from layer to layer or are no 16- or 32-bit numbers.
    """

    def __init__(self, model: Any, name: str) -> None:
        self.model = model
        layers = [layer for stack in stacks(model, name) for layer in stack.layers]
        self._held = held_experts(model, layers)
        kinds = {str(model.get_parameter(n).dtype).removeprefix("torch.") for n in self._held}
        if strange := kinds - {"float32", "float16", "bfloat16"}:
            raise ModelError(f"the experts of {name} are {strange.pop()}; foregate packs 16- and 32-bit numbers")
        self.num_layers = len(layers)
        self.num_experts, self.layout = layout_of(model, self._held, name)
        self.bits = 8 * max(ITEM_BYTES[part.dtype] for part in self.layout.parts)

    def parameters(self, layer: int, expert: int) -> dict[str, Any]:
        """The expert's weights in the model, by part: tensors that share the model's memory."""
        found = {}
        for name, held in self._held.items():
            if held.layer != layer or held.expert not in (None, expert):
                continue
            whole = self.model.get_parameter(name).detach()
            found[held.part] = whole if held.expert is not None else whole.view(held.count, *held.shape)[expert]
        return found

    def read_into(self, layer: int, expert: int, buffer: Buffer) -> int:
        """Copied from memory: nothing is read from a device."""
        torch = need("torch", "models")
        slot = self.layout.tensors(torch.from_numpy(buffer))
        for name, weight in self.parameters(layer, expert).items():
            slot[name].copy_(weight)
        return 0

    def views(self, buffer: Any) -> dict[str, Any]:
        """Tensors that share the buffer's memory."""
        return self.layout.tensors(buffer)

    def close(self) -> None:
        """Nothing is held open."""


def transposed_parts(model: Any) -> frozenset[str]:
    """The parts of a model's experts (on any device, also meta) that it computes x @ w with, rather than x @ w.T."""
    kinds = {type(m): m for stack in stacks(model) for layer in stack.layers for m in layer.experts}
    parts: set[str] = set()
    for kind, module in kinds.items():
        parts.update(TRANSPOSED.get(kind.__name__, ()))
        if getattr(module, "is_transposed", False):
            parts.update(name for name, _ in module.named_parameters())
    return frozenset(parts)
