"""The inter-layer speculation transformer in torch, and its loss. Trained here, answered by `interlayer_answer`.

A row's cells are its context layers. They go through encoder layers whose attention reaches the row's own cells and
one memory vector for each earlier token in the window, made of that token's context sets and its set in the target
layer. Then the last layer asks all cells, what it hears meets the target layer's own table of experts, and a second
head says how likely the first guess is right.

Source: the speculation model of specMoE ("MoE Expert Speculation Model Architecture", 2025): embeddings, encoder,
cross-layer attention, two heads. Different here: an expert has an embedding in each layer, the target layer is known,
attention is causal over tokens, and the confidence head is trained against correctness.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from foregate.arrays import Float32
from foregate.predictors.interlayer.batches import SPAN, Grid

PLACES = 16  # embeddings of how much a row has seen, by powers of two


@dataclass(frozen=True)
class Sizes:
    """Of the network. `scales`: context lengths that are encoded side by side and then fused."""

    dim: int
    heads: int
    ff: int
    depth: int
    dropout: float
    scales: tuple[int, ...]

    @property
    def cells(self) -> list[tuple[int, int]]:
        """(scale, context layer counted from the earliest) of each cell of a row."""
        longest = max(self.scales)
        return [(i, c) for i, scale in enumerate(self.scales) for c in range(longest - scale, longest)]


def network(torch: Any, sizes: Sizes, grid: Grid, horizon: int, frequency: Float32) -> Any:
    """The module: batch -> (logits [B, SPAN, E], confidence logits [B, SPAN])."""
    nn, F = torch.nn, torch.nn.functional
    d, H = sizes.dim, sizes.heads
    W, S = grid.window, SPAN
    scale_of = torch.tensor([scale for scale, _ in sizes.cells])
    column_of = torch.tensor([column for _, column in sizes.cells])
    last_of = torch.tensor(
        [len(sizes.cells) - 1 - sizes.cells[::-1].index((i, max(sizes.scales) - 1)) for i in range(len(sizes.scales))]
    )
    apart = scale_of[:, None] != scale_of[None]  # cells of one scale do not see another's

    class Layer(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)
            self.query, self.own, self.memory = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, 2 * d)
            self.age = nn.Parameter(torch.zeros(H, W))
            self.join, self.up, self.down = nn.Linear(d, d), nn.Linear(d, sizes.ff), nn.Linear(sizes.ff, d)
            self.dropout = nn.Dropout(sizes.dropout)

        def forward(self, state: Any, memory: Any, hidden: Any) -> Any:
            """state [B, S, c, d], memory [B, M, d], hidden [B, S, M]: which memory a token must not see."""
            x = self.norm1(state)
            state = state + self.dropout(self.join(self.attend(self.query(x), self.own(x), memory, hidden)))
            return state + self.dropout(self.down(F.relu(self.up(self.norm2(state)))))

        def attend(self, query: Any, own: Any, memory: Any, hidden: Any) -> Any:
            B, _, c, _ = query.shape
            q = query.view(B, S, c, H, d // H).permute(0, 3, 1, 2, 4) / math.sqrt(d // H)  # [B, H, S, c, h]
            k, v = own.view(B, S, c, 2, H, d // H).permute(3, 0, 4, 1, 2, 5)
            scores = (q @ k.transpose(-1, -2)).masked_fill(apart, -math.inf)  # [B, H, S, c, c]
            if not W:
                return (scores.softmax(-1) @ v).permute(0, 2, 3, 1, 4).reshape(B, S, c, d)
            mk, mv = self.memory(memory).view(B, W + S, 2, H, d // H).permute(2, 0, 3, 1, 4)  # [B, H, M, h]
            far = (q.reshape(B, H, S * c, -1) @ mk.transpose(-1, -2)).view(B, H, S, c, W + S)
            far = far + _band(F, self.age, S)[None, :, :, None]
            far = far.masked_fill(hidden[:, None, :, None], -math.inf)
            share = torch.cat([scores, far], dim=-1).softmax(-1)
            near = share[..., :c] @ v
            heard = near + (share[..., c:].reshape(B, H, S * c, -1) @ mv).view(B, H, S, c, -1)
            return heard.permute(0, 2, 3, 1, 4).reshape(B, S, c, d)

    class Model(nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.expert = nn.EmbeddingBag(grid.rows, d, mode="sum")
            self.answer = nn.EmbeddingBag(grid.rows, d, mode="sum")
            self.layer, self.target = nn.Embedding(grid.layers + 1, d), nn.Embedding(grid.layers, d)
            self.distance, self.place = nn.Embedding(horizon + 1, d), nn.Embedding(PLACES, d)
            self.column, self.scale = nn.Embedding(grid.context, d), nn.Embedding(len(sizes.scales), d)
            for table in (self.expert, self.answer):
                nn.init.normal_(table.weight, std=1 / math.sqrt(grid.top_k))
            self.norm, self.past = nn.LayerNorm(d), nn.LayerNorm(d)
            self.encoder = nn.ModuleList([Layer() for _ in range(sizes.depth)])
            self.heard = nn.LayerNorm(d)
            self.ask, self.told = nn.Linear(d, d), nn.Linear(d, 2 * d)
            self.fuse, self.last = nn.Linear(d, 1), nn.LayerNorm(d)
            self.head = nn.Linear(d, d)
            self.guess = nn.Parameter(torch.randn(grid.layers, grid.experts, d) * 0.02)
            self.bias = nn.Parameter(torch.log(torch.from_numpy(frequency)))
            self.sure = nn.Linear(d, 1)
            self.dropout = nn.Dropout(sizes.dropout)

        def forward(self, batch: Any) -> Any:
            B, M, C, k = batch["cells"].shape
            shares = batch["cell_shares"].reshape(-1, k)
            sets = self.expert(batch["cells"].view(-1, k), per_sample_weights=shares).view(B, M, C, d)
            goals = self.answer(
                batch["targets"].view(-1, k), per_sample_weights=batch["target_shares"].reshape(-1, k)
            ).view(B, M, d)
            memory = self.past(sets.sum(dim=2) + goals)
            own = sets[:, W:]
            if "blend" in batch:
                blend, other = batch["blend"][:, None, None, None], batch["partner"][:, :, None, None]
                own = blend * own + (1 - blend) * own.gather(1, other.expand(B, S, C, d))
            asked = self.target(batch["target"]) + self.distance(batch["target"] - batch["layer"])
            layers = batch["layer"][:, None] + 1 - torch.arange(C - 1, -1, -1, device=own.device)
            own = own + (self.layer(layers.clamp(min=0)) + self.column.weight)[:, None]
            place = torch.log2(1 + batch["seen"].float()).long().clamp(max=PLACES - 1)
            own = own + self.place(place)[:, :, None] + asked[:, None, None]
            cells = own[:, :, column_of.to(own.device)] + self.scale(scale_of.to(own.device))
            state = self.dropout(self.norm(cells))
            hidden = _hidden(torch, batch["there"], W, S)
            for layer in self.encoder:
                state = layer(state, memory, hidden)
            found = self.conclude(self.heard(state), state, asked)
            logits = torch.einsum("bsd,bed->bse", self.head(found), self.guess[batch["target"]])
            return logits + self.bias[batch["target"]][:, None], self.sure(found.detach()).squeeze(-1)

        def conclude(self, heard: Any, state: Any, asked: Any) -> Any:
            """Each scale's last layer asks its cells [B, S, c, d]; what they answer is fused -> [B, S, d]."""
            B, _, c, _ = state.shape
            last, n = last_of.to(state.device), len(sizes.scales)
            q = self.ask(heard[:, :, last] + asked[:, None, None]).view(B, S, n, H, d // H).permute(0, 1, 3, 2, 4)
            k, v = self.told(heard).view(B, S, c, 2, H, d // H).permute(3, 0, 1, 4, 2, 5)
            scores = (q @ k.transpose(-1, -2) / math.sqrt(d // H)).masked_fill(apart.to(state.device)[last], -math.inf)
            said = (scores.softmax(-1) @ v).transpose(2, 3).reshape(B, S, n, d) + state[:, :, last]
            share = self.fuse(said).softmax(dim=2)
            return self.last((share * said).sum(dim=2))

    return Model()


def loss(torch: Any, model: Any, batch: Any, smoothing: float) -> Any:
    """Cross entropy against the routed set, its experts alike, `smoothing` of it spread over all experts; and of the
    confidence head against whether the first guess is routed, which moves that head alone.
    """
    logits, sure = model(batch)
    logits, answers = logits.float(), batch["answers"]
    wanted = wanted_shares(torch, answers, logits.shape[-1])
    known = wanted.sum(dim=-1) > 0
    if "blend" in batch:
        blend, other = batch["blend"][:, None, None], batch["partner"][:, :, None]
        wanted = blend * wanted + (1 - blend) * wanted.gather(1, other.expand_as(wanted))
    wanted = (1 - smoothing) * wanted + smoothing / logits.shape[-1]
    surprise = -(wanted * torch.log_softmax(logits, dim=-1)).sum(dim=-1)
    right = (logits.argmax(dim=-1, keepdim=True) == answers).any(dim=-1).float()
    doubt = torch.nn.functional.binary_cross_entropy_with_logits(sure.float(), right, reduction="none")
    return ((surprise + doubt) * known).sum() / known.sum().clamp(min=1)


def wanted_shares(torch: Any, answers: Any, experts: int) -> Any:
    """[B, S, E] the routed set's share of one each; zeros where there is no answer."""
    present = (answers >= 0).float()
    share = present / present.sum(dim=-1, keepdim=True).clamp(min=1)
    return torch.zeros(*answers.shape[:2], experts, device=answers.device).scatter_add_(2, answers.clamp(min=0), share)


def _hidden(torch: Any, there: Any, window: int, span: int) -> Any:
    """[B, S, M] tokens that are not among the `window` before the asked one, or are not there."""
    asked = torch.arange(window, window + span, device=there.device)[:, None]
    token = torch.arange(window + span, device=there.device)[None]
    outside = (token >= asked) | (token < asked - window)
    return outside[None] | ~there[:, None]


def _band(F: Any, age: Any, span: int) -> Any:
    """[H, S, M] each head's liking [H, W] for tokens by age, where the window of each asked token is."""
    heads, window = age.shape
    rows = F.pad(age, (0, span + 1)).repeat(1, span)  # a row shorter by one than its stride moves right by one
    return rows[:, : span * (window + span)].view(heads, span, window + span)
