"""Record a Hugging Face model's routing into a file that grows batch by batch. The running is batches.py's business."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from foregate.models import Stack
from foregate.spec import MoESpec
from foregate.traces.batches import Batch, Options, batches, chosen_stacks, padding_side, spec_of
from foregate.traces.prompts import PromptText
from foregate.traces.recording_file import RecordingFile, open_files
from foregate.traces.schema import Provenance

__all__ = ["Batch", "Options", "batches", "record"]

FLUSH_SECONDS = 2.0  # a part is a Parquet file; writing one per tiny batch would cost more than running the model


def record(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[PromptText],
    path: str | Path,
    options: Options = Options(),
    *,
    name: str | None = None,
    source: str = "python",
    resume: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] = lambda prompts, tokens: None,
) -> tuple[Path, ...]:
    """Record into `path`; a model with two stacks writes NAME.encoder.parquet and NAME.decoder.parquet beside it.

    name      what the trace calls the model
    source    where the prompts came from, for the record
    progress  called after each batch with the prompts done and the tokens carried by it

    Returns the files. Raises: ModelError, ChoiceError, StorageError.
    """
    found = chosen_stacks(model, options)
    files = {s.name: file for s, file in zip(found, _files(Path(path), found, options), strict=True)}
    texts = "\0".join(f"{p.name}\0{p.text}" for p in prompts)
    origin = {"prompts": source, "prompts_sha256": hashlib.sha256(texts.encode()).hexdigest()}
    growing = {
        s.name: RecordingFile(files[s.name], _provenance(model, s, spec_of(model, s, name), origin, options), overwrite)
        for s in found
    }
    done = open_files(list(growing.values()), prompts, resume)
    progress(done, 0)
    flushed = time.monotonic()
    try:
        for batch in batches(model, tokenizer, prompts[done:], options, name=name):
            for stack, trace in batch.traces.items():
                growing[stack].add(trace, batch.checks[stack])
            done += len(next(iter(batch.traces.values())).prompts)
            if time.monotonic() - flushed >= FLUSH_SECONDS:
                _flush(growing)
                flushed = time.monotonic()
            progress(done, sum(len(t) for t in batch.traces.values()))
    except KeyboardInterrupt:
        _flush(growing)  # whole batches that still wait are worth keeping
        raise
    _flush(growing)
    for file in growing.values():
        file.finish()
    return tuple(files.values())


def _flush(growing: dict[str, RecordingFile]) -> None:
    for file in growing.values():
        file.flush()


def _files(path: Path, found: tuple[Stack, ...], options: Options) -> list[Path]:
    if len(found) == 1:
        return [path]
    return [path.with_name(f"{path.name.removesuffix('.parquet')}.{stack.name}.parquet") for stack in found]


def _provenance(model: Any, stack: Stack, spec: MoESpec, prompts: dict[str, str], options: Options) -> Provenance:
    settings = {
        **{k: v for k, v in asdict(options).items() if k != "stack"},
        "stack": stack.name,
        "padding": padding_side(model, options),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": model.device.type,
        "experts_implementation": getattr(model.config, "_experts_implementation", None),
        **prompts,
    }
    return Provenance(
        source=(spec.model,),
        format="recorded",
        notes=stack.notes,
        versions={module: _version(module) for module in ("torch", "transformers", "foregate")},
        settings=settings,
    )


def _version(module: str) -> str:
    try:
        return version(module)
    except PackageNotFoundError:
        return "source"  # foregate run from a checkout that was never installed
