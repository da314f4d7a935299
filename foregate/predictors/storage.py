"""Predictors on disk: one .npz file with JSON for the constructor's values and plain arrays for the rest. No pickle."""

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from foregate.components import describe
from foregate.errors import SourceError
from foregate.predictors import PREDICTORS
from foregate.predictors.base import Predictor
from foregate.traces.storage import replacing

FORMAT = 1
HEADER = "foregate.json"


def to_bytes(predictor: Predictor) -> bytes:
    """A fitted predictor as the bytes of its file."""
    name = next(n for n, kind in PREDICTORS.items() if kind is type(predictor))
    header = {"format": FORMAT, "predictor": name, "options": describe(predictor)}
    arrays: dict[str, Any] = {HEADER: np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)}
    for key, value in vars(predictor).items():
        if key.endswith("_") and isinstance(value, dict):
            arrays.update({f"{key}/{inner}": array for inner, array in value.items()})
        elif key.endswith("_"):
            arrays[key] = value
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def save(predictor: Predictor, path: Path) -> None:
    """Write a fitted predictor: whole, or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(predictor))


def load(path: Path) -> Predictor:
    """Read a fitted predictor.

    Raises: SourceError for anything that `save` did not write.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(arrays.pop(HEADER).tobytes())
        predictor = PREDICTORS[header["predictor"]](**header["options"])
    except FileNotFoundError:
        raise SourceError(f"{path} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{path} is not a predictor that foregate saved ({error}); fit it again") from error
    if header["format"] != FORMAT:
        raise SourceError(f"{path} has predictor format {header['format']}; this foregate reads format {FORMAT}")
    for key, array in arrays.items():
        name, _, inner = key.partition("/")
        if inner:
            vars(predictor).setdefault(name, {})[inner] = array
        else:
            setattr(predictor, name, array)
    return predictor
