"""A packed weight that stands in for a tensor where a model multiplies with it. Rounds nothing, holds no memory."""

from functools import cache
from typing import Any, Self, final

from foregate.errors import need
from foregate.store.quantise import Matrix


@final
class PackedWeight:
    """A 2-D weight in a slot that `torch.nn.functional.linear(x, w)`, `x @ w` and `x @ w.T` compute with as it is.

    Whatever else torch is asked to do with it is done on its `dense` copy. It computes in bfloat16; results have the
    type of x. Nothing is copied on the way: it reads the slot's memory whenever it is used.

    shape, dtype, device: as of the parameter it stands for
    """

    __slots__ = ("_matrix", "_transposed", "dtype", "shape")

    def __init__(self, matrix: Matrix, dtype: Any, transposed: bool) -> None:
        torch = need("torch", "models")
        self._matrix, self._transposed = matrix, transposed
        self.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.shape = torch.Size(matrix.shape[::-1] if transposed else matrix.shape)

    @property
    def T(self) -> Self:  # noqa: N802 - torch's name
        """The transpose, of the same memory."""
        return type(self)(self._matrix, self.dtype, not self._transposed)

    mT = T  # noqa: N815 - torch's name

    def t(self) -> Self:
        """The transpose."""
        return self.T

    def transpose(self, first: int, second: int) -> Self:
        """Of two dimensions, so there is one."""
        return self.T if first % 2 != second % 2 else self

    def to(self, dtype: Any) -> Self:
        """The same weight, said to be of another type: results have that of what it is multiplied with."""
        return type(self)(self._matrix, dtype, self._transposed)

    def float(self) -> Self:
        """As `to`."""
        return self.to(need("torch", "models").float32)

    @property
    def device(self) -> Any:
        """Where the slot is."""
        return self._matrix.device

    @property
    def ndim(self) -> int:
        """Always 2."""
        return 2

    def dim(self) -> int:
        """Always 2."""
        return 2

    def size(self, dim: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        """Numbers that it stands for."""
        return int(self.shape.numel())

    def dense(self, dtype: Any = None) -> Any:
        """A tensor of the same numbers; exact in float32."""
        rows = self._matrix.dense(dtype or self.dtype)
        return rows.T if self._transposed else rows

    def __rmatmul__(self, x: Any) -> Any:
        return _product(x, self)

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        linear, products = _functions()
        if function is linear:
            return _linear(*args, **kwargs)
        if function in products and len(args) == 2 and not kwargs and isinstance(args[1], cls):
            return _product(*args)
        plain = [a.dense() if isinstance(a, cls) else a for a in args]
        return function(*plain, **{k: a.dense() if isinstance(a, cls) else a for k, a in kwargs.items()})


@cache
def _functions() -> tuple[Any, frozenset[Any]]:
    """torch's linear, and its ways to spell x @ w."""
    torch = need("torch", "models")
    products = (torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.mm, torch.Tensor.__matmul__)
    return torch.nn.functional.linear, frozenset(products)


def _linear(input: Any, weight: Any, bias: Any = None) -> Any:  # noqa: A002 - torch's names
    if not isinstance(weight, PackedWeight):  # the packed weight is what is multiplied, or the bias
        dense = [a.dense() if isinstance(a, PackedWeight) else a for a in (input, weight, bias)]
        return need("torch", "models").nn.functional.linear(*dense)
    y = _product(input, weight.T)
    return y if bias is None else y + bias


def _product(x: Any, weight: PackedWeight) -> Any:
    """x [..., K] @ weight [K, N] -> [..., N], in the type of x."""
    torch = need("torch", "models")
    if x.shape[-1] != weight.shape[0]:
        raise RuntimeError(f"cannot multiply {tuple(x.shape)} by {tuple(weight.shape)}")
    if not weight._transposed:  # rounded along the other dimension: no kernel sums over this one
        return torch.matmul(x.to(torch.bfloat16), weight.dense(torch.bfloat16)).to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).to(torch.bfloat16).contiguous()
    if not len(rows):
        return x.new_zeros(*x.shape[:-1], weight.shape[1])
    return weight._matrix.linear(rows).to(x.dtype).view(*x.shape[:-1], weight.shape[1])
