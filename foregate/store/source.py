"""Which weights a packed store was made of: a checkpoint's fingerprint, and a store that reads its experts."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from foregate.errors import ModelError, StorageError
from foregate.models import load
from foregate.store.base import ExpertStore
from foregate.store.checkpoint import CheckpointStore
from foregate.store.headers import Stored, read_headers, weight_files
from foregate.store.loaded import LoadedStore, transposed_parts
from foregate.store.skeleton import fetch_config, fetch_folder

SAMPLES = 256  # tensors of which some bytes are read
SAMPLE_BYTES = 4096


@final
@dataclass(frozen=True)
class Source:
    """Experts to be packed, and what is known of where they come from.

    revision    the hub's, if it says one
    transposed  parts that the family computes x @ w with
    note        what the user should be told, or empty
    """

    store: ExpertStore
    model: str
    revision: str | None
    fingerprint: str
    transposed: frozenset[str]
    note: str


def open_source(name: str, *, dtype: str = "auto", trust_remote_code: bool = False) -> Source:
    """The experts of a model: in place, or where that cannot be, from the model loaded whole.

    Raises: ModelError for a dense or quantised model, or one that cannot be had; SourceError; StorageError.
    """
    note = ""
    try:
        in_place = CheckpointStore(name, dtype=dtype, trust_remote_code=trust_remote_code)
    except ModelError as error:
        folder = fetch_folder(name)
        fetch_config(folder, name, trust_remote_code=trust_remote_code)  # a quantised one is refused as before
        model, _ = load(name, dtype=dtype, device="cpu", trust_remote_code=trust_remote_code)
        store: ExpertStore = LoadedStore(model, name)
        note = f"the whole model was loaded into memory, because {error}"
        tensors: Mapping[str, Stored] = read_headers(weight_files(folder))
    else:
        store, model, folder, tensors = in_place, in_place.model, in_place.folder, in_place.tensors
    found = re.search(r"/snapshots/([0-9a-f]{40})$", str(folder.absolute()))
    return Source(store, name, found[1] if found else None, fingerprint(tensors), transposed_parts(model), note)


def fingerprint(tensors: Mapping[str, Stored]) -> str:
    """Of a checkpoint's tensors: every key, shape and type, and 4 KiB out of the middle of 256 of them.

    The same however the checkpoint is cut into files and wherever it is; another for other weights, as training
    changes nearly all of them. It takes milliseconds, and is no proof against somebody who means to deceive.

    Raises: StorageError.
    """
    seen = hashlib.blake2b(digest_size=16)
    keys = sorted(tensors)
    for key in keys:
        seen.update(f"{key} {tensors[key].shape} {tensors[key].dtype}\n".encode())
    for key in keys[:: max(1, -(-len(keys) // SAMPLES))]:
        seen.update(_middle(tensors[key]))
    return seen.hexdigest()


def _middle(stored: Stored) -> bytes:
    length = min(SAMPLE_BYTES, stored.nbytes)
    try:
        with Path(stored.file).open("rb") as opened:
            return os.pread(opened.fileno(), length, stored.offset + (stored.nbytes - length) // 2)
    except OSError as error:
        raise StorageError(f"cannot read {stored.file}: {error.strerror}") from error
