"""What `predicted` eviction has learned of a model's habits, on disk, so that the next run need not start from nothing.

One .npz file: the arrays of `Habits` that outlive a sequence, and a JSON header with the shape they are for.
"""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from foregate.arrays import Bool, Int, Int32
from foregate.errors import ChoiceError, SourceError, StorageError
from foregate.memory.habits import Habits, forget_sequence, make_habits, remember

FORMAT = 1
HEADER = "foregate"
KEPT = ("uses", "passes", "total", "asked", "follows", "lately")


def watch(experts: Int, starts: Bool, num_experts: int) -> Habits:
    """The habits that tokens show, decoded one after another: experts [T, L, k], -1 = absent; starts [T] says which
    tokens are the first of their sequence.
    """
    assert experts.shape[0] == len(starts), f"{len(starts)} starts of {experts.shape[0]} tokens"
    habits = make_habits(experts.shape[1], num_experts)
    _watch(habits, np.ascontiguousarray(experts, dtype=np.int32), np.asarray(starts, dtype=np.bool_))
    return habits


@njit(cache=True)  # type: ignore[untyped-decorator]
def _watch(habits: Habits, experts: Int32, starts: Bool) -> None:
    for token in range(len(experts)):
        if starts[token]:
            forget_sequence(habits)
        for layer in range(experts.shape[1]):
            routed = experts[token, layer][experts[token, layer] >= 0]
            if len(routed) > 0:
                remember(habits, layer, routed)


def save(habits: Habits, path: Path) -> None:
    """Write what outlives a sequence: whole, or not at all.

    Raises: StorageError where the disk refuses.
    """
    layers, experts = habits.uses.shape
    header = json.dumps({"format": FORMAT, "layers": layers, "experts": experts})
    arrays: dict[str, Any] = {HEADER: np.frombuffer(header.encode(), np.uint8)}
    arrays.update({name: getattr(habits, name) for name in KEPT})
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}; nothing was left behind") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, num_layers: int, num_experts: int) -> Habits:
    """Habits of a model of this shape.

    Raises: SourceError for anything that `save` did not write, ChoiceError for a model of another shape.
    """
    habits = make_habits(num_layers, num_experts)
    try:
        with np.load(path, allow_pickle=False) as file:
            header = json.loads(file[HEADER].tobytes())
            shape = (header["layers"], header["experts"])
            version = header["format"]
            arrays = {name: file[name] for name in KEPT}
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist; save what predicted eviction has learned there first") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} is not what predicted eviction has learned ({error}); make it again") from error
    if version != FORMAT:
        raise SourceError(f"{path} has format {version}; this foregate reads format {FORMAT}")
    if shape != (num_layers, num_experts):
        raise ChoiceError(
            f"{path} is of a model of {shape[0]} layers x {shape[1]} experts; this one has {num_layers} x {num_experts}"
        )
    for name, array in arrays.items():
        kept = getattr(habits, name)
        if array.shape != kept.shape or not np.isfinite(array).all() or (array < 0).any():
            raise SourceError(f"{path} is not what predicted eviction has learned ({name} is broken); make it again")
        kept[:] = array
    return habits
