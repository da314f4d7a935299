"""A packed store: a folder of one aligned, checksummed block per expert, and an index. Reads; packing.py writes it.

STORE/index.json    what it is, what it was made of, how each weight is kept, a checksum per block
STORE/experts.bin   blocks of `slot_bytes`, experts of a layer one behind the other, then the next layer
"""

import json
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Self, final

import numpy as np

from foregate.errors import SourceError, StorageError, need
from foregate.store.base import Buffer, ExpertStore
from foregate.store.direct import DirectFile
from foregate.store.forms import Form, form_from_json, form_to_json
from foregate.store.layout import Layout

FORMAT = 1
INDEX, BLOCKS = "index.json", "experts.bin"
CHECKSUM = "xxh3_64"  # measured here 31 GB/s on one core; zlib.crc32 4.2, blake2b 0.9


@final
@dataclass(frozen=True)
class Index:
    """What a packed store says of itself.

    model, revision, fingerprint  of the checkpoint it was made of; see `source.fingerprint`
    bits                          of a number of its matrices
    group                         numbers that share a scale, as asked for; None but for 4 bits
    forms                         how each parameter is kept
    checksums                     of each block, 16 hexadecimal digits, [layers * experts]
    """

    model: str
    revision: str | None
    fingerprint: str
    layers: int
    experts: int
    bits: int
    group: int | None
    forms: tuple[Form, ...]
    checksums: tuple[str, ...] = ()

    @property
    def layout(self) -> Layout:
        """Of one block."""
        return Layout.of(tensor for form in self.forms for tensor in form.tensors())

    @property
    def ratio(self) -> float:
        """How many times smaller an expert is than in 16 bits: scales and biases included, not what pads a block."""
        return 2 * sum(prod(form.shape) for form in self.forms) / self.layout.expert_bytes

    @property
    def block_ratio(self) -> float:
        """The same of what lies on disk and is read: padding to a multiple of 4096 bytes included."""
        return 2 * sum(prod(form.shape) for form in self.forms) / self.layout.slot_bytes

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values, with what readers need not work out."""
        values = {name: getattr(self, name) for name in _FIELDS}
        layout = self.layout
        return {
            "format": FORMAT,
            **values,
            "forms": [form_to_json(form) for form in self.forms],
            "computed": {form.name: form.computed() for form in self.forms},
            "slot_bytes": layout.slot_bytes,
            "parts": [asdict(part) for part in layout.parts],
            "ratio": round(self.ratio, 4),
            "block_ratio": round(self.block_ratio, 4),
            "checksum": CHECKSUM,
            "checksums": list(self.checksums),
        }

    @classmethod
    def from_json(cls, values: Any, path: Path) -> Self:
        """The inverse of `to_json`. Raises: SourceError that names the file."""
        try:
            if values["format"] != FORMAT or values["checksum"] != CHECKSUM:
                raise SourceError(
                    f"{path} is a store of format {values['format']} with {values['checksum']}; this foregate reads "
                    f"format {FORMAT} with {CHECKSUM}; pack the model again"
                )
            fields = {name: values[name] for name in _FIELDS}
            forms = tuple(form_from_json(form) for form in values["forms"])
            index = cls(**fields, forms=forms, checksums=tuple(str(c) for c in values["checksums"]))
            told = index.layout.slot_bytes == values["slot_bytes"]
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise SourceError(f"{path} is no index of a packed store; pack the model again") from error
        if not told:
            raise SourceError(f"{path} contradicts itself about the size of a block; pack the model again")
        return index


_FIELDS = ("model", "revision", "fingerprint", "layers", "experts", "bits", "group")


@final
class PackedStore(ExpertStore):
    """What `foregate pack` made. `index` is what it says of itself.

    verify  "first" compares a block with its checksum the first time it is read, "always" every time

    Raises: StorageError if there is none; SourceError if it is damaged.
    """

    def __init__(self, path: str | Path, *, verify: str = "first") -> None:
        assert verify in ("first", "always"), f"verify is {verify!r}"
        self.path = Path(path)
        self.index = read_index(self.path)
        self.num_layers, self.num_experts = self.index.layers, self.index.experts
        self.layout, self.bits = self.index.layout, self.index.bits
        self._file = DirectFile(self.path / BLOCKS)
        wanted = self.num_layers * self.num_experts
        if len(self.index.checksums) != wanted or self._file.size != wanted * self.layout.slot_bytes:
            raise SourceError(f"{self.path} does not hold {wanted} experts whole; pack the model again")
        self._always = verify == "always"
        self._verified = np.zeros(wanted, np.bool_)

    @property
    def direct(self) -> bool:
        """Whether reads go past the page cache."""
        return self._file.direct

    def check_source(self, fingerprint: str, model: str) -> None:
        """Whether the store was made of this checkpoint; `model` is what its user calls it.

        Raises: SourceError if not.
        """
        if fingerprint != self.index.fingerprint:
            made = self.index.model + (f", revision {self.index.revision}" if self.index.revision else "")
            raise SourceError(
                f"{self.path} was packed from other weights than those of {model} (it says {made}); pack {model} again"
            )

    def read_into(self, layer: int, expert: int, buffer: Buffer) -> int:
        """One block; see ExpertStore."""
        at = layer * self.num_experts + expert
        read = self._file.read_into(at * self.layout.slot_bytes, buffer)
        if self._always or not self._verified[at] or self._file.changed:
            if checksum(buffer) != self.index.checksums[at]:
                raise SourceError(
                    f"{self.path / BLOCKS} is damaged: expert {expert} of mixture layer {layer} does not match its "
                    "checksum; pack the model again"
                )
            self._verified[at] = True
        return read

    def views(self, buffer: Any) -> dict[str, Any]:
        """Tensors for what was left as it was, `forms.PackedWeight` for the rest; all share the buffer's memory."""
        tensors = self.layout.tensors(buffer)
        return {form.name: form.view(tensors) for form in self.index.forms}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def checksum(block: Buffer) -> str:
    """Of a block, 16 hexadecimal digits; other threads run meanwhile."""
    digest: str = need("xxhash", "models").xxh3_64_hexdigest(block)
    return digest


def read_index(path: Path) -> Index:
    """A store's index. Raises: StorageError if there is no store; SourceError if the index is damaged."""
    file = path / INDEX
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(
            f"{path} is no packed store ({file.name}: {error.strerror}); make one with foregate pack"
        ) from error
    except ValueError as error:
        raise SourceError(f"{file} is no index of a packed store; pack the model again") from error
    return Index.from_json(values, file)
