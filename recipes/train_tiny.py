"""Trains `models/tiny`: a small Mixtral-architecture model, from scratch, on the Python standard library's own source.

Reads the running interpreter's standard library and nothing else: no network, no data set, no other weights.
The same interpreter on the same machine gives the same weights, resumed or not. It traces and scores nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import platform
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
BUILT_HERE = ("_sysconfigdata", "config-")  # files and folders that record how one interpreter was built
NUMBERS = ("<!-- numbers: written by recipes/train_tiny.py -->", "<!-- end of numbers -->")
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the weights, apart from the corpus and the machine."""

    layers: int = 8
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    experts: int = 16
    top_k: int = 2
    expert_hidden: int = 128
    vocabulary: int = 2048
    context: int = 256
    batch: int = 8
    steps: int = 2600
    warmup: int = 100
    horizon: int = 3900  # steps the cosine would take to reach the final rate
    descent: int = 400  # last steps, which go straight down to the final rate instead
    peak_rate: float = 3e-3
    final_rate: float = 1e-4
    decay: float = 0.1
    balance: float = 0.02  # weight of the balance loss
    seed: int = 20
    threads: int = 2


@dataclass(frozen=True)
class Corpus:
    """Source files by relative path, split by file."""

    train: dict[str, str]
    held_out: dict[str, str]

    def sha256(self) -> str:
        """Identify the text, its file names and its order."""
        digest = hashlib.sha256()
        for path, text in sorted({**self.train, **self.held_out}.items()):
            digest.update(f"{path}\0{text}\0".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Measured:
    """What one pass over some windows showed."""

    nats: float
    tokens: int
    loads: Tensor  # [L, E], share of choices; each row sums to 1
    repeats: Tensor  # [L], share of a token's experts that the token before it used too

    def entropy(self) -> Tensor:
        """Load entropy of each layer as a share of its maximum, log2(E)."""
        return -(self.loads * self.loads.clamp_min(1e-12).log()).sum(-1) / math.log(self.loads.shape[-1])


# --- corpus ---------------------------------------------------------------------------------------------------------


def is_held_out(path: str) -> bool:
    """Decide by the relative path alone, about one file in 25."""
    return int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) % 25 == 0


def wanted(path: Path) -> bool:
    """Say whether a path, relative to the standard library, is source worth learning."""
    return not SKIPPED_FOLDERS & set(path.parts) and not any(part.startswith(BUILT_HERE) for part in path.parts)


def read_corpus(root: Path | None = None) -> Corpus:
    """Read every wanted UTF-8 source file under root, in the order of their paths."""
    root = root or Path(sysconfig.get_path("stdlib"))
    corpus = Corpus({}, {})
    for path in sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py") if wanted(p.relative_to(root))):
        try:
            text = (root / path).read_bytes().decode("utf-8")
        except UnicodeDecodeError:
            continue
        (corpus.held_out if is_held_out(path) else corpus.train)[path] = text
    return corpus


def train_tokenizer(texts: list[str], vocabulary: int) -> Any:
    """Learn a byte-level BPE that puts one BOS before each prompt."""
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BOS, EOS, PAD], initial_alphabet=sorted(alphabet), show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = tokenizers.processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text, without BOS."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def stream(tokenizer: Any, texts: list[str]) -> Tensor:
    """All texts as one row of ids, each closed by EOS."""
    return torch.tensor([i for text in texts for i in [*encode(tokenizer, text), tokenizer.eos_token_id]])


def windows(tokenizer: Any, texts: list[str], context: int) -> Tensor:
    """Cut each text into pieces behind a BOS: every token is predicted once; -1 fills up. [N, context + 1]."""
    pieces = []
    for ids in (encode(tokenizer, text) for text in texts):
        for start in range(0, len(ids), context):
            piece = [tokenizer.bos_token_id, *ids[start : start + context]]
            pieces.append(piece + [-1] * (context + 1 - len(piece)))
    return torch.tensor(pieces)


def batch_at(ids: Tensor, recipe: Recipe, step: int, bos: int) -> Tensor:
    """The windows of one step, [B, context + 1]: epochs without replacement, a fresh shift and order in each."""
    per_epoch = (len(ids) - recipe.context) // (recipe.context * recipe.batch)
    epoch, place = divmod(step, per_epoch)
    generator = torch.Generator().manual_seed(recipe.seed * 1000 + epoch)
    shift = int(torch.randint(recipe.context, (1,), generator=generator))
    order = torch.randperm(per_epoch * recipe.batch, generator=generator)
    starts = order[place * recipe.batch : (place + 1) * recipe.batch] * recipe.context + shift
    pieces = ids[starts[:, None] + torch.arange(recipe.context)]
    return torch.cat([torch.full((recipe.batch, 1), bos), pieces], dim=1)


# --- model ----------------------------------------------------------------------------------------------------------


def new_model(recipe: Recipe) -> Any:
    """An untrained model; the seed decides its weights."""
    torch.manual_seed(recipe.seed)
    config = transformers.MixtralConfig(
        vocab_size=recipe.vocabulary,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.expert_hidden,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        num_local_experts=recipe.experts,
        num_experts_per_tok=recipe.top_k,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    model = transformers.MixtralForCausalLM(config)
    model.set_experts_implementation("grouped_mm")
    return model


def forward(model: Any, pieces: Tensor) -> tuple[Tensor, Tensor]:
    """Nats per token over the targets that are not -1, and router logits [L, B * T, E]."""
    inputs, targets = pieces[:, :-1].clamp_min(0), pieces[:, 1:]
    out = model.model(input_ids=inputs, output_router_logits=True, use_cache=False)
    logits = model.lm_head(out.last_hidden_state)
    return cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1), torch.stack(out.router_logits)


def balance_loss(router_logits: Tensor, top_k: int) -> Tensor:
    """Switch load balancing, each layer on its own, then averaged; 1 is even. Source: arXiv 2101.03961, eq. 4-6.

    The one in transformers pools the layers first, so single layers may collapse while the pool looks even.
    """
    experts = router_logits.shape[-1]
    shares = router_logits.softmax(-1)  # [L, N, E]
    chosen = one_hot(shares.topk(top_k).indices, experts).sum(-2)  # [L, N, E]
    per_layer = experts / top_k * (chosen.float().mean(1) * shares.mean(1)).sum(-1)
    return per_layer.mean()


def measure(model: Any, pieces: Tensor, batch: int = 16) -> Measured:
    """Score windows; padding counts for nothing."""
    top_k = model.config.num_experts_per_tok
    nats, tokens, chosen, repeats, pairs = 0.0, 0, torch.tensor(0), torch.tensor(0), 0
    for part in pieces.split(batch):
        with torch.no_grad():
            loss, router_logits = forward(model, part)
        real = part[:, 1:] >= 0  # [B, T]
        hot = one_hot(router_logits.topk(top_k).indices, router_logits.shape[-1]).sum(-2)
        hot = hot.unflatten(1, real.shape) * real[None, :, :, None]  # [L, B, T, E]
        chosen = chosen + hot.sum((1, 2))
        repeats = repeats + (hot[:, :, 1:] * hot[:, :, :-1]).sum((1, 2, 3))
        tokens, pairs = tokens + int(real.sum()), pairs + int(real[:, 1:].sum())
        nats += float(loss) * int(real.sum())
    return Measured(nats, tokens, chosen / chosen.sum(-1, keepdim=True), repeats / (pairs * top_k))


# --- training -------------------------------------------------------------------------------------------------------


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, part of a half cosine, and a straight line down to the final rate at the last step."""
    if step < recipe.warmup:
        return recipe.peak_rate * (step + 1) / recipe.warmup
    turn = math.pi * (min(step, recipe.steps - recipe.descent) - recipe.warmup) / (recipe.horizon - recipe.warmup)
    cosine = recipe.final_rate + (recipe.peak_rate - recipe.final_rate) * (1 + math.cos(turn)) / 2
    left = min(1.0, (recipe.steps - step) / recipe.descent)
    return recipe.final_rate + (cosine - recipe.final_rate) * left


def new_optimizer(model: Any, recipe: Recipe) -> Any:
    """AdamW; matrices decay, norms do not."""
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": recipe.decay},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.peak_rate, betas=(0.9, 0.95), fused=True)


def save_checkpoint(path: Path, model: Any, optimizer: Any, state: dict[str, Any]) -> None:
    """Put weights, moments and state in one file, replaced in one move."""
    tensors = {f"model.{name}": p.detach() for name, p in model.named_parameters()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path.with_suffix(".partial"), metadata={"state": json.dumps(state)})
    path.with_suffix(".partial").replace(path)


def checkpoint_state(path: Path) -> dict[str, Any]:
    """The state a checkpoint was saved with."""
    with safe_open(path, "pt") as file:
        state: dict[str, Any] = json.loads(file.metadata()["state"])
    return state


def load_checkpoint(path: Path, model: Any, optimizer: Any) -> None:
    """Put weights and moments back."""
    moments: dict[int, dict[str, Tensor]] = {}
    parameters = dict(model.named_parameters())
    for key, value in load_file(path).items():
        kind, _, name = key.partition(".")
        if kind == "model":
            parameters[name].data.copy_(value)
        else:
            index, _, name = name.partition(".")
            moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def take_step(model: Any, optimizer: Any, pieces: Tensor, recipe: Recipe, step: int) -> Tensor:
    """One update; returns nats per token and balance, [2]."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    nats, router_logits = forward(model, pieces)
    balance = balance_loss(router_logits, recipe.top_k)
    (nats + recipe.balance * balance).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack([nats.detach(), balance.detach()])


def train(
    recipe: Recipe, ids: Tensor, *, checkpoint: Path | None = None, resume: bool = False, every: int = 200
) -> tuple[Any, dict[str, Any]]:
    """Train from scratch or from a checkpoint of the same recipe; returns the model and {step, seconds, curve}."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(recipe.threads)
    model = new_model(recipe)
    optimizer = new_optimizer(model, recipe)
    state: dict[str, Any] = {"recipe": dataclasses.asdict(recipe), "step": 0, "seconds": 0.0, "curve": []}
    if resume and checkpoint is not None and checkpoint.exists():
        saved = checkpoint_state(checkpoint)
        if saved["recipe"] != state["recipe"]:
            raise SystemExit(f"{checkpoint} was made with other settings; delete it or give the same ones")
        state = saved
        load_checkpoint(checkpoint, model, optimizer)
    for point in learn(model, optimizer, recipe, ids, state=state, every=every):
        print(json.dumps(point), flush=True)
        if checkpoint is not None:
            save_checkpoint(checkpoint, model, optimizer, state)
    return model, state


def learn(
    model: Any, optimizer: Any, recipe: Recipe, ids: Tensor, *, state: dict[str, Any], every: int
) -> Iterator[dict[str, Any]]:
    """Take the remaining steps; after every few, bring the state up to date and yield a point of the curve."""
    sums, began, since = torch.zeros(2), time.perf_counter(), state["step"]
    for step in range(state["step"], recipe.steps):
        sums += take_step(model, optimizer, batch_at(ids, recipe, step, model.config.bos_token_id), recipe, step)
        done = step + 1
        if done % every == 0 or done == recipe.steps:
            now = time.perf_counter()
            nats, balance = (sums / (done - since)).tolist()
            speed = (done - since) * recipe.batch * recipe.context / (now - began)
            point = {"step": done, "nats": round(nats, 4), "balance": round(balance, 4), "tokens_per_s": round(speed)}
            state |= {"step": done, "seconds": state["seconds"] + now - began, "curve": [*state["curve"], point]}
            sums, began, since = torch.zeros(2), now, done
            yield point


# --- output ---------------------------------------------------------------------------------------------------------


def held_out_numbers(model: Any, tokenizer: Any, corpus: Corpus, context: int) -> dict[str, Any]:
    """Bits per character and routing of a model on the held-out files."""
    texts = list(corpus.held_out.values())
    plain = [text for path, text in corpus.held_out.items() if not path.startswith("encodings/")]
    seen = measure(model, windows(tokenizer, texts, context))
    entropy = seen.entropy()
    seen_plain = measure(model, windows(tokenizer, plain, context))
    return {
        "files": len(texts),
        "characters": sum(map(len, texts)),
        "tokens": seen.tokens,
        "bits_per_character": seen.nats / math.log(2) / sum(map(len, texts)),
        "bits_per_character_without_encodings": seen_plain.nats / math.log(2) / sum(map(len, plain)),
        "repeats": seen.repeats.tolist(),
        "loads": seen.loads.tolist(),
        "load_entropy": {"mean": float(entropy.mean()), "lowest": float(entropy.min()), "layers": entropy.tolist()},
        "paths": list(corpus.held_out),
    }


def versions() -> dict[str, str]:
    """What ran."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "platform": platform.platform(),
    }


def save_model(model: Any, tokenizer: Any, out: Path) -> str:
    """Write bfloat16 weights and the tokenizer; returns the sha256 of the weights."""
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])


def card_numbers(report: dict[str, Any]) -> str:
    """The measured part of the model card."""
    corpus, held_out, recipe = report["corpus"], report["held_out"], report["recipe"]
    entropy = held_out["load_entropy"]
    facts = {
        "Held-out bits per character": f"{held_out['bits_per_character']:.3f}",
        "- without the `encodings/` tables": f"{held_out['bits_per_character_without_encodings']:.3f}",
        "Load entropy: mean, lowest layer": f"{entropy['mean']:.1%}, {entropy['lowest']:.1%} of log2(E) bits",
        "Parameters": f"{report['parameters']:,}",
        "Training files, characters, tokens": "{files}, {characters:,}, {tokens:,}".format(**corpus),
        "Held-out files, characters, tokens": "{files}, {characters:,}, {tokens:,}".format(**held_out),
        "Steps, tokens seen, seed": f"{recipe['steps']:,}, {report['tokens_seen']:,}, {recipe['seed']}",
        "Wall time of training": f"{report['seconds'] / 60:.1f} min on {recipe['threads']} shared cores",
        "Versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
        "sha256 of the corpus": f"`{corpus['sha256']}`",
        "sha256 of `model.safetensors`": f"`{report['weights_sha256']}`",
    }
    layers = [
        [str(i), *(f"{share:.1%}" for share in (entropy["layers"][i], max(loads), min(loads), held_out["repeats"][i]))]
        for i, loads in enumerate(held_out["loads"])
    ]
    curve = [[str(p["step"]), f"{p['nats']:.3f}", f"{p['balance']:.3f}"] for p in report["curve"]]
    parts = [
        table(["measured", ""], [[name, value] for name, value in facts.items()]),
        table(["layer", "load entropy", "busiest expert", "idlest expert", "experts kept from token before"], layers),
        table(["step", "training nats per token since the row above", "balance loss"], curve),
    ]
    return "\n\n".join(parts)


def write_card(path: Path, numbers: str) -> None:
    """Put the numbers between their marks, and leave what people wrote around them as it is."""
    before, after = "", "\n"
    if path.exists():
        text = path.read_text(encoding="utf-8")
        before, _, rest = text.partition(NUMBERS[0])
        after = rest.partition(NUMBERS[1])[2]
    path.write_text(f"{before}{NUMBERS[0]}\n{numbers}\n{NUMBERS[1]}{after}", encoding="utf-8")


def run(recipe: Recipe, *, out: Path, checkpoint: Path, resume: bool) -> dict[str, Any]:
    """Corpus, tokenizer, training, saved files, and numbers measured on what was saved."""
    corpus = read_corpus()
    texts = list(corpus.train.values())
    tokenizer = train_tokenizer(texts, recipe.vocabulary)
    ids = stream(tokenizer, texts)
    model, state = train(recipe, ids, checkpoint=checkpoint, resume=resume)
    report = {
        "weights_sha256": save_model(model, tokenizer, out),
        "parameters": sum(p.numel() for p in model.parameters()),
        "tokens_seen": recipe.steps * recipe.batch * recipe.context,
        "versions": versions(),
        **state,
    }
    sizes = {"files": len(texts), "characters": sum(map(len, texts)), "tokens": len(ids)}
    report["corpus"] = {**sizes, "sha256": corpus.sha256()}
    saved = transformers.AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    report["held_out"] = held_out_numbers(saved, tokenizer, corpus, recipe.context)
    (out / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    write_card(out / "README.md", card_numbers(report))
    return report


def main() -> None:
    """Read the options and train."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=Recipe.steps, help="updates to make (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=Recipe.threads, help="part of the result (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "tiny", help="folder for the trained model")
    parser.add_argument(
        "--checkpoint", type=Path, default=ROOT / "build" / "train_tiny.safetensors", help="written every 200 steps"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint, if there is one")
    options = parser.parse_args()
    recipe = Recipe(steps=options.steps, threads=options.threads)
    report = run(recipe, out=options.out, checkpoint=options.checkpoint, resume=options.resume)
    held_out = report["held_out"]
    print(f"held-out bits per character  {held_out['bits_per_character']:.4f}")
    print(f"load entropy per layer       {' '.join(f'{share:.1%}' for share in held_out['load_entropy']['layers'])}")
    print(f"sha256 of model.safetensors  {report['weights_sha256']}")


if __name__ == "__main__":
    main()
