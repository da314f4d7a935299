"""Experts read in place from an ordinary Hugging Face checkpoint. Converts no file, and keeps no weight in memory."""

import threading
from pathlib import Path
from typing import Any, final

from foregate.errors import SourceError, need
from foregate.models import stacks
from foregate.store.base import Buffer, ExpertStore
from foregate.store.conversion import places
from foregate.store.direct import BOUNCE, DirectFile, aligned
from foregate.store.headers import read_headers, weight_files
from foregate.store.layout import ITEM_BYTES
from foregate.store.pieces import Piece, held_experts, layout_of, pieces_of
from foregate.store.skeleton import fetch_config, fetch_folder, skeleton

NEIGHBOURS = 64 << 10  # bytes between two pieces that cost less to read than a second request


@final
class CheckpointStore(ExpertStore):
    """One expert at a time out of a checkpoint's safetensors files, wherever its bytes are.

    name   a folder, or a model of the Hugging Face hub, which is downloaded first
    dtype  what the experts are in a slot: "auto" (as the config says), "float32", "float16" or "bfloat16"; where the
           checkpoint's is another, the numbers are converted while they are copied

    Besides what every store has:
    folder       where the checkpoint is
    model        the model on the meta device: all shapes, no weights
    tensors      every tensor of the checkpoint by its key
    expert_keys  those that hold experts; all others are dense weights
    direct       whether reads go past the page cache

    Raises: ModelError for a dense or quantised model, one that cannot be had, or whose experts cannot be read in place;
    SourceError for a damaged checkpoint, naming file and tensor; StorageError.
    """

    def __init__(self, name: str | Path, *, dtype: str = "auto", trust_remote_code: bool = False) -> None:
        self.folder = fetch_folder(str(name))
        config = fetch_config(self.folder, str(name), trust_remote_code=trust_remote_code)
        files = weight_files(self.folder, getattr(config, "transformers_weights", None))
        self.tensors = read_headers(files)
        self.model = skeleton(config, str(name), dtype, self.tensors, trust_remote_code=trust_remote_code)
        layers = [layer for stack in stacks(self.model, str(name)) for layer in stack.layers]
        held = held_experts(self.model, layers)
        self.num_layers = len(layers)
        self.num_experts, self.layout = layout_of(self.model, held, str(name))
        self.bits = 8 * max(ITEM_BYTES[part.dtype] for part in self.layout.parts)
        placed = places(self.model, held, self.tensors)
        self.expert_keys = frozenset(key for pairs in placed.values() for key, _ in pairs)
        self._pieces = pieces_of(
            held, placed, self.tensors, self.layout, num_experts=self.num_experts, folder=self.folder
        )
        changed = {p.offset: p.nbytes for pieces in self._pieces.values() for p in pieces if p.view is not None}
        self.beside = min(BOUNCE, self.layout.slot_bytes) + sum(changed.values())
        self._files = {file: DirectFile(file) for file in files}
        self.direct = all(file.direct for file in self._files.values())
        self._scratch = threading.local()

    def read_into(self, layer: int, expert: int, buffer: Buffer) -> int:
        """One expert from where it lies; see ExpertStore."""
        total = 0
        for run in _runs(self._pieces[layer, expert]):
            targets = [(piece.start, self._target(piece, buffer)) for piece in run]
            file = self._files[run[0].file]
            total += file.read_into(*targets[0]) if len(run) == 1 else file.scatter(targets)
            if file.changed:  # there is no checksum to tell by
                raise SourceError(f"{run[0].file} was written to while it was in use; load the model again")
            for piece, (_, target) in zip(run, targets, strict=True):
                if piece.view:
                    _reorder(piece, target, buffer)
        return total

    def views(self, buffer: Any) -> dict[str, Any]:
        """Tensors that share the buffer's memory."""
        return self.layout.tensors(buffer)

    def close(self) -> None:
        """Close the checkpoint's files."""
        for file in self._files.values():
            file.close()

    def _target(self, piece: Piece, buffer: Buffer) -> Buffer:
        """Where a piece is read to: its place in the slot, or the thread's own memory if it is still to be changed."""
        if piece.view is None:
            return buffer[piece.offset : piece.offset + piece.nbytes]
        own: dict[int, Buffer] = self._scratch.__dict__.setdefault("buffers", {})
        if len(own.get(piece.offset, b"")) < piece.nbytes:
            own[piece.offset] = aligned(piece.nbytes)
        return own[piece.offset][: piece.nbytes]


def _runs(pieces: tuple[Piece, ...]) -> list[list[Piece]]:
    """Pieces by file and place, neighbours together, to be read in one go."""
    runs: list[list[Piece]] = []
    for piece in pieces:
        last = runs[-1][-1] if runs else None
        if last and last.file == piece.file and piece.start - last.start - last.nbytes <= NEIGHBOURS:
            runs[-1].append(piece)
        else:
            runs.append([piece])
    return runs


def _reorder(piece: Piece, source: Buffer, buffer: Buffer) -> None:
    """Put a piece's numbers where they belong in the slot, in the slot's type."""
    torch = need("torch", "models")
    assert piece.view is not None
    sizes, strides, offset = piece.view
    part = piece.part
    whole = torch.from_numpy(buffer[part.offset : part.offset + part.nbytes]).view(getattr(torch, part.dtype))
    numbers = torch.from_numpy(source).view(getattr(torch, piece.dtype))
    whole.as_strided(sizes, strides, offset).copy_(numbers.view(sizes))
