"""Span corruption as in T5: runs of tokens hidden behind sentinels, for a decoder to write. Knows no model.

Source: arXiv 1910.10683, section 3.1.4, and the authors' `random_spans_noise_mask`.
"""

from __future__ import annotations

from typing import Any

import tokenizers
import torch
from torch import Tensor
from train_tiny import train_tokenizer

CORRUPTION = {"density": 0.15, "span": 3.0, "sentinels": 32}  # share of tokens hidden, mean length of a hidden run


def corrupted_sizes(length: int) -> tuple[int, int]:
    """Of so many tokens: how many are hidden, in how many runs."""
    hidden = min(max(round(length * CORRUPTION["density"]), 1), length - 1)
    return hidden, min(max(round(hidden / CORRUPTION["span"]), 1), length - hidden)


def hidden_runs(length: int, generator: torch.Generator) -> Tensor:
    """Draw which tokens are hidden, [N] bool: clean and hidden runs in turn, the first clean, the last hidden."""
    hidden, runs = corrupted_sizes(length)

    def lengths(total: int) -> Tensor:
        """Cut `total` into `runs` positive lengths, each way equally likely."""
        cuts = torch.randperm(total - 1, generator=generator)[: runs - 1].sort().values + 1
        return torch.cat([torch.tensor([0]), cuts, torch.tensor([total])]).diff()

    turns = torch.stack([lengths(length - hidden), lengths(hidden)], dim=1).flatten()
    return torch.arange(2 * runs).remainder(2).bool().repeat_interleave(turns)


def folded(ids: Tensor, hidden: Tensor, sentinel: int, eos: int) -> Tensor:
    """The ids that are not hidden, each hidden run one sentinel, EOS last. What the decoder writes is the same of
    ~hidden: the n-th clean run stands before the n-th hidden one, so both get the n-th sentinel.
    """
    starts = hidden & ~torch.cat([torch.tensor([False]), hidden[:-1]])
    marked = torch.where(starts, sentinel + starts.cumsum(0) - 1, ids)
    return torch.cat([marked[starts | ~hidden], torch.tensor([eos])])


def corrupt(pieces: Tensor, sentinel: int, eos: int, seed: int) -> tuple[Tensor, Tensor]:
    """What the encoder reads and what the decoder must write, of windows [B, N]; all rows of one length."""
    generator = torch.Generator().manual_seed(seed)
    masks = [hidden_runs(pieces.shape[1], generator) for _ in pieces]
    inputs = [folded(ids, mask, sentinel, eos) for ids, mask in zip(pieces, masks, strict=True)]
    targets = [folded(ids, ~mask, sentinel, eos) for ids, mask in zip(pieces, masks, strict=True)]
    return torch.stack(inputs), torch.stack(targets)


def sentinel_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """train_tiny's BPE with T5's sentinels as its last ids; it closes a text by EOS and opens it by nothing."""
    tokenizer = train_tokenizer(texts, vocabulary)
    names = [f"<extra_id_{i}>" for i in range(int(CORRUPTION["sentinels"]))]
    tokenizer.add_special_tokens({"extra_special_tokens": names})
    eos = [(tokenizer.eos_token, tokenizer.eos_token_id)]
    closing = tokenizers.processors.TemplateProcessing(single=f"$A {tokenizer.eos_token}", special_tokens=eos)
    tokenizer.backend_tokenizer.post_processor = closing
    return tokenizer
