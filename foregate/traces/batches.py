"""Run a model on batches of prompts, and make each batch a trace of what it carried. Writes no files."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from foregate.arrays import Int64
from foregate.errors import ChoiceError, ModelError, need
from foregate.models import Stack, stacks
from foregate.spec import MoESpec
from foregate.traces.capture import Capture, Rows, SelfCheck
from foregate.traces.prompts import PromptText
from foregate.traces.schema import Prompt, Provenance, Trace, narrowest_float, smallest_int

NO_RESIDUAL = "router inputs are recorded without the residual stream: this model's layers are given several streams"


@dataclass(frozen=True)
class Options:
    """What shapes a recording.

    max_new_tokens     tokens to write after each prompt; 0 records the prompt alone
    batch_size         prompts in one forward pass
    padding            side that shorter prompts of a batch are filled up on; None = left for a decoder, right for an
                       encoder. A decoder cannot go on writing after padding, so right needs max_new_tokens <= 1.
    stack              "encoder" or "decoder" of a model with both; None = each into its own file
    hidden, weights    whether to keep hidden states (router inputs, and what enters the layers), and experts' weights
    sample             draw tokens instead of taking the likeliest
    prompt_lookup      guess so many tokens ahead from the prompt itself (batch size 1)
    max_prompt_tokens  cut prompts to so many tokens; None = a prompt that does not fit the model is an error
    """

    max_new_tokens: int = 32
    batch_size: int = 1
    padding: str | None = None
    stack: str | None = None
    hidden: bool = False
    weights: bool = True
    sample: bool = False
    temperature: float = 1.0
    seed: int = 0
    prompt_lookup: int | None = None
    max_prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 0 or self.batch_size < 1:
            raise ChoiceError(
                f"max_new_tokens is {self.max_new_tokens} and batch_size {self.batch_size}; they need at least 0 and 1"
            )
        if self.padding not in (None, "left", "right"):
            raise ChoiceError(f"padding is {self.padding!r}; it must be left or right")
        if self.stack not in (None, "encoder", "decoder"):
            raise ChoiceError(f"stack is {self.stack!r}; it must be encoder or decoder")
        if self.prompt_lookup is not None and (self.prompt_lookup < 1 or self.batch_size != 1):
            raise ChoiceError("prompt lookup needs at least 1 token and a batch size of 1")
        if self.sample and self.temperature <= 0:
            raise ChoiceError(f"temperature is {self.temperature}; it must be above 0")


@dataclass(frozen=True, eq=False)
class Batch:
    """What one batch of prompts left behind, by stack."""

    traces: dict[str, Trace]
    checks: dict[str, SelfCheck]


def batches(
    model: Any, tokenizer: Any, prompts: Sequence[PromptText], options: Options = Options(), *, name: str | None = None
) -> Iterator[Batch]:
    """Record without a file: a Batch for every `batch_size` prompts.

    Raises: ModelError, ChoiceError.
    """
    torch = need("torch", "models")
    found = chosen_stacks(model, options)
    specs = {s.name: spec_of(model, s, name) for s in found}
    _check_options(model, options)
    captures = {s.name: Capture(s, weights=options.weights, hidden=options.hidden) for s in found}
    model.eval()
    for start in range(0, len(prompts), options.batch_size):
        texts = prompts[start : start + options.batch_size]
        fed = _Fed.of(model, tokenizer, texts, options)
        # keyed by the prompt, not by a running state, so that a resumed recording draws what a whole one would
        torch.manual_seed(int(hashlib.sha256(f"{options.seed} {texts[0].name}".encode()).hexdigest()[:8], 16))
        with torch.no_grad(), ExitStack() as entered:
            for capture in captures.values():
                entered.enter_context(capture)
            written = _run(model, tokenizer, fed, options)
        traces, checks = {}, {}
        for stack, capture in captures.items():
            rows, checks[stack] = capture.take()
            traces[stack] = _trace(rows, specs[stack], *fed.carried(stack, model, written), texts)
        yield Batch(traces, checks)


def chosen_stacks(model: Any, options: Options) -> tuple[Stack, ...]:
    """The stacks to record.

    Raises: ChoiceError for a stack that has no experts.
    """
    found = stacks(model)
    if options.stack is None:
        return found
    chosen = tuple(s for s in found if s.name == options.stack)
    if not chosen:
        there = " and ".join(s.name for s in found)
        raise ChoiceError(f"{type(model).__name__} has no mixture layers in its {options.stack}, only in its {there}")
    return chosen


def spec_of(model: Any, stack: Stack, name: str | None) -> MoESpec:
    """The shape of a stack, as a trace states it."""
    return MoESpec(
        model=name or getattr(model.config, "_name_or_path", "") or type(model).__name__,
        stack=stack.name,
        layer_ids=tuple(layer.layer_id for layer in stack.layers),
        num_experts=max(layer.num_experts for layer in stack.layers),
        top_k=max(layer.top_k for layer in stack.layers),
        expert_bytes=tuple(layer.expert_bytes for layer in stack.layers),
    )


# --- running ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Fed:
    """A batch as token ids: `ids` [B, S] filled up to one length, `mask` [B, S], and each prompt's own tokens."""

    own: list[list[int]]
    ids: Any
    mask: Any

    @classmethod
    def of(cls, model: Any, tokenizer: Any, texts: Sequence[PromptText], options: Options) -> "_Fed":
        torch = need("torch", "models")
        own = [_tokens(model, tokenizer, prompt, options) for prompt in texts]
        width, left = max(map(len, own)), padding_side(model, options) == "left"
        ids = torch.full((len(own), width), _pad_id(model, tokenizer), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(own):
            place = slice(width - len(tokens), width) if left else slice(0, len(tokens))
            ids[row, place], mask[row, place] = torch.tensor(tokens), 1
        return cls(own, ids.to(model.device), mask.to(model.device))

    def carried(self, stack: str, model: Any, written: list[list[int]]) -> tuple[list[list[int]], list[int]]:
        """Each sequence's tokens that a single run would have carried through a stack, and how many by prefill.

        The last token written is never fed, so it is not among them.
        """
        if not model.config.is_encoder_decoder:
            whole = [own + new for own, new in zip(self.own, written, strict=True)]
            return [t[: max(len(o), len(t) - 1)] for t, o in zip(whole, self.own, strict=True)], list(
                map(len, self.own)
            )
        if stack == "encoder":
            return self.own, list(map(len, self.own))
        return [tokens[: max(1, len(tokens) - 1)] for tokens in written], [1] * len(written)


def _run(model: Any, tokenizer: Any, fed: _Fed, options: Options) -> list[list[int]]:
    """Run a batch; the tokens written, each sequence up to its end (by a decoder with an encoder: its start first)."""
    double = model.config.is_encoder_decoder
    if options.max_new_tokens == 0 and not double:
        model(input_ids=fed.ids, attention_mask=fed.mask, position_ids=_positions(fed.mask), use_cache=False)
        return [[] for _ in fed.own]
    choice: dict[str, Any] = {"do_sample": False}
    if options.sample:
        choice = {"do_sample": True, "temperature": options.temperature, "top_k": 0, "top_p": 1.0}
    if options.prompt_lookup is not None:
        choice["prompt_lookup_num_tokens"] = options.prompt_lookup
    ids = model.generate(
        input_ids=fed.ids,
        attention_mask=fed.mask,
        max_new_tokens=max(1, options.max_new_tokens),
        num_beams=1,
        cache_implementation="dynamic",  # a static one hides the padding mask
        pad_token_id=_pad_id(model, tokenizer),
        return_dict_in_generate=False,
        **choice,
    )
    new = (ids if double else ids[:, fed.ids.shape[1] :]).tolist()
    ends = model.generation_config.eos_token_id
    return [_until(row, {ends} if isinstance(ends, int) else set(ends or ()), start=int(double)) for row in new]


def _positions(mask: Any) -> Any:
    return (mask.cumsum(-1) - 1).clamp(min=0)


def _until(tokens: list[int], ends: set[int], start: int) -> list[int]:
    """The tokens up to the first that ends the text, with it; a batch goes on feeding padding after it."""
    for place in range(start, len(tokens)):
        if tokens[place] in ends:
            return tokens[: place + 1]
    return tokens


def _tokens(model: Any, tokenizer: Any, prompt: PromptText, options: Options) -> list[int]:
    tokens: list[int] = list(tokenizer(prompt.text)["input_ids"])[: options.max_prompt_tokens]
    if not tokens:
        raise ChoiceError(f"the prompt {prompt.name} has no tokens; remove it")
    config = model.config.get_text_config()
    room = getattr(config, "max_position_embeddings", None)
    written = 0 if model.config.is_encoder_decoder else options.max_new_tokens
    if isinstance(room, int) and len(tokens) + written > room:
        raise ChoiceError(
            f"the prompt {prompt.name} has {len(tokens)} tokens and {written} are to be written, but the model holds "
            f"{room}; cut prompts with --max-prompt-tokens {max(1, room - written)}"
        )
    if max(tokens) >= config.vocab_size:
        raise ModelError(f"the tokenizer names token {max(tokens)}, but the model knows {config.vocab_size}")
    return tokens


def _pad_id(model: Any, tokenizer: Any) -> int:
    """Any id does: padding is masked, and never recorded."""
    for value in (
        tokenizer.pad_token_id,
        getattr(model.config.get_text_config(), "pad_token_id", None),
        tokenizer.eos_token_id,
        0,
    ):
        if isinstance(value, int) and value >= 0:
            return value
    raise AssertionError("0 is an id")


def padding_side(model: Any, options: Options) -> str:
    """left or right."""
    return options.padding or ("right" if model.config.is_encoder_decoder else "left")


def _check_options(model: Any, options: Options) -> None:
    writes = options.max_new_tokens > 1 and not model.config.is_encoder_decoder
    if writes and padding_side(model, options) == "right" and options.batch_size > 1:
        raise ChoiceError("a decoder cannot write on after padding; use padding left, or max_new_tokens 0")
    # a recurrent state cannot be taken back when a guess is rejected
    stuck = model.config.is_encoder_decoder or getattr(model, "_is_stateful", False)
    if options.prompt_lookup is not None and stuck:
        raise ChoiceError(f"{type(model).__name__} cannot guess ahead from the prompt; leave --prompt-lookup out")


# --- from rows to a trace --------------------------------------------------------------------------------------------


def _trace(
    rows: Rows, spec: MoESpec, carried: list[list[int]], prefill: list[int], texts: Sequence[PromptText]
) -> Trace:
    """Each token once, as it ran last. Padding, rejected guesses and what a batch feeds after a text's end are out."""
    kept = _kept(rows, np.array([len(tokens) for tokens in carried]))
    token_id = rows.token_id[kept]
    expected = np.concatenate([np.asarray(tokens) for tokens in carried])
    if len(kept) != len(expected) or not np.array_equal(token_id, expected):
        raise ModelError(
            f"{spec.model} ran {len(kept)} tokens of {[p.name for p in texts]}, but {len(expected)} were expected in "
            "another order or number; its positions cannot be told"
        )
    _, step = np.unique(rows.step[kept], return_inverse=True)
    return Trace(
        spec=spec,
        sequence=rows.row[kept].astype(np.int32),
        position=rows.position[kept].astype(np.int32),
        step=step.astype(np.int32),
        token_id=token_id.astype(np.int32),
        experts=rows.experts[kept].astype(smallest_int(spec.num_experts - 1)),
        weights=None if rows.weights is None else narrowest_float(rows.weights[kept]),
        hidden=None if rows.hidden is None else _half(rows.hidden[kept], spec),
        residual=None if rows.residual is None else _narrow(rows.residual[kept]),
        prompts=tuple(Prompt(p.name, p.dataset, n) for p, n in zip(texts, prefill, strict=True)),
        provenance=Provenance(
            source=(spec.model,),
            format="recorded",
            notes=(NO_RESIDUAL,) if rows.hidden is not None and rows.residual is None else (),
        ),
    )


def _kept(rows: Rows, lengths: Int64) -> Int64:
    """The last row of each (sequence, position) that counts, ordered by them."""
    counts = np.flatnonzero(rows.real & (rows.position < lengths[rows.row]))
    key = rows.row[counts] * (int(rows.position.max(initial=0)) + 1) + rows.position[counts]
    _, last = np.unique(key[::-1], return_index=True)
    kept: Int64 = counts[len(counts) - 1 - last]
    return kept


def _narrow(residual: Any) -> Any:
    """float16, or float32 where a number is too large: some models' residual streams are."""
    with np.errstate(over="ignore"):
        half = residual.astype(np.float16)
    return half if np.isfinite(half).all() else residual.astype(np.float32)


def _half(hidden: Any, spec: MoESpec) -> Any:
    with np.errstate(over="ignore"):
        half = hidden.astype(np.float16)
    if not np.isfinite(half).all():
        raise ModelError(f"router inputs of {spec.model} do not fit float16; record it without --hidden")
    return half
