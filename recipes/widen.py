"""Makes a mixture of experts n times wider that computes the same: trained routing at the sizes of real experts.

Hidden units of every expert are repeated, and with --hidden-times the whole residual stream; whatever sums over a
repeated axis is divided by the number of repeats, a power of two, so the division is exact. What the experts know is
not changed: nothing is trained here, and nothing about quality can be learned from the result.
"""

import argparse
import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from foregate.errors import ChoiceError, ForegateError, ModelError, StorageError

ROOT = Path(__file__).resolve().parent.parent
SHARD = 512 * 2**20  # bytes; also about what a run keeps in memory
TOKENIZER = ("tokenizer*", "special_tokens_map.json", "vocab.*", "merges.txt", "generation_config.json")

# What each axis of a tensor is: `i` hidden units of an expert, `h` the residual stream, `g` an expert's gate units and
# then its up units, `.` neither. Capitals are summed over where the tensor is used, so the weights shrink.
EXPERTS = {
    r"\.(experts\.\d+|shared_experts)\.(w1|w3|gate_proj|up_proj)\.weight": "iH",
    r"\.(experts\.\d+|shared_experts)\.(w2|down_proj)\.weight": "hI",
    r"\.experts\.gate_up_proj": ".gH",
    r"\.experts\.down_proj": ".hI",
}
AROUND = {
    r"embed_tokens\.weight": ".h",
    r"(input|post_attention)_layernorm\.weight": "h",
    r"model\.norm\.weight": "H",  # it is read by the head alone, which may be the embedding, and that cannot shrink
    r"lm_head\.weight": ".h",
    r"\.self_attn\.[qkv]_proj\.weight": ".H",
    r"\.self_attn\.([qkv]_proj\.bias|[qk]_norm\.weight)": ".",
    r"\.self_attn\.o_proj\.weight": "h.",
    r"\.(mlp|block_sparse_moe)\.(gate|shared_expert_gate)\.weight": ".H",
    r"\.(mlp|shared_expert)\.(gate_proj|up_proj)\.weight": ".H",
    r"\.(mlp|shared_expert)\.down_proj\.weight": "h.",
}


@dataclass(frozen=True)
class Widening:
    """How many times to repeat: the experts' hidden units (`units`) and the residual stream (`hidden`)."""

    units: int
    hidden: int = 1

    def __post_init__(self) -> None:
        for times in (self.units, self.hidden):
            if times < 1 or times & (times - 1):
                raise ChoiceError(f"cannot repeat {times} times; take a power of two, which divides exactly")

    def axes(self, name: str) -> str:
        """Letters for the axes of a checkpoint's tensor; empty: it stays as it is."""
        for pattern, letters in EXPERTS.items():
            if re.search(pattern + "$", name):
                return letters
        if ".experts." in name:
            raise ModelError(f"cannot widen {name}; experts with gate, up and down projections and no biases can be")
        if self.hidden == 1:
            return ""
        for pattern, letters in AROUND.items():
            if re.search(pattern + "$", name):
                return letters
        raise ModelError(f"cannot tell how {name} meets the residual stream; leave out --hidden-times")

    def shape(self, name: str, shape: list[int]) -> list[int]:
        """What a tensor of this shape becomes."""
        letters = self.axes(name)
        assert not letters or len(letters) == len(shape), f"{name} has the shape {shape}"
        return [size * self._times(letter) for size, letter in zip(shape, letters, strict=True)] if letters else shape

    def __call__(self, name: str, tensor: Tensor) -> Tensor:
        """The widened tensor."""
        for axis, letter in enumerate(self.axes(name)):
            halves = tensor.chunk(2, axis) if letter == "g" else (tensor,)
            times = self._times(letter)
            tensor = torch.cat([half for half in halves for _ in range(times)], axis)
            if letter.isupper():
                tensor /= times
        return tensor

    def _times(self, letter: str) -> int:
        return {"i": self.units, "g": self.units, "h": self.hidden, ".": 1}[letter.lower()]


@dataclass(frozen=True)
class Source:
    """A checkpoint: the files that hold each tensor, and the shapes of its experts."""

    folder: Path
    files: dict[str, Path]
    config: Any

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert: gate, up and down projection."""
        return int(3 * self.config.hidden_size * getattr(self.config, _units_key(self.config)))

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """Each tensor's name and its slice on disk, in the order of layers."""
        for file in dict.fromkeys(self.files.values()):
            with safe_open(file, "pt") as opened:
                names = [name for name, where in self.files.items() if where == file]
                yield from ((name, opened.get_slice(name)) for name in sorted(names, key=_by_number))


def open_source(name: str) -> Source:
    """The checkpoint in a folder.

    Raises: ModelError if the folder holds no safetensors checkpoint of a mixture of experts.
    """
    folder = Path(name)
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json; name the folder of a downloaded model")
    files: dict[str, Path] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            files |= dict.fromkeys(opened.keys(), file)
    if not any(re.search(pattern + "$", tensor) for pattern in EXPERTS for tensor in files):
        raise ModelError(
            f"{folder} holds no safetensors checkpoint with experts that widen knows; is it a dense model?"
        )
    source = Source(folder, files, transformers.AutoConfig.from_pretrained(folder))
    for key, tensor in source.tensors():
        if key.endswith(".experts.gate_up_proj") and tensor.get_shape()[2] != source.config.hidden_size:
            raise ModelError(f"{key} lies the other way round; widen reads [experts, units, hidden] only")
    return source


def _units_key(config: Any) -> str:
    names = ("moe_intermediate_size", "intermediate_size")
    return next(name for name in names if hasattr(config, name))


def _by_number(name: str) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def fitting(source: Source, hidden: int, megabytes: float, width: int) -> Widening:
    """The power of two that brings an expert nearest to so many megabytes (10^6), at so many bytes a parameter."""
    units = megabytes * 1e6 / (source.expert_parameters * hidden * width)
    return Widening(max(1, 2 ** round(math.log2(units))), hidden)


def new_config(source: Source, by: Widening, dtype: torch.dtype) -> dict[str, Any]:
    """The widened model's config.json: heads stay as they are."""
    config = source.config
    changed = {_units_key(config): getattr(config, _units_key(config)) * by.units, "dtype": str(dtype)[6:]}
    if by.hidden > 1:
        heads = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        changed |= {"head_dim": heads, "hidden_size": config.hidden_size * by.hidden}
    old = json.loads((source.folder / "config.json").read_text())
    return {**old, **changed}


def plan(source: Source, by: Widening, dtype: torch.dtype, shard: int = SHARD) -> list[list[str]]:
    """Names of the tensors of each shard; none is larger than `shard` bytes unless a single tensor is."""
    shards: list[list[str]] = [[]]
    room = shard
    for name, tensor in source.tensors():
        size = math.prod(by.shape(name, tensor.get_shape())) * dtype.itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = shard
        shards[-1].append(name)
        room -= size
    return shards


def widen(source: Source, out: Path, by: Widening, dtype: torch.dtype, shard: int = SHARD) -> int:
    """Write the widened model to a new folder, a shard in memory at a time; its bytes.

    Raises: StorageError if the folder exists or the disk has no room. Nothing half-written is left.
    """
    if out.exists():
        raise StorageError(f"{out} exists; remove it or name another folder")
    config, shards = new_config(source, by, dtype), plan(source, by, dtype, shard)
    _refuse_misfits(source, by, config)
    total: int = sum(math.prod(by.shape(name, t.get_shape())) * dtype.itemsize for name, t in source.tensors())
    out.parent.mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(out.parent).free) < total * 1.01:
        raise StorageError(
            f"{out} needs {total / 1e9:.1f} GB and the disk has {free / 1e9:.1f}; free some, or widen less"
        )
    temporary = out.with_name(out.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        where = _write_shards(source, temporary, by, dtype, shards)
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (temporary / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
        (temporary / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        for file in (file for pattern in TOKENIZER for file in source.folder.glob(pattern)):
            shutil.copy(file, temporary)
        (temporary / "README.md").write_text(card(source, by, dtype, config))
        temporary.replace(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return total


def _refuse_misfits(source: Source, by: Widening, config: dict[str, Any]) -> None:
    """Some families derive more from the hidden size than `new_config` can keep as it was."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(type(source.config).from_dict(config))
    wanted = model.state_dict()
    for name, tensor in source.tensors():
        if name in wanted and list(wanted[name].shape) != (shape := by.shape(name, tensor.get_shape())):
            raise ModelError(
                f"{name} would be {shape}, and a widened {config['model_type']} wants {list(wanted[name].shape)}; "
                "leave out --hidden-times"
            )


def _write_shards(
    source: Source, out: Path, by: Widening, dtype: torch.dtype, shards: list[list[str]]
) -> dict[str, str]:
    """The file that each tensor is in."""
    slices = source.tensors()
    where: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        held = {}
        for name in names:
            found, tensor = next(slices)
            assert found == name, f"{found} came where {name} was planned"
            held[name] = by(name, tensor[:].to(dtype, copy=True)).contiguous()
        save_file(held, out / file, metadata={"format": "pt"})
        where |= dict.fromkeys(names, file)
    return where


def card(source: Source, by: Widening, dtype: torch.dtype, config: dict[str, Any]) -> str:
    """The model's README."""
    megabytes = source.expert_parameters * by.units * by.hidden * dtype.itemsize / 1e6
    hidden, units = config["hidden_size"], config[_units_key(source.config)]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {source.folder.resolve().name}, widened

A benchmark's model: what `{source.folder.resolve().name}` computes, at the size of real experts. Every expert's hidden
units stand there {by.units} times and the residual stream {by.hidden} times; weights that sum over them are divided by
that number. One expert weighs {megabytes:.1f} MB: hidden size {hidden}, {units} units, {str(dtype)[6:]}.

It routes and writes as the original, up to rounding. It knows no more than the original, and its weights are redundant
on purpose: never judge compression or quality by it. Made by foregate's `recipes/widen.py`.
"""


# --- the check -------------------------------------------------------------------------------------------------------


def prompts(count: int) -> list[str]:
    """Texts that foregate ships."""
    lines = (ROOT / "foregate" / "data" / "demo_prompts.jsonl").read_text().splitlines()
    return [json.loads(line)["text"] for line in lines[:count]]


def greedy(folder: Path, texts: list[str], new: int, dtype: torch.dtype) -> list[list[int]]:
    """Ids that the model in the folder writes after each text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager")
    written = []
    for text in texts:
        ids = tokenizer(text, return_tensors="pt").input_ids
        with torch.no_grad():
            out = model.eval().generate(ids, max_new_tokens=new, do_sample=False, eos_token_id=None, pad_token_id=0)
        written.append(out[0, ids.shape[1] :].tolist())
    return written


def agreement(ours: list[list[int]], theirs: list[list[int]]) -> tuple[int, list[int]]:
    """How many texts were continued alike, and where the others parted (tokens in common)."""
    parted = [
        next((i for i, (a, b) in enumerate(zip(x, y, strict=True)) if a != b), -1)
        for x, y in zip(ours, theirs, strict=True)
    ]
    return parted.count(-1), [place for place in parted if place >= 0]


def main() -> None:
    """Widen, check, say what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(ROOT / "models" / "tiny"), help="a folder (models/tiny)")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder to make")
    parser.add_argument("--times", type=int, help="how often each expert's hidden units stand there; else --experts-mb")
    parser.add_argument("--experts-mb", type=float, default=50, help="size of an expert to come nearest to (50)")
    parser.add_argument("--hidden-times", type=int, default=8, help="how often the residual stream stands there (8)")
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    parser.add_argument(
        "--check", type=int, default=6, metavar="PROMPTS", help="compare greedy ids; loads the model (6)"
    )
    parser.add_argument("--new", type=int, default=48, metavar="TOKENS", help="tokens to write per prompt (48)")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    try:
        source = open_source(options.model)
        by = Widening(options.times, options.hidden_times) if options.times else None
        by = by or fitting(source, options.hidden_times, options.experts_mb, dtype.itemsize)
        total = widen(source, options.out, by, dtype)
    except ForegateError as error:
        parser.exit(2, f"{error}\n")
    megabytes = source.expert_parameters * by.units * by.hidden * dtype.itemsize / 1e6
    print(
        f"{options.out}: units x {by.units}, hidden x {by.hidden}; experts of {megabytes:.1f} MB, {total / 1e9:.2f} GB"
    )
    if options.check:
        texts = prompts(options.check)
        ids = [greedy(folder, texts, options.new, dtype) for folder in (source.folder, options.out)]
        alike, parted = agreement(*ids)
        print(f"{alike} of {len(texts)} prompts continued alike for {options.new} tokens in {options.dtype}", end="")
        print(f"; the others parted after {', '.join(map(str, parted))}" if parted else "")
        if parted and dtype == torch.float32:
            raise SystemExit("in float32 the ids have to be equal: this model was not widened rightly")


if __name__ == "__main__":
    main()
