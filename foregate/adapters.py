"""How each family's routing decision is read off a running model, and repeated. Finds no modules; models.py does."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from foregate.errors import ModelError, need


@dataclass(frozen=True)
class Adapter:
    """How a family's decision is read.

    name       what docs/families.md calls it
    at_router  read it from the router's output instead of the experts' arguments
    decided    (router, values) -> ids [T, k], weights [T, k]; values are the experts' arguments, or the router's output
    again      (block, router output) -> ids [T, k], to repeat a decision
    top_k      where the family fixes it
    note       what whoever reads the trace must know
    """

    name: str
    at_router: bool
    decided: Callable[[Any, tuple[Any, ...]], tuple[Any, Any]]
    again: Callable[[Any, Any], Any]
    top_k: int | None = None
    note: str | None = None


def _experts_arguments(router: Any, values: tuple[Any, ...]) -> tuple[Any, Any]:
    """(hidden, ids, weights), as 68 of the 73 families of transformers 5.23 call their experts."""
    if len(values) != 3 or values[1].dim() != 2 or values[1].shape != values[2].shape:
        shapes = ", ".join(str(tuple(v.shape)) if hasattr(v, "shape") else type(v).__name__ for v in values)
        raise ModelError(f"{type(router).__name__}'s experts were called with ({shapes}); foregate cannot read that")
    return values[1], values[2]


def _integer_output(block: Any, output: Any) -> Any:
    ids = [v for v in output if hasattr(v, "dtype") and not v.dtype.is_floating_point and v.dim() == 2]
    if len(ids) != 1:
        raise ModelError(f"the router in {type(block).__name__} returns {len(ids)} tensors of ids; expected one")
    return ids[0]


def _switch(router: Any, values: tuple[Any, ...]) -> tuple[Any, Any]:
    """Dispatch mask [T, 1, E], all zero where an expert's capacity dropped the token."""
    mask, weights = values[1], values[2]
    return _one_hot_ids(mask), weights


def _switch_again(block: Any, output: Any) -> Any:
    return _one_hot_ids(output[0].flatten(0, -2))[:, None]


def _one_hot_ids(mask: Any) -> Any:
    return mask.argmax(-1).masked_fill(mask.sum(-1) == 0, -1)


def _nonzero(scores: Any, top_k: int) -> tuple[Any, Any]:
    """The largest of scores [T, E] that is zero wherever a token was not sent."""
    weights, ids = scores.topk(top_k, dim=-1)
    return ids.masked_fill(weights == 0, -1), weights


def _nllb(router: Any, values: tuple[Any, ...]) -> tuple[Any, Any]:
    """Gates [T, E]: nonzero for the one or two experts that the router chose."""
    return _nonzero(values[2], 2)


def _nllb_again(block: Any, output: Any) -> Any:
    return _nonzero(output[1], 2)[0]


def _llama4(router: Any, values: tuple[Any, ...]) -> tuple[Any, Any]:
    """Scores [T, E] that scale the experts' inputs: zero where not routed."""
    return _nonzero(values[0], router.top_k)


def _jetmoe(router: Any, values: tuple[Any, ...]) -> tuple[Any, Any]:
    """Undo the sorting by expert: place i of it holds slot `order[i]` of the flat [T * k]."""
    torch = need("torch", "models")
    order, _, gates, sizes, _ = values
    sorted_ids = torch.repeat_interleave(torch.tensor(sizes, device=order.device))
    ids, weights = torch.empty_like(order), torch.empty_like(gates)
    ids[order], weights[order] = sorted_ids, gates
    return ids.view(-1, router.top_k), weights.view(-1, router.top_k)


GENERIC = Adapter("generic", False, _experts_arguments, _integer_output)
ADAPTERS = {
    "LongcatFlashExperts": replace(
        GENERIC, note="ids from the number of routed experts on are identity experts, which hold no weights of use"
    ),
    "DbrxExperts": Adapter(
        "dbrx", False, _experts_arguments, lambda block, output: block.route_tokens_to_experts(output)[1]
    ),
    "SwitchTransformersExperts": Adapter(
        "switch",
        False,
        _switch,
        _switch_again,
        top_k=1,
        note="experts have a capacity per sequence: a token beyond it is routed nowhere (-1), and padding counts",
    ),
    "NllbMoeExperts": Adapter(
        "nllb",
        False,
        _nllb,
        _nllb_again,
        top_k=2,
        note="the router's choice is recorded, but transformers (seen in 5.23) reads its mask as ids and so runs only "
        "experts 0 and 1 of NLLB-MoE, whatever the router says",
    ),
    "Llama4TextExperts": Adapter(
        "llama4",
        True,
        _llama4,
        lambda block, output: _nonzero(output[0], block.router.top_k)[0],
        note="transformers runs every expert of Llama 4 on every token, the ones not routed to on zeros",
    ),
    "JetMoeParallelExperts": Adapter(
        "jetmoe",
        True,
        _jetmoe,
        lambda block, output: _jetmoe(block.router, output)[0],
        note="the mixture of attention heads is routed too and is not recorded",
    ),
}
