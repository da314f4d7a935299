"""Predictors on disk: one .npz file with JSON for the constructor's values and plain arrays for the rest. No pickle.

A predictor that holds others (`members_`, a tuple) holds their files as arrays of bytes named "members_/0.npz" and on.
"""

import io
import json
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from foregate.components import describe
from foregate.errors import ChoiceError, SourceError
from foregate.predictors import PREDICTORS
from foregate.predictors.base import Predictor
from foregate.spec import MoESpec
from foregate.traces.storage import replacing

FORMAT = 1
HEADER = "foregate.json"
NESTED = ".npz"


def to_bytes(predictor: Predictor, spec: MoESpec | None = None) -> bytes:
    """A fitted predictor as the bytes of its file.

    spec  of the model it was fitted on, which the file then says
    """
    header = json.dumps(header_of(predictor, spec))
    arrays: dict[str, Any] = {HEADER: np.frombuffer(header.encode(), dtype=np.uint8)}
    for key, value in vars(predictor).items():
        if key.endswith("_") and isinstance(value, dict):
            arrays.update({f"{key}/{inner}": array for inner, array in value.items()})
        elif key.endswith("_") and isinstance(value, tuple):
            files = (np.frombuffer(to_bytes(member), dtype=np.uint8) for member in value)
            arrays.update({f"{key}/{i}{NESTED}": file for i, file in enumerate(files)})
        elif key.endswith("_"):
            arrays[key] = value
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def save(predictor: Predictor, path: Path, spec: MoESpec | None = None) -> None:
    """Write a fitted predictor: whole, or not at all.

    spec  of the model it was fitted on, so that `load` can refuse it for another
    """
    with replacing(path) as temporary:
        temporary.write_bytes(to_bytes(predictor, spec))


def load(path: Path, spec: MoESpec | None = None) -> Predictor:
    """Read a fitted predictor.

    spec  of the model that it will be asked about

    Raises: SourceError for anything that `save` did not write; ChoiceError if it was fitted on a model of another
    shape.
    """
    arrays, header = _read(path)
    try:
        predictor = _restored(arrays, header, str(path))
        model = _model(header)
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, error) from error
    if spec is not None and model is not None and _shape(model) != _shape(spec):
        raise ChoiceError(f"{path} was fitted on {_named(model)}; it cannot answer for {_named(spec)}")
    return predictor


def model_of(path: Path) -> MoESpec | None:
    """The model that a saved predictor was fitted on; None where its file does not say.

    Raises: SourceError for anything that `save` did not write.
    """
    try:
        return _model(_read(path)[1])
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, error) from error


def header_of(predictor: Predictor, spec: MoESpec | None = None) -> dict[str, Any]:
    """What a file says of its predictor, as JSON can hold it."""
    name = next(n for n, kind in PREDICTORS.items() if kind is type(predictor))
    model = None if spec is None else spec.to_json()
    return {"format": FORMAT, "predictor": name, "options": describe(predictor), "model": model}


def _read(source: Path | io.BytesIO, name: str = "") -> tuple[dict[str, Any], dict[str, Any]]:
    """The arrays of a file, and its header. Raises: SourceError."""
    try:
        with np.load(source, allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        header = json.loads(arrays.pop(HEADER).tobytes())
        version = header["format"]
    except FileNotFoundError:
        raise SourceError(f"{source} does not exist") from None
    except (OSError, ValueError, KeyError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise _broken(name or source, error) from error
    if version != FORMAT:
        raise SourceError(f"{name or source} has predictor format {version}; this foregate reads format {FORMAT}")
    return arrays, header


def _restored(arrays: dict[str, Any], header: dict[str, Any], name: str) -> Predictor:
    predictor = PREDICTORS[header["predictor"]](**header["options"])
    for key, array in arrays.items():
        learned, _, inner = key.partition("/")
        if inner.endswith(NESTED):
            member = _restored(*_read(io.BytesIO(array.tobytes()), name), name)
            setattr(predictor, learned, (*vars(predictor).get(learned, ()), member))
        elif inner:
            vars(predictor).setdefault(learned, {})[inner] = array
        else:
            setattr(predictor, learned, array)
    learned_here = [f.name for f in fields(predictor) if f.name.endswith("_")]  # type: ignore[arg-type]
    absent = [name for name in learned_here if name not in vars(predictor)]
    if absent:
        raise ValueError(f"it lacks {absent[0]}, which this version of {header['predictor']} learns")
    return predictor


def _broken(source: object, error: Exception) -> SourceError:
    why = "it is no .npz file" if "pickle" in str(error) else error  # numpy's advice on pickles is none to give
    return SourceError(f"{source} is not a predictor that foregate saved ({why}); fit it again")


def _model(header: dict[str, Any]) -> MoESpec | None:
    model = header.get("model")
    return None if model is None else MoESpec.from_json(model)


def _shape(spec: MoESpec) -> tuple[str, int, int, int]:
    return spec.stack, spec.num_layers, spec.num_experts, spec.top_k


def _named(spec: MoESpec) -> str:
    return f"{spec.model} ({spec.stack}, {spec.num_layers} layers x {spec.top_k} of {spec.num_experts})"
