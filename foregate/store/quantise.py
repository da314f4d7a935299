"""A weight matrix in 8 or 4 bits: rounding it, computing with it, getting it back. No files, no slots, no experts.

What computes straight from the rounded numbers are torch's kernels. On CPUs they are vectorised for bfloat16 alone
(measured on AVX-512, a [4096, 2048] matrix and one token: int4 takes 0.46 ms in bfloat16, 14 in float32, 15 in
float16), so packed matrices compute in bfloat16, and whoever hands them another type gets that one back.

Above some rows unpacking pays, because it is done once for all of them. Measured there on one core with a matrix of
[8192, 2048], in ms: int8 from 8 rows on (kernel 5.2, unpacked 5.2, 16 bits 3.8; at 32 rows 20.8, 9.6, 7.3), int4 from
128 on (50.8, 50.8, 21.8; at 256 101.8, 70.7, 41.4).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, final

from foregate.errors import need

INT8_ROWS, INT4_ROWS = 8, 128  # rows up to which the kernels are asked
UNPACKED = 1 << 20  # numbers of a matrix that are unpacked together: all at once takes 2 to 4 times as long
INT8_COLUMNS = 16  # the int8 kernel reads 16 numbers of a row at once, and past its end if they are fewer
INT4_LINES = 16  # the int4 kernel wants output channels in 16s
INT4_GROUPS = (256, 128, 64, 32)
INT4_SHARES = (1.0, 0.925, 0.85)
ALIGNMENT = 32  # bytes: the int8 kernel loads without asking whether it may
BLOCKS = {"avx512": 64, "avx2": 32}  # packing -> output channels whose numbers lie together; others are not for CPUs
AT_ONCE = 1 << 18  # numbers of a matrix that are rounded together
CUDA_TILES = 8  # inner tiles of the CUDA packing: columns in multiples of 16 * 8, lines of 8


class Matrix(ABC):
    """The rows of a linear map, [N, K], rounded: y = x @ rows.T. Group sizes and scales are along K."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """[N, K]."""

    @property
    @abstractmethod
    def device(self) -> Any:
        """Where the numbers are."""

    @abstractmethod
    def linear(self, x: Any) -> Any:
        """[M, K] bfloat16 -> [M, N] bfloat16. The same rows give the same numbers, whatever else was computed."""

    @abstractmethod
    def dense(self, dtype: Any) -> Any:
        """[N, K]: the numbers that the rounded ones stand for; exact in float32."""


@final
@dataclass(frozen=True, eq=False)
class Int8(Matrix):
    """numbers int8 [N, K], scale bfloat16 [N]: one per output channel. kernel: whether torch's may be asked."""

    numbers: Any
    scale: Any
    kernel: bool

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K]."""
        return int(self.numbers.shape[0]), int(self.numbers.shape[1])

    @property
    def device(self) -> Any:
        """Where the numbers are."""
        return self.numbers.device

    def linear(self, x: Any) -> Any:
        """By the kernel for a few rows; for many, numbers become bfloat16 exactly and the scale comes last."""
        torch = need("torch", "models")
        if self.kernel and len(x) <= INT8_ROWS:
            return torch._weight_int8pack_mm(_aligned(x), self.numbers, self.scale)
        linear = torch.nn.functional.linear
        parts = [linear(x, lines.to(x.dtype)) for lines in self.numbers.split(_at_once(self.shape[1]))]
        return torch.cat(parts, dim=1) * self.scale

    def dense(self, dtype: Any) -> Any:
        """Numbers times scales."""
        return self.numbers.to(dtype) * self.scale.to(dtype)[:, None]


@final
@dataclass(frozen=True, eq=False)
class Int4(Matrix):
    """packed: see `pack_int4`; scales bfloat16 [K / group, N, 2], each with a zero point, which here is 0."""

    packed: Any
    scales: Any
    packing: str
    kernel: bool

    @property
    def shape(self) -> tuple[int, int]:
        """[N, K]."""
        lines = int(self.scales.shape[1])
        return lines, self.packed.numel() * self.packed.element_size() * 2 // lines

    @property
    def device(self) -> Any:
        """Where the numbers are."""
        return self.packed.device

    @property
    def group(self) -> int:
        """Numbers of a row that share a scale."""
        return self.shape[1] // int(self.scales.shape[0])

    def linear(self, x: Any) -> Any:
        """By the kernel, unless there are many rows."""
        torch = need("torch", "models")
        if self.packing == "cuda" and self.kernel:
            return torch._weight_int4pack_mm(x, self.packed, self.group, self.scales)
        if self.kernel and len(x) <= INT4_ROWS:
            return torch._weight_int4pack_mm_for_cpu(x, self.packed, self.group, self.scales)
        linear = torch.nn.functional.linear
        return torch.cat([linear(x, lines) for lines in self._lines(x.dtype)], dim=1)

    def dense(self, dtype: Any) -> Any:
        """Numbers from -8 to 7 times their group's scale."""
        torch = need("torch", "models")
        if self.packing == "cuda":  # only its kernel knows how it lies; exact, as every sum has one term
            eye = torch.eye(self.shape[1], dtype=torch.bfloat16, device=self.device)
            return self.linear(eye).T.to(dtype)
        return torch.cat(list(self._lines(dtype)))

    def _lines(self, dtype: Any) -> Iterator[Any]:
        """The dense rows, some at a time."""
        lines, columns = self.shape
        flat, step = self.packed.view(-1), _at_once(columns)
        for start in range(0, lines, step):
            count = min(step, lines - start)
            part = flat[start * columns // 2 : (start + count) * columns // 2]
            numbers = unpack_int4(part, self.packing, count).to(dtype).view(count, -1, self.group)
            scale = self.scales[:, start : start + count, 0].T.to(dtype)
            yield (numbers.sub_(8) * scale[..., None]).view(count, columns)


def _at_once(columns: int) -> int:
    """Rows to unpack together: whole blocks of every packing."""
    return max(BLOCKS.values()) * max(1, UNPACKED // columns // max(BLOCKS.values()))


def round_int8(weight: Any) -> tuple[Any, Any]:
    """[N, K] -> int8 [N, K] and bfloat16 scale [N]: the largest of each row becomes 127 or -127.

    No number moves by more than half its row's scale.
    """
    torch = need("torch", "models")
    numbers, scales = zip(*(_round_int8(lines) for lines in _few_lines(weight)), strict=True)
    return torch.cat(numbers), torch.cat(scales)


def round_int4(weight: Any, group: int) -> tuple[Any, Any]:
    """[N, K] -> uint8 [N, K] of 0..15, which stand for -8..7, and bfloat16 scales [K / group, N, 2].

    Each group takes the scale of six that leaves the least sum of squares: one that makes its largest number 7 or -7,
    one that makes it -8 (a scale may be negative, so that all 16 steps are used; source: ggml's Q4_0), and both made
    7.5 and 15 % smaller, which cuts the largest off. So a group's error is never above that of plain rounding to -7..7.
    """
    torch = need("torch", "models")
    numbers, scales = zip(*(_round_int4(lines, group) for lines in _few_lines(weight)), strict=True)
    by_group = torch.cat(scales).T
    return torch.cat(numbers), torch.stack([by_group, torch.zeros_like(by_group)], dim=-1).contiguous()


def _few_lines(weight: Any) -> Any:
    """The rows, as many at a time as stay in the processor's cache: rounding is 4 to 7 times as fast."""
    return weight.split(max(1, AT_ONCE // weight.shape[1]))


def _round_int8(weight: Any) -> tuple[Any, Any]:
    torch = need("torch", "models")
    wide = weight.float()
    scale = (wide.abs().amax(dim=1) / 127).to(torch.bfloat16)
    return (wide / _steps(scale)[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def _round_int4(weight: Any, group: int) -> tuple[Any, Any]:
    """Numbers [n, K] and scales [n, K / group] of a few rows."""
    torch = need("torch", "models")
    wide = weight.float().view(len(weight), -1, group)
    largest = wide.gather(2, wide.abs().argmax(dim=2, keepdim=True))
    bases = (largest.abs() / 7, largest / -8)
    scales = torch.stack([base * share for share in INT4_SHARES for base in bases]).to(torch.bfloat16)
    errors = torch.stack([_error(wide, scale) for scale in scales])
    scale = scales.gather(0, errors.argmin(dim=0, keepdim=True))[0]
    numbers = (wide / _steps(scale)).round_().clamp_(-8, 7).add_(8)
    return numbers.to(torch.uint8).view(weight.shape), scale[..., 0]


def _error(wide: Any, scale: Any) -> Any:
    """The sum of squares [n, G, 1] by which groups [n, G, g] change when rounded by scales [n, G, 1]."""
    steps = _steps(scale)
    numbers = (wide / steps).round_().clamp_(-8, 7)
    return numbers.mul_(steps).sub_(wide).square_().sum(dim=2, keepdim=True)


def _steps(scale: Any) -> Any:
    """Scales to divide by: where all numbers are 0, so is the scale."""
    torch = need("torch", "models")
    return torch.where(scale == 0, 1, scale).float()


def int4_group(columns: int, wanted: int) -> int:
    """The largest group size up to `wanted` that divides a row: one that the kernels know, if any does."""
    known = (g for g in INT4_GROUPS if g <= wanted and columns % g == 0)
    return next(known, 0) or max(g for g in range(1, wanted + 1) if columns % g == 0)


@cache
def cpu_packing() -> str:
    """How this machine's int4 kernel wants its numbers: "avx512" or "avx2"; "rows" where foregate knows of none."""
    torch = need("torch", "models")
    capability = str(torch.backends.cpu.get_cpu_capability()).lower()
    return capability if capability in BLOCKS else "rows"


def int4_packing(lines: int, columns: int, group: int, device: str) -> str:
    """How a matrix [lines, columns] is packed for a device: "rows" where no kernel takes it."""
    if group not in INT4_GROUPS:
        return "rows"
    if device == "cuda":
        return "cuda" if lines % 8 == 0 and columns % (16 * CUDA_TILES) == 0 else "rows"
    return cpu_packing() if lines % INT4_LINES == 0 else "rows"


def pack_int4(numbers: Any, packing: str) -> Any:
    """uint8 [N, K] of 0..15 -> two to a byte, N * K / 2 bytes, in the order that a kernel reads.

    rows          [N, K / 2]: neighbours of a row share a byte, the first in the low half
    avx512, avx2  torch's: blocks of 64 or 32 output channels, in each [K, block / 2]: see `unpack_int4`
    cuda          torch's tiles, packed on the GPU
    """
    torch = need("torch", "models")
    if packing == "rows":
        return numbers[:, ::2] | numbers[:, 1::2] << 4
    if packing == "cuda":
        pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).cuda()
        return torch._convert_weight_to_int4pack(pairs, CUDA_TILES).cpu()
    assert packing == cpu_packing(), f"{packing} numbers are packed where {packing} kernels run"
    return torch._convert_weight_to_int4pack_for_cpu(numbers.to(torch.int32), 2)


def unpack_int4(packed: Any, packing: str, lines: int) -> Any:
    """The inverse of `pack_int4`, for CPU packings: uint8 [N, K] of 0..15, on any machine.

    A whole block of B output channels is [K, B / 2] bytes: channel j in the low, j + B / 2 in the high half of byte j.
    What is left at the end is one smaller block, where channels 2j and 2j + 1 share byte j.
    Source: pytorch, aten/src/ATen/native/cpu/int4mm_kernel.cpp.
    """
    torch = need("torch", "models")
    flat = packed.reshape(-1)
    columns = flat.numel() * 2 // lines
    if packing == "rows":
        return torch.stack([flat & 15, flat >> 4], dim=-1).view(lines, columns)
    block = BLOCKS[packing]
    whole = lines // block * block
    halves = flat[: whole * columns // 2].view(-1, columns, block // 2)
    numbers = torch.cat([halves & 15, halves >> 4], dim=2).transpose(1, 2).reshape(whole, columns)
    if whole == lines:
        return numbers
    pairs = flat[whole * columns // 2 :].view(columns, -1)
    rest = torch.stack([pairs & 15, pairs >> 4], dim=-1).view(columns, lines - whole)
    return torch.cat([numbers, rest.T])


def _aligned(x: Any) -> Any:
    """The same numbers where the kernel may load them 32 bytes at a time."""
    return x if x.data_ptr() % ALIGNMENT == 0 else x.clone()
