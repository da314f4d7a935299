"""What packing costs a model in perplexity: the same text with the original and with the packed experts' weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp
from typing import Any, final

from foregate.errors import ChoiceError, need
from foregate.store.direct import aligned
from foregate.store.loaded import LoadedStore
from foregate.store.packed import PackedStore
from foregate.store.weight import PackedWeight

WINDOW = 256  # tokens of a text that are read together


@final
@dataclass(frozen=True)
class Change:
    """Perplexity per predicted token, of `tokens` predicted tokens of `texts` texts."""

    before: float
    after: float
    tokens: int
    texts: int

    @property
    def share(self) -> float:
        """By how much of itself it rose."""
        return self.after / self.before - 1


def perplexity_change(
    model: Any,
    tokenizer: Any,
    store: PackedStore,
    texts: Sequence[str],
    advance: Callable[[float], None] = lambda share: None,
) -> Change:
    """Of a loaded model, whose experts' weights are those of the store afterwards.

    advance  is told each share of the work that is done

    The numbers are the ones that packed weights stand for, computed with in the model's own type; load it in float32 to
    see the rounding of weights alone. Each text is cut into windows of 256 tokens, which know nothing of each other.

    Raises: ChoiceError if there is nothing to predict.
    """
    windows = [window for text in texts for window in _windows(tokenizer, text)]
    if not windows:
        raise ChoiceError("the texts for --perplexity have no two tokens in a row; give a longer one")
    before, tokens = _loss(model, windows, advance)
    put_weights(model, store)
    after, _ = _loss(model, windows, advance)
    return Change(exp(before / tokens), exp(after / tokens), tokens, len(texts))


def put_weights(model: Any, store: PackedStore) -> None:
    """Replace a loaded model's experts by what the store's weights stand for."""
    torch = need("torch", "models")
    loaded = LoadedStore(model, store.index.model)
    slot = aligned(store.layout.slot_bytes)
    for layer in range(store.num_layers):
        for expert in range(store.num_experts):
            store.read_into(layer, expert, slot)
            views = store.views(torch.from_numpy(slot))
            for name, weight in loaded.parameters(layer, expert).items():
                view = views[name]
                weight.copy_(view.dense(weight.dtype) if isinstance(view, PackedWeight) else view)


def _windows(tokenizer: Any, text: str) -> list[Any]:
    """[1, 2..WINDOW] tokens each."""
    ids = tokenizer(text, return_tensors="pt").input_ids
    return [window for window in ids.split(WINDOW, dim=1) if window.shape[1] > 1]


def _loss(model: Any, windows: Sequence[Any], advance: Callable[[float], None]) -> tuple[float, int]:
    """The sum of nats, and how many tokens were predicted; half of the work."""
    torch = need("torch", "models")
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for window in windows:
            ids = window.to(model.device)
            if model.config.is_encoder_decoder:  # it reads the first half and is asked for the second
                half = ids.shape[1] // 2
                logits, wanted = model(input_ids=ids[:, :half], labels=ids[:, half:]).logits[0], ids[0, half:]
            else:
                logits, wanted = model(input_ids=ids, use_cache=False).logits[0, :-1], ids[0, 1:]
            nats += float(torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum"))
            tokens += len(wanted)
            advance(0.5 / len(windows))
    return nats, tokens
