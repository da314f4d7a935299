"""The networks of `gating`: each twice, as a torch module of all pairs that learns, and in numpy for one that answers.

A module takes hidden [B, L, D] and gates [B, L, context, E] and gives logits [C, B, E]; `forward` takes one pair's
weights, hidden [N, D] and gates [N, context, E] and gives the same logits [N, E].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from foregate.arrays import Float32
from foregate.errors import need
from foregate.predictors.hidden.heads import Pairs, dropped, uniform

ATTENTION_HEADS = 4


@dataclass(frozen=True)
class Shape:
    """Sizes: hidden D, experts E, context in layers, width of what is between; and the dropout there."""

    hidden: int
    experts: int
    context: int
    width: int
    dropout: float

    @property
    def groups(self) -> int:
        """About as many groups as each has members."""
        return max(1, round(math.sqrt(self.experts)))


class Network(ABC):
    """What maps hidden state and gates to logits."""

    @staticmethod
    @abstractmethod
    def module(shape: Shape, pairs: Pairs) -> Any:
        """All pairs' networks; every parameter begins with [C]."""

    @staticmethod
    @abstractmethod
    def forward(weights: dict[str, Float32], hidden: Float32, gates: Float32) -> Float32:
        """One pair's answer."""


@final
class Contextual(Network):
    """A hidden layer on everything side by side."""

    @staticmethod
    def module(shape: Shape, pairs: Pairs) -> Any:
        return _mlp(shape, pairs, groups=0)

    @staticmethod
    def forward(weights: dict[str, Float32], hidden: Float32, gates: Float32) -> Float32:
        return _inner(weights, hidden, gates) @ weights["out"] + weights["bias"]


@final
class Hierarchical(Network):
    """A hidden layer, then the logarithm of P(group) * P(expert | group)."""

    @staticmethod
    def module(shape: Shape, pairs: Pairs) -> Any:
        return _mlp(shape, pairs, groups=shape.groups)

    @staticmethod
    def forward(weights: dict[str, Float32], hidden: Float32, gates: Float32) -> Float32:
        inner = _inner(weights, hidden, gates)
        experts = inner @ weights["out"] + weights["bias"]
        groups = inner @ weights["group"] + weights["group_bias"]
        member = membership(experts.shape[1], groups.shape[1])
        top = experts.max(axis=1, keepdims=True)
        within = np.log(np.exp(experts - top) @ member.T + 1e-20) + top
        logits: Float32 = experts + (groups - within) @ member
        return logits


@final
class Attending(Network):
    """The hidden state asks, the embedded gates of each layer answer: one block of a transformer."""

    @staticmethod
    def module(shape: Shape, pairs: Pairs) -> Any:
        return _attention(shape, pairs)

    @staticmethod
    def forward(weights: dict[str, Float32], hidden: Float32, gates: Float32) -> Float32:
        token = hidden @ weights["token"] + weights["token_bias"]
        layers = gates @ weights["embed"] + weights["position"]
        query, keys, values = token @ weights["query"], layers @ weights["key"], layers @ weights["value"]
        N, S, W = keys.shape
        split = (N, S, ATTENTION_HEADS, W // ATTENTION_HEADS)
        scores = np.einsum("nhw,nshw->nhs", query.reshape(N, *split[2:]), keys.reshape(split)) * split[3] ** -0.5
        shares = np.exp(scores - scores.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        heard = np.einsum("nhs,nshw->nhw", shares, values.reshape(split)).reshape(N, W)
        inner = np.maximum((token + heard) @ weights["inner"] + weights["inner_bias"], 0)
        logits: Float32 = inner @ weights["out"] + weights["bias"]
        return logits


NETWORKS: dict[str, type[Network]] = {
    "contextual": Contextual,
    "transformer": Attending,
    "hierarchical": Hierarchical,
}


def membership(experts: int, groups: int) -> Float32:
    """[G, E] 1 where an expert is of a group: neighbouring ids, sizes as even as they go."""
    of = np.arange(experts) * groups // experts
    member: Float32 = (of[None] == np.arange(groups)[:, None]).astype(np.float32)
    return member


def _inner(weights: dict[str, Float32], hidden: Float32, gates: Float32) -> Float32:
    both = hidden @ weights["hidden"] + gates.reshape(len(gates), -1) @ weights["gates"]
    return np.maximum(both + weights["inner_bias"], 0)


def _mlp(shape: Shape, pairs: Pairs, groups: int) -> Any:
    torch = need("torch", "train")
    nn, C, W, E = torch.nn, len(pairs), shape.width, shape.experts
    layer = torch.from_numpy(pairs.layer)
    member = torch.from_numpy(membership(E, max(groups, 1)))

    class MLP(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.hidden = uniform(torch, C, shape.hidden, W)
            self.gates = uniform(torch, C, shape.context * E, W)
            self.inner_bias = nn.Parameter(torch.zeros(C, 1, W))
            self.out = uniform(torch, C, W, E)
            self.bias = nn.Parameter(torch.zeros(C, 1, E))
            if groups:
                self.group = uniform(torch, C, W, groups)
                self.group_bias = nn.Parameter(torch.zeros(C, 1, groups))

        def forward(self, hidden: Any, gates: Any) -> Any:
            hidden, gates = hidden.transpose(0, 1)[layer], gates.flatten(2).transpose(0, 1)[layer]
            inner = (torch.bmm(hidden, self.hidden) + torch.bmm(gates, self.gates) + self.inner_bias).relu()
            inner = dropped(torch, inner, shape.dropout, self.training)
            experts = torch.bmm(inner, self.out) + self.bias
            if not groups:
                return experts
            chosen = torch.bmm(inner, self.group) + self.group_bias
            of = member.to(experts.device)
            within = experts[:, :, None, :].masked_fill(of == 0, float("-inf")).logsumexp(dim=3)
            return experts + (chosen - within) @ of

    return MLP()


def _attention(shape: Shape, pairs: Pairs) -> Any:
    torch = need("torch", "train")
    nn, C, W, E, S = torch.nn, len(pairs), shape.width, shape.experts, shape.context
    layer = torch.from_numpy(pairs.layer)

    class Attention(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.token = uniform(torch, C, shape.hidden, W)
            self.token_bias = nn.Parameter(torch.zeros(C, 1, W))
            self.embed = uniform(torch, C, E, W)
            self.position = nn.Parameter(torch.randn(C, S, W) * 0.02)
            self.query, self.key, self.value = (uniform(torch, C, W, W) for _ in range(3))
            self.inner = uniform(torch, C, W, W)
            self.inner_bias = nn.Parameter(torch.zeros(C, 1, W))
            self.out = uniform(torch, C, W, E)
            self.bias = nn.Parameter(torch.zeros(C, 1, E))

        def forward(self, hidden: Any, gates: Any) -> Any:
            hidden, gates = hidden.transpose(0, 1)[layer], gates.transpose(0, 1)[layer]
            B = hidden.shape[1]
            token = torch.bmm(hidden, self.token) + self.token_bias
            layers = torch.bmm(gates.flatten(1, 2), self.embed).view(C, B, S, W) + self.position[:, None]
            split = (C, B, S, ATTENTION_HEADS, W // ATTENTION_HEADS)
            keys, values = (torch.bmm(layers.flatten(1, 2), m).view(split) for m in (self.key, self.value))
            query = torch.bmm(token, self.query).view(C, B, ATTENTION_HEADS, -1)
            shares = (torch.einsum("cbhw,cbshw->cbhs", query, keys) * split[4] ** -0.5).softmax(dim=3)
            heard = torch.einsum("cbhs,cbshw->cbhw", shares, values).flatten(2)
            inner = (torch.bmm(token + heard, self.inner) + self.inner_bias).relu()
            inner = dropped(torch, inner, shape.dropout, self.training)
            return torch.bmm(inner, self.out) + self.bias

    return Attention()
