"""Where every tensor's bytes lie in the safetensors files of a checkpoint. Reads headers, never weights."""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

from foregate.errors import ModelError, SourceError, StorageError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
# The format's name of a type: torch's name, and bytes of one number. Source: safetensors' README.
TYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2), "I64": ("int64", 8),
    "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U64": ("uint64", 8), "U32": ("uint32", 4),
    "U16": ("uint16", 2), "U8": ("uint8", 1), "BOOL": ("bool", 1), "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1), "F8_E8M0": ("float8_e8m0fnu", 1),
}  # fmt: skip
LONGEST_HEADER = 100 << 20  # bytes, as the library itself allows


@final
@dataclass(frozen=True)
class Stored:
    """One tensor of a checkpoint: `nbytes` bytes of `file` from `offset` on, row-major; dtype is torch's name."""

    file: Path
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    dtype: str


def weight_files(folder: Path, named: str | None = None) -> list[Path]:
    """The safetensors files of a checkpoint; `named` is the one, or the index, that its config names.

    Raises: ModelError if there are none; SourceError if the index is damaged, or names a file that is not there.
    """
    index = folder / (named or INDEX)
    single = folder / (named or WEIGHTS)
    if single.suffix == ".safetensors" and single.is_file():
        return [single]
    if not index.is_file() or index.suffix != ".json":
        raise ModelError(f"{folder} has neither {WEIGHTS} nor {INDEX}; foregate reads experts from safetensors only")
    files = sorted(set(read_index(index).values()))
    if missing := [name for name in files if not (folder / name).is_file()]:
        raise SourceError(f"{index} names {missing[0]}, which is not there; download the checkpoint again")
    return [folder / name for name in files]


def read_headers(files: Sequence[Path]) -> dict[str, Stored]:
    """Every tensor of the files by its key. Raises: SourceError that names file and tensor; StorageError."""
    return {key: stored for file in files for key, stored in read_header(file).items()}


def read_header(file: Path) -> dict[str, Stored]:
    """Every tensor of one file by its key. Raises: SourceError that names file and tensor; StorageError."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8).ljust(8, b"\xff"))
            text = opened.read(length) if length <= min(size - 8, LONGEST_HEADER) else None
    except OSError as error:
        raise StorageError(f"cannot read {file}: {error.strerror}") from error
    if text is None:
        raise SourceError(f"{file} is no safetensors file, or was cut off: its header does not fit into {size} bytes")
    try:
        header = json.loads(text)
        entries = {key: entry for key, entry in header.items() if key != "__metadata__"}
    except (ValueError, AttributeError) as error:
        raise SourceError(f"{file} is no safetensors file: its header is not readable") from error
    return {key: _stored(file, size, 8 + length, key, entry) for key, entry in entries.items()}


def _stored(file: Path, size: int, start: int, key: str, entry: Any) -> Stored:
    try:
        begin, end = (int(value) for value in entry["data_offsets"])
        shape = tuple(int(value) for value in entry["shape"])
        dtype, item = TYPES.get(entry["dtype"], (str(entry["dtype"]), 0))
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{file}: the header's entry of {key} is not readable") from error
    if not 0 <= begin <= end or (item and end - begin != prod(shape) * item):
        raise SourceError(f"{file}: {key} is said to be {shape} of {dtype} in {end - begin} bytes, which cannot be")
    if start + end > size:
        raise SourceError(
            f"{file} was cut off: {key} ends at byte {start + end}, the file at {size}; download it again"
        )
    return Stored(file, start + begin, end - begin, shape, dtype)


def read_index(path: Path) -> dict[str, str]:
    """The file of every key. Raises: SourceError for a damaged index; StorageError."""
    try:
        where: dict[str, str] = json.loads(path.read_text())["weight_map"]
        if all(isinstance(name, str) and Path(name).name == name for name in where.values()):
            return where
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    raise SourceError(f"{path} is no index of safetensors files; download it again")
