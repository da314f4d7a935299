"""Which bytes of a checkpoint are which expert. Reads none of them."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, final

from foregate.errors import ModelError, SourceError
from foregate.models import MixtureLayer
from foregate.store.headers import Stored
from foregate.store.layout import ITEM_BYTES, Layout, Part

FLOATS = ("float32", "float16", "bfloat16")


@final
@dataclass(frozen=True)
class Held:
    """A parameter of the model that holds experts' weights.

    layer   mixture layer
    part    what it is called in an expert's layout
    expert  whose it is; None: all experts' are stacked in it
    shape   of one expert
    count   experts of the layer that have weights
    """

    layer: int
    part: str
    expert: int | None
    shape: tuple[int, ...]
    count: int

    def take(self, parameter: Any, expert: int) -> Any:
        """One expert's weights in the parameter: a view of it."""
        return parameter if self.expert is not None else parameter.view(-1, *self.shape)[expert]


@final
@dataclass(frozen=True)
class Piece:
    """Bytes of one checkpoint tensor that belong to one part of one expert.

    start   byte of the file
    dtype   of the bytes
    offset  byte of the slot where they go, or where the piece begins if they are still to be changed
    view    None where the bytes go into the slot as they are; else (sizes, strides, offset), in numbers of the part
    """

    file: Path
    start: int
    nbytes: int
    dtype: str
    part: Part
    offset: int
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None


def held_experts(model: Any, layers: Sequence[MixtureLayer]) -> dict[str, Held]:
    """Every parameter that holds experts' weights, by its full name; shared experts are dense and not among them.

    Raises: ModelError for a parameter beside them that is not divided among the experts.
    """
    names = {id(module): name for name, module in model.named_modules()}
    found = {}
    for index, layer in enumerate(layers):
        for module in layer.experts:
            base = names[id(module)]
            prefix = base.rpartition(".")[2] + "." if len(layer.experts) > 1 else ""
            for name, held in _held(module, index, prefix, layer.num_experts):
                found[f"{base}.{name}"] = held
    return found


def _held(module: Any, layer: int, prefix: str, num_experts: int) -> Iterator[tuple[str, Held]]:
    if hasattr(module, "keys"):  # a module per expert
        keys = [key for key in module.keys() if key.startswith("expert")]  # noqa: SIM118 - a ModuleDict, no dict
        for expert, key in enumerate(keys):
            for name, parameter in module[key].named_parameters():
                yield f"{key}.{name}", Held(layer, prefix + name, expert, tuple(parameter.shape), len(keys))
        return
    parameters = dict(module.named_parameters())
    # Fewer than routed ids in LongCat, whose last experts hand their input on and have no weights of use.
    count = min((int(p.shape[0]) for p in parameters.values() if p.dim() >= 3), default=num_experts)
    matrices = all(p.dim() == 2 for p in parameters.values())  # experts one below the other, as in DBRX
    for name, parameter in parameters.items():
        rows, rest = divmod(parameter.shape[0], count)
        if parameter.dim() < 3 and (rest or (rows > 1 and not matrices)):
            raise ModelError(f"foregate does not know which part of {type(module).__name__}'s {name} is which expert's")
        shape = tuple(parameter.shape[1:])
        yield name, Held(layer, prefix + name, None, (rows, *shape) if matrices and rows > 1 else shape, count)


def layout_of(model: Any, held: Mapping[str, Held], name: str) -> tuple[int, Layout]:
    """How many experts every layer has, and how one lies in a slot. Raises: ModelError if layers differ."""
    layers: dict[int, dict[str, tuple[str, tuple[int, ...], str]]] = defaultdict(dict)
    for parameter, one in held.items():
        layers[one.layer][one.part] = (one.part, one.shape, _dtype_of(model, parameter))
    counts = {one.count for one in held.values()}
    if len(counts) > 1 or any(parts != layers[0] for parts in layers.values()):
        raise ModelError(
            f"the experts of {name} differ from layer to layer, in number or shape; foregate needs equal ones"
        )
    return counts.pop(), Layout.of(layers[0].values())


def _dtype_of(model: Any, name: str) -> str:
    """What transformers loads a parameter as: some are kept in 32 bits whatever was asked for."""
    parameter = model.get_parameter(name)
    plan = model._get_dtype_plan(model.dtype)
    kept = (kind for pattern, kind in plan.items() if re.search(pattern.replace("*", ".*"), name))
    return str(next(kept, parameter.dtype)).removeprefix("torch.")


def pieces_of(
    held: Mapping[str, Held],
    placed: Mapping[str, list[tuple[str, Any]]],
    tensors: Mapping[str, Stored],
    layout: Layout,
    *,
    num_experts: int,
    folder: Path,
) -> dict[tuple[int, int], tuple[Piece, ...]]:
    """The pieces of (layer, expert), by file and place in it.

    Raises: SourceError if a part of an expert is missing from the checkpoint, naming it; ModelError for experts in
    other types than 16 and 32 bits, or scattered over a tensor.
    """
    found: dict[tuple[int, int], list[Piece]] = defaultdict(list)
    covered: Counter[tuple[int, int, str]] = Counter()
    for name, pairs in placed.items():
        one = held[name]
        for key, view in pairs:
            for expert, piece in _cut(key, tensors[key], view, one, layout[one.part]):
                found[one.layer, expert].append(piece)
                covered[one.layer, expert, one.part] += piece.nbytes // ITEM_BYTES[piece.dtype]
    for name, one in held.items():
        for expert in range(num_experts) if one.expert is None else (one.expert,):
            if covered[one.layer, expert, one.part] != prod(one.shape):
                raise SourceError(f"{folder} lacks expert {expert} of {name}, or a part of it; download it again")
    return {key: tuple(sorted(pieces, key=lambda p: (p.file, p.start))) for key, pieces in found.items()}


def _cut(key: str, stored: Stored, view: Any, held: Held, part: Part) -> Iterator[tuple[int, Piece]]:
    """A checkpoint tensor as pieces, each with its expert."""
    if stored.dtype not in FLOATS:
        raise ModelError(
            f"{stored.file} holds {key} as {stored.dtype}; foregate reads experts that are {', '.join(FLOATS)}"
        )
    size = prod(part.shape)
    offset = int(view.storage_offset())
    if held.expert is not None or offset // size == (offset + _reach(view)) // size:  # all of it is one expert's
        expert = offset // size if held.expert is None else held.expert
        yield expert, _piece(stored, part, view, offset=offset % size, start=stored.offset, nbytes=stored.nbytes)
        return
    rows = max(1, size // view.stride(0))  # of the tensor, per expert
    one = view[:rows]
    if rows * view.stride(0) != size or view.shape[0] % rows or offset + _reach(one) >= size:
        raise ModelError(
            f"{stored.file} scatters experts over {key}, so they cannot be read in place; "
            "`foregate pack` makes a store of them"
        )
    count = view.shape[0] // rows
    share = stored.nbytes // count
    for expert in range(count):
        yield expert, _piece(stored, part, one, offset=offset, start=stored.offset + expert * share, nbytes=share)


def _piece(stored: Stored, part: Part, view: Any, *, offset: int, start: int, nbytes: int) -> Piece:
    item = ITEM_BYTES[part.dtype]
    plain = stored.dtype == part.dtype and view.is_contiguous()
    strided = None if plain else (tuple(view.shape), tuple(view.stride()), offset)
    return Piece(stored.file, start, nbytes, stored.dtype, part, part.offset + offset * item, strided)


def _reach(view: Any) -> int:
    """Numbers from the first to the last one of a view."""
    return sum((n - 1) * stride for n, stride in zip(view.shape, view.stride(), strict=True))
