"""Writes a packed store: whole, or what an interrupted run had done of it. Reading is packed.py's.

While it grows, a store is STORE.part, with the blocks so far and a line for each; at the end it takes its name.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from foregate.errors import ChoiceError, SourceError, StorageError, need
from foregate.store.base import Buffer, ExpertStore
from foregate.store.direct import aligned
from foregate.store.forms import Form, Plain, form_of
from foregate.store.layout import Layout
from foregate.store.packed import BLOCKS, INDEX, Index, checksum
from foregate.store.quantise import INT4_GROUPS
from foregate.store.source import Source

BITS = (16, 8, 4)
GROUP = 128
DEVICES = ("cpu", "cuda")
PART, DONE = ".part", "done.jsonl"  # of `done`, the first line is the index without checksums, then one a line
Progress = Callable[[int, int], None]


def plan(source: Source, *, bits: int, group: int = GROUP, device: str = "cpu") -> Index:
    """What a store of these experts would be; nothing is written.

    bits    16 leaves every number as it is (a 32-bit checkpoint stays one of 32)
    group   numbers that share a scale, for 4 bits; where it does not divide a row, the next smaller one that does
    device  whose kernels are to compute with 4 bits; "cuda" needs a GPU also for packing, and was not tried on one

    Raises: ChoiceError for what there is not.
    """
    if bits not in BITS:
        raise ChoiceError(f"--bits is {bits}; it must be one of {', '.join(map(str, BITS))}")
    if group not in INT4_GROUPS:
        raise ChoiceError(f"--group is {group}; it must be one of {', '.join(map(str, sorted(INT4_GROUPS)))}")
    if device not in DEVICES:
        raise ChoiceError(f"--for is {device!r}; it must be {' or '.join(DEVICES)}")
    if device == "cuda" and not need("torch", "models").cuda.is_available():
        raise ChoiceError("--for cuda needs a GPU, which packs the numbers in its own order; there is none here")
    store = source.store
    forms = tuple(
        form_of(part, bits=bits, group=group, transposed=part.name in source.transposed, device=device)
        for part in store.layout.parts
    )
    return Index(
        source.model,
        source.revision,
        source.fingerprint,
        store.num_layers,
        store.num_experts,
        bits=store.bits if bits == 16 else bits,
        group=group if bits == 4 else None,
        forms=forms,
    )


def pack(
    source: Source, path: Path, index: Index, *, overwrite: bool = False, progress: Progress | None = None
) -> Index:
    """Write the store that `plan` gave, one expert in memory at a time, and return its index with checksums.

    What an interrupted run of the same plan left is taken up; what another plan left is thrown away. `progress` is told
    how many of how many experts are done.

    Raises: StorageError if there is something already, or the disk refuses, in which case nothing is left behind;
    SourceError for weights that are damaged or not finite.
    """
    check_target(path, overwrite=overwrite)
    part = path.with_name(path.name + PART)
    with _cleaning(part, path):
        done = _take_up(part, index)
        _check_space(part, index, len(done))
        with (part / BLOCKS).open("ab") as blocks, (part / DONE).open("a", encoding="utf-8") as lines:
            for block in _blocks(source.store, index, len(done)):
                blocks.write(block.data)
                blocks.flush()
                done.append(checksum(block))
                lines.write(done[-1] + "\n")
                lines.flush()
                if progress:
                    progress(len(done), index.layers * index.experts)
            _sync(blocks)
        finished = replace(index, checksums=tuple(done))
        with (part / INDEX).open("wb") as file:
            file.write(json.dumps(finished.to_json(), indent=1).encode())
            _sync(file)
        (part / DONE).unlink()
        _take_place(part, path)
    return finished


def check_target(path: Path, *, overwrite: bool) -> None:
    """Whether a store may be written there. Raises: StorageError if something is there that must not be replaced."""
    if not path.exists():
        return
    if not overwrite:
        raise StorageError(f"{path} is there already; pass --overwrite to replace it")
    if not (path / INDEX).is_file() or not (path / BLOCKS).is_file():
        raise StorageError(f"{path} is no packed store, so --overwrite does not replace it; choose another name")


def _blocks(store: ExpertStore, index: Index, start: int) -> Iterator[Buffer]:
    """Every expert's block from the `start`-th on; each is good until the next is asked for."""
    torch = need("torch", "models")
    given, layout = _empty(store.layout.slot_bytes), index.layout
    block = _empty(layout.slot_bytes)
    weights, slot = store.views(torch.from_numpy(given)), layout.tensors(torch.from_numpy(block))
    for at in range(start, index.layers * index.experts):
        layer, expert = divmod(at, index.experts)
        store.read_into(layer, expert, given)
        for form in index.forms:
            for name, tensor in _packed(form, weights[form.name], layer, expert).items():
                slot[name].copy_(tensor)
        yield block


def _empty(nbytes: int) -> Buffer:
    """A zeroed block: what pads its parts stays zero."""
    block = aligned(nbytes)
    block[:] = 0
    return block


def _packed(form: Form, weight: Any, layer: int, expert: int) -> dict[str, Any]:
    if not isinstance(form, Plain) and not bool(weight.isfinite().all()):
        raise SourceError(
            f"{form.name} of expert {expert} of mixture layer {layer} holds numbers that are not finite; "
            "only --bits 16 can keep them"
        )
    return form.pack(weight)


def _take_up(part: Path, index: Index) -> list[str]:
    """The checksums of the blocks that are there and whole, of the same plan; everything else is removed."""
    header = json.dumps(index.to_json())
    found = _finished(part, header, index.layout)
    if found is None:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        found = []
    with (part / BLOCKS).open("ab") as blocks:
        blocks.truncate(len(found) * index.layout.slot_bytes)
    (part / DONE).write_text("\n".join([header, *found]) + "\n", encoding="utf-8")
    return found


def _finished(part: Path, header: str, layout: Layout) -> list[str] | None:
    """Checksums of whole blocks, each read again, up to the first that is not; None if it is another plan's."""
    if not (part / DONE).is_file() or not (part / BLOCKS).is_file():
        return None
    first, *lines = (part / DONE).read_text(encoding="utf-8").splitlines() or [""]
    if first != header:
        return None
    block, whole = _empty(layout.slot_bytes), []
    with (part / BLOCKS).open("rb") as blocks:
        for line in lines:
            if blocks.readinto(block.data) != len(block) or checksum(block) != line:
                break
            whole.append(line)
    return whole


def _check_space(part: Path, index: Index, done: int) -> None:
    """Refuse what cannot fit before hours are spent on it."""
    wanted = (index.layers * index.experts - done) * index.layout.slot_bytes
    if wanted > (free := shutil.disk_usage(part).free):
        raise StorageError(
            f"the store needs {wanted / 1e9:.1f} GB more and {part.parent.absolute()} has {free / 1e9:.1f} GB left; "
            "nothing was written"
        )


@contextlib.contextmanager
def _cleaning(part: Path, path: Path) -> Iterator[None]:
    """Remove what was begun if it failed; an interruption (Ctrl-C, a kill) leaves it to be taken up."""
    try:
        yield
    except Exception as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise StorageError(f"cannot write {path}: {error.strerror or error}; nothing was left behind") from error
        raise


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _take_place(part: Path, path: Path) -> None:
    """The finished store takes its name; one that had it goes only then."""
    old = path.with_name(f"{path.name}.{os.getpid()}.old")
    if path.exists():
        path.rename(old)
    part.rename(path)
    shutil.rmtree(old, ignore_errors=True)
