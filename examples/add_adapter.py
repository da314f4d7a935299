"""An adapter of your own: experts that are handed a gate for each of them, zero where a token is not routed."""

import torch
from torch import nn
from transformers import PreTrainedModel

from foregate.adapters import ADAPTERS, Adapter


class SoftExperts(nn.Module):  # the family: found by its name, as `experts` beside a `router`
    def __init__(self, config):
        super().__init__()
        self.maps = nn.Parameter(torch.randn(8, config.hidden_size, config.hidden_size) / 8)  # [E, D, D]

    def forward(self, hidden, gates):  # [T, D], [T, E]
        return torch.einsum("td,te,edf->tf", hidden, gates, self.maps)


class SoftBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.top_k, self.experts = 2, SoftExperts(config)
        self.router = nn.Linear(config.hidden_size, 8)

    def forward(self, hidden):  # [B, S, D]
        flat = hidden.flatten(0, 1)
        best = self.router(flat).softmax(-1).topk(self.top_k)
        gates = torch.zeros(len(flat), 8).scatter(1, best.indices, best.values)
        return hidden + self.experts(flat, gates).view_as(hidden)


class SoftModel(PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(SoftBlock(config) for _ in range(3))

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=False):
        return nn.Sequential(self.embed, *self.layers)(input_ids)


def decided(router, values):  # what the experts were called with -> ids [T, k], weights [T, k]
    weights, ids = values[1].topk(2)
    return ids, weights


def again(block, output):  # what the router said when asked again -> ids [T, k]
    return output.topk(block.top_k).indices


ADAPTERS["SoftExperts"] = Adapter("soft", False, decided, again, note="weights are not scaled to sum to one")
