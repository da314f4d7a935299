"""What a running model does, seen by hooks: its forward passes, the tokens they carry, and where these are routed.

A `History` for each row of the batch, so that a predictor can be asked while the model runs, and a trace be made of it
afterwards. Fetches nothing, and changes nothing: what it sees wrongly (a search that reorders its beams) makes guesses
worse, never the output.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np

from foregate.arrays import Bool, Int
from foregate.history import History
from foregate.models import Stack
from foregate.spec import MoESpec

INPUTS = ("input_ids", "inputs_embeds", "attention_mask", "past_key_values")
KEPT = 1 << 17  # tokens of finished sequences that wait for `take`; the oldest go first


@final
@dataclass(eq=False)
class Sequence:
    """One row of a batch: what it carried so far.

    steps    number of the pass that carried each token, ever growing
    prefill  tokens of its first pass
    """

    history: History
    steps: list[int] = field(default_factory=list)
    prefill: int = 0

    def __len__(self) -> int:
        return len(self.steps)

    def begin(self, token_id: Int, step: int) -> None:
        """A pass carries these tokens."""
        self.history.begin(token_id)
        self.prefill = self.prefill or len(token_id)
        self.steps.extend([step] * len(token_id))

    def rewind(self, length: int) -> None:
        """Only the first `length` tokens stay."""
        self.history.rewind(length)
        del self.steps[length:]


@final
class Passes:
    """Hooks on one stack.

    on_begin  called with (tokens, fresh) as a pass starts; fresh: nothing was held before it
    on_end    called as it ends
    on_back   called with how many of the last pass's tokens were taken back
    on_enter  called before each mixture's transformer layer, where the residual stream is wanted
    """

    def __init__(
        self,
        stack: Stack,
        spec: MoESpec,
        *,
        hidden: bool = False,
        residual: bool = False,
        on_begin: Callable[[int, bool], None] = lambda tokens, fresh: None,
        on_end: Callable[[], None] = lambda: None,
        on_back: Callable[[int], None] = lambda tokens: None,
        on_enter: Callable[[int], None] = lambda layer: None,
    ) -> None:
        self.stack, self.spec = stack, spec
        self.on_begin, self.on_end, self.on_back, self.on_enter = on_begin, on_end, on_back, on_enter
        self.sequences: list[Sequence] = []
        self._done: list[Sequence] = []
        self._keep = hidden or residual
        self._real: Bool = np.zeros((0, 0), dtype=np.bool_)  # [B, tokens held, padding too]
        self._now: Bool = np.zeros((0, 0), dtype=np.bool_)  # [B, S] real tokens of this pass
        self._plain = False  # one row, no padding
        self._inputs: dict[int, Any] = {}
        self._step = 0
        self._layer = len(stack.layers)  # the last that was observed in this pass; all of them: no pass is under way
        self._names = list(inspect.signature(stack.root.forward).parameters)
        self._handles = [
            stack.root.register_forward_pre_hook(self._begin, with_kwargs=True),
            stack.root.register_forward_hook(self._end),
        ]
        for index, layer in enumerate(stack.layers):
            if layer.adapter.at_router:
                self._handles.append(layer.router.register_forward_hook(self._on_router(index)))
            else:
                self._handles.append(
                    layer.experts[0].register_forward_pre_hook(self._on_experts(index), with_kwargs=True)
                )
            if hidden:
                self._handles.append(
                    layer.router.register_forward_pre_hook(self._on_router_input(index), with_kwargs=True)
                )
            if residual:
                self._handles.append(layer.entry.register_forward_pre_hook(self._on_entry(index), with_kwargs=True))

    @property
    def layer(self) -> int:
        """The last that was routed in this pass: -1 for none, the number of layers where no pass is under way."""
        return self._layer

    @property
    def tokens(self) -> int:
        """Real tokens of this pass."""
        return int(self._now.sum())

    def take(self) -> list[Sequence]:
        """The sequences since the last call; those of the pass at hand are over by this."""
        self._finish()
        done, self._done = self._done, []
        return done

    def trim(self, lengths: list[int]) -> None:
        """Each row of the batch keeps at most so many tokens: what was carried after a text's end goes."""
        for sequence, length in zip(self.sequences, lengths, strict=True):
            if len(sequence) > length:
                sequence.rewind(length)

    def close(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _begin(self, root: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids, embedded, mask, cache = (named.get(name) for name in INPUTS)
        if ids is not None:
            tokens = ids.detach().cpu().numpy()
        elif embedded is not None:
            tokens = np.full(embedded.shape[:2], -1)
        else:
            return  # the model will say so
        held = 0 if cache is None else int(cache.get_seq_length())
        now = _real(mask, tokens.shape[1], held)
        if now is None:
            now = np.ones(tokens.shape, dtype=np.bool_)
        fresh = held == 0 or held > self._real.shape[1] or len(tokens) != len(self.sequences)
        if fresh:
            self._finish()
            self._real = now
            self.sequences = [Sequence(History(self.spec, hidden=self._keep)) for _ in tokens]
        else:
            self._rewind(held)
            self._real = np.concatenate([self._real, now], axis=1)
        self._now = now
        self._plain = len(now) == 1 and bool(now.all())
        for sequence, row, real in zip(self.sequences, tokens, now, strict=True):
            sequence.begin(row[real], self._step)
        self._step += 1
        self._layer = -1
        self.on_begin(tokens.size, fresh)

    def _end(self, root: Any, args: Any, output: Any) -> None:
        self._layer = len(self.stack.layers)
        self.on_end()

    def _rewind(self, held: int) -> None:
        """Guesses of an assistant that the model rejected are not among what it holds."""
        back = self._real.shape[1] - held
        if back == 0:
            return
        self._real = self._real[:, :held]
        for sequence, real in zip(self.sequences, self._real, strict=True):
            sequence.rewind(int(real.sum()))
        self.on_back(back * len(self.sequences))

    def _finish(self) -> None:
        self._done += [sequence for sequence in self.sequences if len(sequence)]
        self.sequences = []
        self._real = self._now = np.zeros((0, 0), dtype=np.bool_)
        kept = sum(map(len, self._done))
        while kept > KEPT and len(self._done) > 1:
            kept -= len(self._done.pop(0))

    def _on_experts(self, index: int) -> Any:
        layer = self.stack.layers[index]

        def hook(experts: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._observe(index, *layer.adapter.decided(layer.router, (*args, *kwargs.values()) if kwargs else args))

        return hook

    def _on_router(self, index: int) -> Any:
        layer = self.stack.layers[index]

        def hook(router: Any, args: tuple[Any, ...], output: Any) -> None:
            self._observe(index, *layer.adapter.decided(layer.router, output))

        return hook

    def _on_router_input(self, index: int) -> Any:
        def hook(router: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._inputs[index] = _numbers(hidden.reshape(-1, hidden.shape[-1]))

        return hook

    def _on_entry(self, index: int) -> Any:
        def hook(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            residual = args[0] if args else kwargs.get("hidden_states")
            if self._layer != index - 1 or getattr(residual, "ndim", 0) != 3:
                return
            for sequence, part in zip(self.sequences, self._rows(_numbers(residual)), strict=True):
                sequence.history.enter(index, part)
            self.on_enter(index)

        return hook

    def _observe(self, index: int, ids: Any, weights: Any) -> None:
        if len(ids) != self._now.size or index <= self._layer:  # not the tokens that its stack was given
            return
        self._layer = index
        routed = _widened(ids.detach().cpu().numpy(), self.spec.top_k, -1)
        shares = _widened(_numbers(weights), self.spec.top_k, 0)
        hidden = self._inputs.pop(index, None)
        if self._plain:
            self.sequences[0].history.observe(index, routed, shares, hidden)
            return
        parts = (self._rows(a) for a in (routed, shares))
        hiddens = [None] * len(self.sequences) if hidden is None else self._rows(hidden)
        for sequence, row, share, own in zip(self.sequences, *parts, hiddens, strict=True):
            sequence.history.observe(index, row, share, own)

    def _rows(self, values: Any) -> list[Any]:
        """Values of all tokens [B * S, ...] as those of each row's real tokens."""
        shaped = values.reshape(*self._now.shape, *values.shape[-1:])
        return [row[real] for row, real in zip(shaped, self._now, strict=True)]


def _real(mask: Any, tokens: int, held: int) -> Bool | None:
    """[B, S] which of a pass's tokens are no padding, by whatever mask a model is given; None: it does not say."""
    if isinstance(mask, dict):  # one for each kind of attention
        mask = next(iter(mask.values()), None)
    if getattr(mask, "ndim", 0) == 2 and mask.shape[1] >= tokens:
        chosen: Bool = mask[:, -tokens:].detach().cpu().numpy().astype(np.bool_)
        return chosen
    if getattr(mask, "ndim", 0) == 4 and mask.shape[-1] >= held + tokens:  # a token that is none sees not even itself
        own = mask[:, 0, :, held : held + tokens].diagonal(dim1=1, dim2=2).detach().cpu()
        seen: Bool = (own if own.dtype.is_floating_point is False else own == 0).numpy().astype(np.bool_)
        return seen
    return None


def _numbers(values: Any) -> Any:
    return values.detach().float().cpu().numpy()


def _widened(values: Any, width: int, fill: int) -> Any:
    """[N, width]: layers that route to fewer experts are filled up."""
    missing = width - values.shape[1]
    return np.pad(values, ((0, 0), (0, missing)), constant_values=fill) if missing else values
