"""A training run's state on disk: one file of tensors and plain values, which torch reads without running any code."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foregate.errors import ChoiceError, SourceError
from foregate.traces.storage import replacing

FORMAT = 1


def write_checkpoint(path: Path, about: Mapping[str, str], state: Mapping[str, Any]) -> None:
    """Write tensors and plain values: whole, or not at all; whatever stood there before goes."""
    import torch

    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "about": dict(about), "state": dict(state)}, buffer)
    with replacing(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def read_checkpoint(path: Path, about: Mapping[str, str], device: Any) -> dict[str, Any]:
    """The state, if it is of a run like this one; draws stay on the CPU, where torch wants them.

    Raises: SourceError for anything that `write_checkpoint` did not write, ChoiceError for another run's.
    """
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        written, its_about, state = content["format"], content["about"], content["state"]
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SourceError(f"{path} is not a checkpoint that foregate wrote ({reason}); remove it") from error
    if written != FORMAT:
        raise SourceError(f"{path} has checkpoint format {written}; this foregate reads format {FORMAT}")
    for key in {**its_about, **about}:
        if its_about.get(key) != about.get(key):
            raise ChoiceError(
                f"{path} is of another run ({key}: {_short(its_about.get(key))}, now {_short(about.get(key))}); "
                "give what it was started with, or remove it"
            )
    found: dict[str, Any] = state
    return found


def _short(value: str | None) -> str:
    text = "nothing" if value is None else value
    return text if len(text) <= 60 else f"{text[:57]}..."
