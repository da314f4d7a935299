"""How one parameter of an expert is kept in a packed store: which tensors stand for it. No files.

How numbers are rounded is in quantise.py, how a rounded weight takes part in a product in weight.py.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, final

from foregate.errors import SourceError
from foregate.store.layout import ITEM_BYTES, Part
from foregate.store.quantise import (
    INT8_COLUMNS,
    Int4,
    Int8,
    cpu_packing,
    int4_group,
    int4_packing,
    pack_int4,
    round_int4,
    round_int8,
)
from foregate.store.weight import PackedWeight

Tensors = Mapping[str, Any]
SMALLEST = 16  # numbers of a row or a column below which a matrix stays as it is
SCALE = ".scale"


class Form(ABC):
    """A parameter of one expert: its name, shape and torch type in the model, and how it is kept.

    transposed  the family computes x @ w rather than x @ w.T, so that a row of the linear map is a column of w
    """

    kind: ClassVar[str]
    name: str
    shape: tuple[int, ...]
    dtype: str
    transposed: bool

    @abstractmethod
    def tensors(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Name, shape and type of what lies in the slot, as `Layout.of` takes it."""

    @abstractmethod
    def pack(self, weight: Any) -> dict[str, Any]:
        """These tensors, of a parameter."""

    @abstractmethod
    def view(self, tensors: Tensors) -> Any:
        """The parameter, of these tensors, which it shares the memory of."""

    @abstractmethod
    def computed(self) -> str:
        """In words, how a matrix product is had from it on this machine."""


@final
@dataclass(frozen=True)
class Plain(Form):
    """As it was, bit for bit."""

    kind: ClassVar[str] = "plain"
    name: str
    shape: tuple[int, ...]
    dtype: str
    transposed: bool = False

    def tensors(self) -> list[tuple[str, tuple[int, ...], str]]:
        """The parameter itself."""
        return [(self.name, self.shape, self.dtype)]

    def pack(self, weight: Any) -> dict[str, Any]:
        """The parameter itself."""
        return {self.name: weight}

    def view(self, tensors: Tensors) -> Any:
        """The parameter itself."""
        return tensors[self.name]

    def computed(self) -> str:
        """It is a plain tensor."""
        return f"{8 * ITEM_BYTES[self.dtype]}-bit"


@final
@dataclass(frozen=True)
class Int8Form(Form):
    """8 bits, and a scale per output channel."""

    kind: ClassVar[str] = "int8"
    name: str
    shape: tuple[int, ...]
    dtype: str
    transposed: bool = False

    @property
    def _rows(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape

    def tensors(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Numbers, then scales."""
        return [(self.name, self._rows, "int8"), (self.name + SCALE, self._rows[:1], "bfloat16")]

    def pack(self, weight: Any) -> dict[str, Any]:
        """Rounded."""
        numbers, scale = round_int8(weight.T if self.transposed else weight)
        return {self.name: numbers, self.name + SCALE: scale}

    def view(self, tensors: Tensors) -> PackedWeight:
        """What computes in 8 bits; the kernel is asked if it may load from there."""
        numbers = tensors[self.name]
        kernel = self._kernel and numbers.device.type == "cpu" and numbers.data_ptr() % INT8_COLUMNS == 0
        return PackedWeight(Int8(numbers, tensors[self.name + SCALE], kernel), self.dtype, self.transposed)

    def computed(self) -> str:
        """The kernel needs whole vectors."""
        return "int8, torch's kernel" if self._kernel else "int8, dequantised when used"

    @property
    def _kernel(self) -> bool:
        return self._rows[1] % INT8_COLUMNS == 0


@final
@dataclass(frozen=True)
class Int4Form(Form):
    """4 bits, and a scale per `group` numbers of a row; packing: see `pack_int4`."""

    kind: ClassVar[str] = "int4"
    name: str
    shape: tuple[int, ...]
    dtype: str
    group: int
    packing: str
    transposed: bool = False

    @property
    def _rows(self) -> tuple[int, ...]:
        return self.shape[::-1] if self.transposed else self.shape

    def tensors(self) -> list[tuple[str, tuple[int, ...], str]]:
        """Two numbers a byte, then scales with their zero points."""
        lines, columns = self._rows
        scales = (self.name + SCALE, (columns // self.group, lines, 2), "bfloat16")
        if self.packing == "cuda":
            return [(self.name, (lines // 8, columns // 128, 32, 4), "int32"), scales]
        return [(self.name, (lines, columns // 2), "uint8"), scales]

    def pack(self, weight: Any) -> dict[str, Any]:
        """Rounded and packed."""
        numbers, scales = round_int4((weight.T if self.transposed else weight).contiguous(), self.group)
        return {self.name: pack_int4(numbers, self.packing), self.name + SCALE: scales}

    def view(self, tensors: Tensors) -> PackedWeight:
        """What computes in 4 bits; the kernel is asked if it reads this packing here."""
        packed = tensors[self.name]
        kernel = self.packing == ("cuda" if packed.device.type == "cuda" else cpu_packing()) != "rows"
        return PackedWeight(Int4(packed, tensors[self.name + SCALE], self.packing, kernel), self.dtype, self.transposed)

    def computed(self) -> str:
        """The kernel needs its own packing."""
        here = self.packing in (cpu_packing(), "cuda") and self.packing != "rows"
        how = "torch's kernel" if here else "dequantised when used"
        if not here and self.packing != "rows":
            how += f" (packed for {self.packing}, which this machine is not)"
        return f"int4 in groups of {self.group}, {how}"


FORMS: dict[str, type[Form]] = {kind.kind: kind for kind in (Plain, Int8Form, Int4Form)}


def form_of(part: Part, *, bits: int, group: int, transposed: bool, device: str = "cpu") -> Form:
    """How a part of the original layout is kept: as it is, unless it is a matrix and `bits` are 8 or 4.

    A matrix that is small, or has an odd number of columns and would have 4 bits, also stays as it is.
    """
    if bits >= 16 or len(part.shape) != 2 or min(part.shape) < SMALLEST:
        return Plain(part.name, part.shape, part.dtype)
    if bits == 8:
        return Int8Form(part.name, part.shape, part.dtype, transposed)
    lines, columns = part.shape[::-1] if transposed else part.shape
    fitting = int4_group(columns, group)
    if fitting < SMALLEST or columns % 2:
        return Plain(part.name, part.shape, part.dtype)
    packing = int4_packing(lines, columns, fitting, device)
    return Int4Form(part.name, part.shape, part.dtype, fitting, packing, transposed)


def form_to_json(form: Form) -> dict[str, Any]:
    """As plain JSON values."""
    return {"kind": form.kind, **asdict(form)}  # type: ignore[call-overload]


def form_from_json(values: dict[str, Any]) -> Form:
    """The inverse of `form_to_json`. Raises: SourceError for values that are none."""
    try:
        fields = dict(values)
        kind = FORMS[fields.pop("kind")]
        return kind(**{**fields, "shape": tuple(int(n) for n in fields["shape"])})
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"{values!r} does not say how a weight is kept") from error
