"""`foregate pack`: put a model's experts into a store that is read faster, and is smaller."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foregate.cli.options import Dtype, Model, TrustRemoteCode, written

if TYPE_CHECKING:
    from foregate.store.packed import Index
    from foregate.store.packing import Progress
    from foregate.store.perplexity import Change


def command(
    model: Model,
    output: Annotated[Path, typer.Option("--output", "-o", help="The store to make, a folder.")],
    *,
    bits: Annotated[int, typer.Option(help="16 (numbers unchanged), 8 or 4.")] = 16,
    group: Annotated[int, typer.Option(help="With --bits 4: numbers that share a scale (32, 64, 128, 256).")] = 128,
    target: Annotated[str, typer.Option("--for", help="Whose kernels compute with 4 bits: cpu or cuda.")] = "cpu",
    dtype: Dtype = "auto",
    perplexity: Annotated[
        str | None,
        typer.Option(help="Measure perplexity before and after on a text; names and files as record's --prompts."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="With --perplexity: only the first N texts.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a store that is there already.")] = False,
    json: Annotated[Path | None, written("what was made")] = None,
) -> None:
    """Pack a model's experts: one aligned, checksummed block each, as they are or in 8 or 4 bits.

    The original is read one expert at a time and stays as it is. A run that was interrupted goes on when the same
    command is given again.

    Example: foregate pack models/tiny -o tiny4 --bits 4
    """
    from foregate.cli.terminal import alone, warn, write_json
    from foregate.store.packing import check_target, pack, plan
    from foregate.store.source import open_source
    from foregate.traces.prompts import read_prompts

    check_target(output, overwrite=overwrite)
    texts = [p.text for p in read_prompts(perplexity, limit)] if perplexity else []
    source = open_source(model, dtype=dtype, trust_remote_code=trust_remote_code)
    if source.note:
        warn(source.note)
    index = plan(source, bits=bits, group=group, device=target)
    try:
        with _bar() as progress:
            index = pack(source, output, index, overwrite=overwrite, progress=progress)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {output}.part", file=sys.stderr)
        raise typer.Exit(130) from None
    finally:
        source.store.close()
    change = _perplexity(model, output, texts, trust_remote_code=trust_remote_code) if perplexity else None
    if json is not None:
        write_json(json, _as_json(index, output, change, perplexity))
    if not alone(json):
        _tell(index, output, change, perplexity)


@contextmanager
def _bar() -> Iterator["Progress"]:
    """The terminal's bar, told what is done rather than what was added."""
    from foregate.cli.terminal import progress_bar

    before = 0.0
    with progress_bar("packing") as advance:

        def progress(done: int, total: int) -> None:
            nonlocal before
            advance(f"{done}/{total} experts", done / total - before)
            before = done / total

        yield progress


def _perplexity(model: str, store: Path, texts: list[str], *, trust_remote_code: bool) -> "Change":
    from foregate.cli.terminal import chatter, progress_bar
    from foregate.models import load
    from foregate.store.packed import PackedStore
    from foregate.store.perplexity import perplexity_change

    with chatter().status(f"loading {model}"):
        loaded, tokenizer = load(model, dtype="float32", device="cpu", trust_remote_code=trust_remote_code)
    with progress_bar("perplexity") as advance:
        told = lambda share: advance("perplexity", share)  # noqa: E731
        return perplexity_change(loaded, tokenizer, PackedStore(store), texts, told)


def _as_json(index: "Index", path: Path, change: "Change | None", text: str | None) -> dict[str, Any]:
    values = index.to_json()
    told = ("model", "revision", "fingerprint", "layers", "experts", "bits", "group", "computed", "slot_bytes")
    size = index.layers * index.experts * index.layout.slot_bytes
    return {
        "store": str(path),
        "bytes": size,
        **{name: values[name] for name in (*told, "ratio", "block_ratio")},
        "perplexity": None if change is None else {"text": text, **asdict(change), "change": change.share},
    }


def _tell(index: "Index", path: Path, change: "Change | None", text: str | None) -> None:
    from foregate.cli.terminal import file_size

    size = index.layers * index.experts * index.layout.slot_bytes
    print(f"{path}: {file_size(size)}, {index.layers} mixture layers of {index.experts} experts")
    padded = f", {index.block_ratio:.2f} times with what pads blocks to 4096 bytes"
    told = padded if index.ratio - index.block_ratio > 0.01 else ""
    print(f"  an expert: {file_size(index.layout.expert_bytes)}, {index.ratio:.2f} times smaller than in 16 bits{told}")
    for form in index.forms:
        print(f"  {form.name}: {form.computed()}")
    if change is not None:
        print(
            f"  perplexity on {text}: {change.before:.4f} -> {change.after:.4f} ({change.share:+.2%}), "
            f"{change.tokens:,} tokens of {change.texts:,} texts (measured in float32)"
        )
