"""Which experts ran for which token, seen by hooks while a model runs. Starts no generation, writes no files."""

import inspect
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from foregate.arrays import Bool, Float, Int, Int64
from foregate.errors import ModelError, need
from foregate.models import MixtureLayer, Stack

CHECK_EVERY = 16  # decode steps between two that are checked; prefill always is
INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_values")


@dataclass(frozen=True, eq=False)
class Rows:
    """What some forward passes carried, a row per token, in the order it was carried: padding and rejected tokens too.

    row [N] place in the batch, position [N], step [N], token_id [N], real [N] (False for padding),
    experts [N, L, k], weights [N, L, k] or None, hidden [N, L, D] or None, residual [N, L, D] or None
    """

    row: Int64
    position: Int64
    step: Int64
    token_id: Int64
    real: Bool
    experts: Int
    weights: Float | None
    hidden: Float | None
    residual: Float | None


@dataclass
class SelfCheck:
    """How many ids re-running the routers gave again; `tokens` of `carried` were checked."""

    same: int = 0
    ids: int = 0
    tokens: int = 0
    carried: int = 0

    def add(self, other: "SelfCheck") -> "SelfCheck":
        """Both together."""
        return SelfCheck(
            self.same + other.same, self.ids + other.ids, self.tokens + other.tokens, self.carried + other.carried
        )

    @property
    def share(self) -> float | None:
        """Share of ids that came again; None if nothing was checked."""
        return self.same / self.ids if self.ids else None


@dataclass(frozen=True, eq=False)
class _Pass:
    tokens: Any  # [B, S]
    real: Any  # [B, S] or None where the pass says nothing about padding
    position: Any  # [B, S]
    checked: bool


class Capture:
    """Hooks on one stack. Use it as a context, run the model, then `take` the rows and the self-check.

    An id is compared by re-running the router on the very input it had, at once, so equal arithmetic must agree.
    """

    def __init__(
        self, stack: Stack, *, weights: bool = True, hidden: bool = False, check_every: int = CHECK_EVERY
    ) -> None:
        self.stack = stack
        self.check_every = check_every
        self._torch = need("torch", "models")
        self._keep_weights, self._keep_hidden = weights, hidden
        self._names = list(inspect.signature(stack.root.forward).parameters)
        self._handles: list[Any] = []
        self._router_handles: list[Any] = []
        self._reset()

    def __enter__(self) -> Self:
        hooks = [self.stack.root.register_forward_pre_hook(self._begin, with_kwargs=True)]
        for index, layer in enumerate(self.stack.layers):
            if layer.adapter.at_router:
                hooks.append(layer.router.register_forward_hook(self._on_router_output(index)))
            else:
                hooks.append(layer.experts[0].register_forward_pre_hook(self._on_experts(index), with_kwargs=True))
            if self._keep_hidden:
                hooks.append(layer.entry.register_forward_pre_hook(self._on_entry(index), with_kwargs=True))
        self._handles = hooks
        return self

    def _watch_routers(self, wanted: bool) -> None:
        """Hook the routers' inputs, or let go of them: a hook that has nothing to do still takes time."""
        if wanted and not self._router_handles:
            self._router_handles = [
                layer.router.register_forward_pre_hook(self._on_router_input(index), with_kwargs=True)
                for index, layer in enumerate(self.stack.layers)
            ]
        elif not wanted:
            for handle in self._router_handles:
                handle.remove()
            self._router_handles = []

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._watch_routers(False)
        for handle in self._handles:
            handle.remove()

    def take(self) -> tuple[Rows, SelfCheck]:
        """All that ran since the last call.

        Raises: ModelError if a layer ran for other tokens than its stack was given.
        """
        passes, check = self._passes, self._self_check()
        tokens = self._flat([p.tokens for p in passes])
        experts = [self._layer_column(i, self._ids, layer) for i, layer in enumerate(self.stack.layers)]
        weights = [self._layer_column(i, self._weights, layer) for i, layer in enumerate(self.stack.layers)]
        hidden = [self._layer_column(i, self._hidden, layer) for i, layer in enumerate(self.stack.layers)]
        for layer, ids in zip(self.stack.layers, experts, strict=True):
            if len(ids) != len(tokens):
                raise ModelError(f"{layer.path} routed {len(ids)} tokens where its stack was given {len(tokens)}")
        rows = Rows(
            row=np.concatenate([np.repeat(np.arange(p.tokens.shape[0]), p.tokens.shape[1]) for p in passes]),
            position=self._flat([p.position.expand_as(p.tokens) for p in passes]),
            step=np.concatenate([np.full(p.tokens.numel(), i) for i, p in enumerate(passes)]),
            token_id=tokens,
            real=self._flat([p.tokens >= 0 if p.real is None else p.real for p in passes]).astype(np.bool_),
            experts=_stacked(experts, -1),
            weights=_stacked(weights, 0) if self._keep_weights else None,
            hidden=_stacked(hidden, 0) if self._keep_hidden else None,
            residual=self._whole_residual(hidden) if self._keep_hidden else None,
        )
        self._reset()
        return rows, check

    def _reset(self) -> None:
        empty: list[list[Any]] = [[] for _ in self.stack.layers]
        self._passes: list[_Pass] = []
        self._ids = empty
        self._weights: list[list[Any]] = [[] for _ in empty]
        self._hidden: list[list[Any]] = [[] for _ in empty]
        self._residual: list[list[Any]] = [[] for _ in empty]
        self._inputs: list[Any] = [None for _ in empty]
        self._same: list[Any] = []
        self._compared = 0
        self._checking = False

    def _begin(self, root: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pass starts: note which tokens it carries, where they stand, and which are padding."""
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        tokens, mask, position, cache = (named.get(name) for name in INPUTS)
        if tokens is None:
            raise ModelError(f"{type(root).__name__} was run on embeddings; foregate records runs on token ids")
        width = tokens.shape[1]
        if mask is not None and (not hasattr(mask, "dim") or mask.dim() != 2):
            raise ModelError(f"{type(root).__name__} was given a mask that is not [batch, tokens]; padding is unknown")
        if position is None:
            position = self._count(tokens, mask, cache)
        elif position.dim() == 3:  # text, height and width positions of models that also see; they agree on text
            position = position[0]
        prefill = width > 1 or not self._passes
        self._checking = prefill or len(self._passes) % self.check_every == 0
        self._watch_routers(self._checking or self._keep_hidden)
        real = None if mask is None else mask[:, -width:].clone()
        self._passes.append(_Pass(tokens, real, position[..., -width:].clone(), self._checking))

    def _count(self, tokens: Any, mask: Any, cache: Any) -> Any:
        """Positions of a pass that names none: by its mask, or else by what its cache already holds."""
        if mask is not None:
            return mask.long().cumsum(-1) - 1
        start = 0 if cache is None else int(cache.get_seq_length())
        return self._torch.arange(start, start + tokens.shape[1], device=tokens.device)[None].expand_as(tokens)

    def _on_router_input(self, index: int) -> Any:
        def hook(router: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._checking:
                self._inputs[index] = (args, kwargs)
            if self._keep_hidden:
                hidden = args[0] if args else kwargs["hidden_states"]
                self._hidden[index].append(hidden.detach().reshape(-1, hidden.shape[-1]).clone())

        return hook

    def _on_entry(self, index: int) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            residual: Any = args[0] if args else kwargs.get("hidden_states")
            if self._torch.is_tensor(residual):
                self._residual[index].append(residual.detach().reshape(-1, residual.shape[-1]).clone())

        return hook

    def _whole_residual(self, hidden: list[Any]) -> Any:
        """[N, L, D], or None where layers are not given one stream as wide as what their routers read."""
        columns = [self._layer_column(i, self._residual, layer) for i, layer in enumerate(self.stack.layers)]
        if any(c is None or c.shape != h.shape for c, h in zip(columns, hidden, strict=True)):
            return None
        return _stacked(columns, 0)

    def _on_experts(self, index: int) -> Any:
        layer = self.stack.layers[index]

        def hook(experts: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._decided(index, layer, (*args, *kwargs.values()) if kwargs else args)

        return hook

    def _on_router_output(self, index: int) -> Any:
        layer = self.stack.layers[index]

        def hook(router: Any, args: tuple[Any, ...], output: Any) -> None:
            self._decided(index, layer, output)

        return hook

    def _decided(self, index: int, layer: MixtureLayer, values: tuple[Any, ...]) -> None:
        ids, weights = layer.adapter.decided(layer.router, values)
        self._ids[index].append(ids)
        if self._keep_weights:
            self._weights[index].append(weights)
        if self._checking:
            self._check(index, layer, ids)

    def _check(self, index: int, layer: MixtureLayer, ids: Any) -> None:
        args, kwargs = self._inputs[index]
        with self._torch.no_grad():
            again = layer.adapter.again(layer.block, layer.router.forward(*args, **kwargs))
            self._same.append((ids[:, :, None] == again[:, None, :]).any(-1).sum())
        self._compared += ids.numel()

    def _self_check(self) -> SelfCheck:
        same = int(self._torch.stack(self._same).sum()) if self._same else 0
        carried = sum(p.tokens.numel() for p in self._passes)
        return SelfCheck(same, self._compared, sum(p.tokens.numel() for p in self._passes if p.checked), carried)

    def _layer_column(self, index: int, column: list[list[Any]], layer: MixtureLayer) -> Any:
        if not column[index]:
            if column is self._ids:
                raise ModelError(f"{layer.path} was never run; foregate cannot record a layer that is left out")
            return None
        if len(column[index]) != len(self._passes):
            raise ModelError(
                f"{layer.path} ran {len(column[index])} times in {len(self._passes)} passes; foregate cannot tell which"
            )
        values = self._torch.cat(column[index]).detach()
        return (values.float() if values.is_floating_point() and values.element_size() < 4 else values).cpu().numpy()

    def _flat(self, tensors: list[Any]) -> Any:
        return self._torch.cat([t.reshape(-1) for t in tensors]).cpu().numpy()


def _stacked(layers: list[Any], fill: int) -> Any:
    """[N, L, k] of L arrays [N, k]; layers with a smaller k are filled up."""
    widest = max(layer.shape[1] for layer in layers)
    padded = [np.pad(a, ((0, 0), (0, widest - a.shape[1])), constant_values=fill) for a in layers]
    return np.stack(padded, axis=1)
