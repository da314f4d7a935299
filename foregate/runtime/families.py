"""What differs between families in how their experts are called. Computes one expert at a time; fetches nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foregate.errors import need

if TYPE_CHECKING:
    from foregate.runtime.experts import Layer


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
    part: Callable[[Layer, tuple[Any, ...], Any, Any, int], Any]
    whole: bool = True
    own: str | None = None
    block: bool = False
    enter: Callable[[Layer, tuple[Any, ...]], tuple[Any, ...]] | None = None
    leave: Callable[[Layer, tuple[Any, ...], Any], Any] | None = None


def _second(module: Any, values: tuple[Any, ...]) -> Any:
    return values[1]


def _alone(layer: Layer, values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
    """The module's own forward, for one expert."""
    hidden, ids, weights = values
    rows = hidden.reshape(-1, hidden.shape[-1])[row]
    return layer.contribution(rows, ids.new_full((len(row), 1), expert), weights[row, place, None])


def _switch_ids(module: Any, values: tuple[Any, ...]) -> Any:
    mask = values[1]  # [T, 1, E]
    return mask.argmax(-1).masked_fill(mask.sum(-1) == 0, -1)


def _switch(layer: Layer, values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
    hidden, mask, weights = values
    alone = mask.new_zeros((len(row), 1, layer.total))
    alone[:, :, expert] = 1
    return layer.contribution(hidden[row], alone, weights[row, place, None])


def _longcat(layer: Layer, values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
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


def _llama4(layer: Layer, values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
    """Its own forward multiplies all experts at once."""
    module = layer.module
    gate, up = (values[0][row] @ module.gate_up_proj[expert]).chunk(2, dim=-1)
    return (up * module.act_fn(gate)) @ module.down_proj[expert]


def _jetmoe_enter(layer: Layer, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Two modules hold the experts, and the block sorts its tokens by expert before it calls them."""
    hidden = values[0].reshape(-1, values[0].shape[-1])
    routed = layer.module.router(hidden)
    ids, _ = layer.mixture.adapter.decided(layer.module.router, routed)
    sizes = need("torch", "models").tensor(routed[3], device=hidden.device)
    return hidden, ids, routed[1], routed[2], sizes.cumsum(0)


def _jetmoe(layer: Layer, values: tuple[Any, ...], row: Any, place: Any, expert: int) -> Any:
    linear, block = need("torch", "models").nn.functional.linear, layer.module
    hidden, _, token, gate, end = values
    mine = slice(int(end[expert - 1]) if expert else 0, int(end[expert]))  # of the sorted tokens
    first, second = linear(hidden[token[mine]], block.input_linear.weight[expert]).chunk(2, dim=-1)
    part = linear(block.activation(first) * second, block.output_linear.weight[expert]) * gate[mine, None]
    return part[token[mine].argsort()][row.argsort().argsort()]


def _jetmoe_leave(layer: Layer, values: tuple[Any, ...], output: Any) -> Any:
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
