"""Trains a small Switch Transformer, from scratch, on the text of `train_tiny.py`; its weights are not committed.

The shape of Switch-Base made thin: 12 + 12 layers, every second one sparse, 64 experts a sparse layer, top-1, span
corruption as in T5. Writes the model, its tokenizer, `training.json` and `held_out.jsonl` (corrupted held-out text, to
be recorded) into a folder. It traces nothing and predicts nothing. Source: arXiv 2101.03961, 1910.10683.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from span_corruption import CORRUPTION, corrupt, sentinel_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy, grouped_mm, one_hot
from train_tiny import (
    ROOT,
    Corpus,
    Recipe,
    balance_loss,
    batch_at,
    checkpoint_state,
    learning_rate,
    load_checkpoint,
    new_optimizer,
    read_corpus,
    save_checkpoint,
    stream,
    versions,
)

# The fields mean what they mean in train_tiny; layers are those of one stack, sparse and dense.
SWITCH = Recipe(
    layers=12,
    hidden=64,
    heads=4,
    experts=64,
    top_k=1,
    expert_hidden=96,
    context=128,
    batch=8,
    steps=1600,
    horizon=2400,
    descent=300,
    seed=21,
    threads=1,
)
CAPACITY = 32  # tokens of one sequence that an expert takes; the others are dropped
Z_LOSS = 1e-3  # weight of the squared log of the routers' normaliser. Source: arXiv 2202.08906
STACKS = ("encoder", "decoder")


@dataclass(frozen=True)
class Routed:
    """What one pass over some windows showed."""

    nats: float  # per target token
    targets: int
    loads: dict[str, Tensor]  # stack -> [L, E], share of what the experts took; each row sums to 1
    dropped: dict[str, list[float]]  # stack -> share of tokens that no expert took, by layer

    def entropy(self, stack: str) -> list[float]:
        """Load entropy of each layer as a share of its maximum, log2(E)."""
        loads = self.loads[stack]
        nats = -(loads * loads.clamp_min(1e-12).log()).sum(-1)
        return [value / math.log(loads.shape[-1]) for value in nats.tolist()]


# --- model ----------------------------------------------------------------------------------------------------------


def new_model(recipe: Recipe) -> Any:
    """An untrained model; the seed decides its weights."""
    torch.manual_seed(recipe.seed)
    config = transformers.SwitchTransformersConfig(
        vocab_size=recipe.vocabulary + int(CORRUPTION["sentinels"]),
        d_model=recipe.hidden,
        d_kv=recipe.hidden // recipe.heads,
        d_ff=recipe.expert_hidden,
        num_heads=recipe.heads,
        num_layers=recipe.layers,
        num_decoder_layers=recipe.layers,
        num_sparse_encoder_layers=recipe.layers // 2,
        num_sparse_decoder_layers=recipe.layers // 2,
        num_experts=recipe.experts,
        expert_capacity=CAPACITY,
        router_jitter_noise=0.0,
        dropout_rate=0.0,
        router_z_loss_coef=Z_LOSS,
        router_aux_loss_coef=recipe.balance,
        eos_token_id=1,
        pad_token_id=2,
        decoder_start_token_id=2,
    )
    model = transformers.SwitchTransformersForConditionalGeneration(config)
    for name, parameter in model.named_parameters():
        if name.endswith("router.classifier.weight"):
            # Logits of about 1, not sqrt(hidden): experts that win by 10 at the start are never left.
            torch.nn.init.normal_(parameter, std=recipe.hidden**-0.5)
    for module in model.modules():
        if hasattr(module, "expert_0"):
            module.forward = partial(grouped_experts, module)
    return model


def grouped_experts(experts: Any, hidden: Tensor, dispatch: Tensor, weights: Tensor) -> Tensor:
    """What SwitchTransformersExperts returns, twice as fast: all experts in one product instead of one by one.

    hidden [N, D], dispatch [N, 1, E] (all zero: dropped), weights [N, 1]
    """
    inner, outer = (torch.stack([getattr(e, name).weight for e in experts.values()]) for name in ("wi", "wo"))
    taken = dispatch[:, 0].sum(0)  # [E]
    places = torch.where(dispatch[:, 0].any(-1), dispatch[:, 0].argmax(-1), len(taken))
    order = places.argsort(stable=True)[: int(taken.sum())]  # dropped tokens sort last
    ends = taken.cumsum(0).to(torch.int32)
    out = grouped_mm(hidden[order], inner.transpose(1, 2), offs=ends).relu()
    out = grouped_mm(out, outer.transpose(1, 2), offs=ends) * weights[order]
    return torch.zeros_like(hidden).index_add(0, order, out)


def forward(model: Any, inputs: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Nats per target token, and router logits of each stack, [L, B, N, E]."""
    start = torch.full((len(targets), 1), model.config.decoder_start_token_id)
    shifted = torch.cat([start, targets[:, :-1]], dim=1)
    out = model(input_ids=inputs, decoder_input_ids=shifted, output_router_logits=True, use_cache=False)
    logits = {"encoder": torch.stack(out.encoder_router_logits), "decoder": torch.stack(out.decoder_router_logits)}
    return cross_entropy(out.logits.flatten(0, 1), targets.flatten()), logits


def routing_losses(logits: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Balance (1 is even), each layer on its own, and z-loss; averaged over the layers of both stacks.

    The ones in transformers pool the layers first, so single layers may collapse while the pool looks even.
    """
    flat = [stack.flatten(1, 2) for stack in logits.values()]  # [L, B * N, E]
    balance = torch.stack([balance_loss(stack, 1) for stack in flat]).mean()
    return balance, torch.stack([stack.logsumexp(-1).square().mean() for stack in flat]).mean()


def measure(model: Any, inputs: Tensor, targets: Tensor, batch: int = 16) -> Routed:
    """Score windows. A decoder that writes token by token drops nothing; here, as in training, it may."""
    nats, loads, rows = 0.0, {stack: torch.tensor(0) for stack in STACKS}, dict.fromkeys(STACKS, 0)
    for read, wanted in zip(inputs.split(batch), targets.split(batch), strict=True):
        with torch.no_grad():
            loss, logits = forward(model, read, wanted)
        nats += float(loss) * wanted.numel()
        for stack, values in logits.items():
            hot = one_hot(values.argmax(-1), values.shape[-1])  # [L, B, N, E]
            taken = hot * (hot.cumsum(2) <= model.config.expert_capacity)
            loads[stack], rows[stack] = loads[stack] + taken.sum((1, 2)), rows[stack] + values[0, ..., 0].numel()
    return Routed(
        nats=nats / targets.numel(),
        targets=targets.numel(),
        loads={stack: taken / taken.sum(-1, keepdim=True) for stack, taken in loads.items()},
        dropped={stack: (1 - taken.sum(-1) / rows[stack]).tolist() for stack, taken in loads.items()},
    )


# --- training -------------------------------------------------------------------------------------------------------


def take_step(model: Any, optimizer: Any, ids: Tensor, recipe: Recipe, step: int) -> Tensor:
    """One update; returns nats per target token, balance and z-loss, [3]."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    eos = model.config.eos_token_id
    pieces = batch_at(ids, recipe, step, eos)[:, 1:]  # T5 opens with no token
    nats, logits = forward(model, *corrupt(pieces, recipe.vocabulary, eos, recipe.seed * 1_000_000 + step))
    balance, z_loss = routing_losses(logits)
    (nats + recipe.balance * balance + Z_LOSS * z_loss).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack([nats.detach(), balance.detach(), z_loss.detach()])


def settings(recipe: Recipe) -> dict[str, Any]:
    """Everything that decides the weights, apart from the corpus and the machine."""
    return {**dataclasses.asdict(recipe), **CORRUPTION, "capacity": CAPACITY, "z_loss": Z_LOSS}


def train(
    recipe: Recipe, ids: Tensor, *, checkpoint: Path, resume: bool = False, every: int = 100
) -> tuple[Any, dict[str, Any]]:
    """Train from scratch or from a checkpoint of the same recipe; returns the model and {step, seconds, curve}."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(recipe.threads)
    model = new_model(recipe)
    optimizer = new_optimizer(model, recipe)
    state: dict[str, Any] = {"recipe": settings(recipe), "step": 0, "seconds": 0.0, "curve": []}
    if resume and checkpoint.exists():
        saved = checkpoint_state(checkpoint)
        if saved["recipe"] != state["recipe"]:
            raise SystemExit(f"{checkpoint} was made with other settings; delete it or give the same ones")
        state = saved
        load_checkpoint(checkpoint, model, optimizer)
    for point in learn(model, optimizer, recipe, ids, state=state, every=every):
        print(json.dumps(point), flush=True)
        save_checkpoint(checkpoint, model, optimizer, state)
    return model, state


def learn(
    model: Any, optimizer: Any, recipe: Recipe, ids: Tensor, *, state: dict[str, Any], every: int
) -> Iterator[dict[str, Any]]:
    """Take the remaining steps; after every few, bring the state up to date and yield a point of the curve."""
    sums, began, since = torch.zeros(3), time.perf_counter(), state["step"]
    for step in range(state["step"], recipe.steps):
        sums += take_step(model, optimizer, ids, recipe, step)
        done = step + 1
        if done % every == 0 or done == recipe.steps:
            seconds = state["seconds"] + time.perf_counter() - began
            nats, balance, z_loss = (round(value, 4) for value in (sums / (done - since)).tolist())
            point = {"step": done, "nats": nats, "balance": balance, "z_loss": z_loss, "seconds": round(seconds)}
            state |= {"step": done, "seconds": seconds, "curve": [*state["curve"], point]}
            sums, began, since = torch.zeros(3), time.perf_counter(), done
            yield point


# --- output ---------------------------------------------------------------------------------------------------------


def held_out_windows(tokenizer: Any, corpus: Corpus, context: int) -> tuple[list[str], Tensor]:
    """Whole windows of the held-out files in a drawn order, [N, context], and the file that each is from."""
    names, pieces = [], []
    for path, text in corpus.held_out.items():
        ids = stream(tokenizer, [text])
        whole = ids[: len(ids) // context * context].view(-1, context)
        names += [path] * len(whole)
        pieces.append(whole)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(0))
    return [names[i] for i in order.tolist()], torch.cat(pieces)[order]


def write_prompts(path: Path, tokenizer: Any, names: list[str], inputs: Tensor) -> None:
    """The corrupted windows as text, one JSON line each; EOS is the tokenizer's to add."""
    with path.open("w", encoding="utf-8") as file:
        for number, (name, ids) in enumerate(zip(names, inputs[:, :-1], strict=True)):
            line = {"name": f"{name}#{number}", "dataset": "held_out", "prompt": tokenizer.decode(ids)}
            file.write(json.dumps(line) + "\n")


def run(recipe: Recipe, *, out: Path, checkpoint: Path, resume: bool, every: int = 100) -> dict[str, Any]:
    """Corpus, tokenizer, training, saved files, and numbers measured on held-out files."""
    corpus = read_corpus()
    texts = list(corpus.train.values())
    tokenizer = sentinel_tokenizer(texts, recipe.vocabulary)
    ids = stream(tokenizer, texts)
    model, state = train(recipe, ids, checkpoint=checkpoint, resume=resume, every=every)
    names, pieces = held_out_windows(tokenizer, corpus, recipe.context)
    inputs, targets = corrupt(pieces, recipe.vocabulary, tokenizer.eos_token_id, recipe.seed)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    write_prompts(out / "held_out.jsonl", tokenizer, names, inputs)
    seen = measure(model.eval(), inputs, targets)
    report = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_seen": recipe.steps * recipe.batch * recipe.context,
        "corpus": {"files": len(texts), "tokens": len(ids), "sha256": corpus.sha256()},
        "held_out": {
            "windows": len(inputs),
            "nats": seen.nats,
            "targets": seen.targets,
            "load_entropy": {stack: seen.entropy(stack) for stack in STACKS},
            "busiest": {stack: seen.loads[stack].max(-1).values.tolist() for stack in STACKS},
            "dropped": seen.dropped,
        },
        "versions": versions(),
        **state,
    }
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for the trained model")
    parser.add_argument("--steps", type=int, default=SWITCH.steps, help="updates to make (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=SWITCH.threads, help="part of the result (default: %(default)s)")
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / "build" / "train_switch.safetensors", help="written every 100 steps"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    options = parser.parse_args()
    horizon = SWITCH.horizon * options.steps // SWITCH.steps  # the cosine stretches with the training
    recipe = dataclasses.replace(SWITCH, steps=options.steps, horizon=horizon, threads=options.threads)
    held_out = run(recipe, out=options.out, checkpoint=options.checkpoint, resume=options.resume)["held_out"]
    print(f"held-out nats per hidden token  {held_out['nats']:.4f}")
    for stack in STACKS:
        rows = (("load entropy", "load_entropy"), ("busiest expert", "busiest"), ("dropped tokens", "dropped"))
        for title, key in rows:
            print(f"{stack} {title:24}{' '.join(f'{share:6.1%}' for share in held_out[key][stack])}")


if __name__ == "__main__":
    main()
