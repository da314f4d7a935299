"""Where each tensor of one expert lies in its slot. No bytes, no files."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, Self, final

from foregate.errors import need

PART_ALIGNMENT = 64  # bytes: a cache line, and what vector kernels like
SLOT_ALIGNMENT = 4096  # bytes: a page, and what O_DIRECT asks of a buffer
ITEM_BYTES = {  # torch's name of a type -> bytes of one number
    "float32": 4, "float16": 2, "bfloat16": 2, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
}  # fmt: skip


@final
@dataclass(frozen=True)
class Part:
    """One tensor of one expert.

    name    the parameter's name in the family's experts module, without the expert's own place in it: `gate_up_proj`,
            `down_proj_bias`; `wi.weight` where every expert is a module. Where several modules hold a layer's experts
            (JetMoE), the module's name in the block comes first: `input_linear.weight`
    shape   of one expert: the parameter's, without the expert axis
    dtype   torch's name: "bfloat16"
    offset  bytes from the slot's beginning
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor, without what pads it to the next one."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@final
@dataclass(frozen=True)
class Layout:
    """How one expert fills a slot: the same for every expert of a store.

    slot_bytes  a multiple of 4096; parts begin at multiples of 64
    """

    parts: tuple[Part, ...]
    slot_bytes: int

    @classmethod
    def of(cls, tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> Self:
        """Lay tensors, given as (name, shape, dtype), one behind the other in the order given."""
        parts, end = [], 0
        for name, shape, dtype in tensors:
            part = Part(name, tuple(shape), dtype, round_up(end, PART_ALIGNMENT))
            parts.append(part)
            end = part.offset + part.nbytes
        return cls(tuple(parts), round_up(end, SLOT_ALIGNMENT))

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert's tensors, without padding."""
        return sum(part.nbytes for part in self.parts)

    def __getitem__(self, name: str) -> Part:
        return next(part for part in self.parts if part.name == name)

    def tensors(self, buffer: Any) -> dict[str, Any]:
        """Every part as a torch tensor that shares the memory of `buffer` (torch uint8 [slot_bytes], any device)."""
        torch = need("torch", "models")
        return {
            part.name: buffer[part.offset : part.offset + part.nbytes].view(getattr(torch, part.dtype)).view(part.shape)
            for part in self.parts
        }


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below value."""
    return -(-value // multiple) * multiple
