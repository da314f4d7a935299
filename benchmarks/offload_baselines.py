"""What others do with experts that do not fit: Accelerate's disk offload and mapped weights, with rationed page cache.

Neither limits memory: whatever they read stays in the page cache as long as the machine has room. `Ration` takes the
room away where no memory control group does. No foregate engine here, and no clock.
"""

import ctypes
import json
import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, final

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.integrations import accelerate as by_transformers

from foregate.runtime.loading import HollowModel, Weight, load_hollow

LIBC: Final = ctypes.CDLL(None, use_errno=True)
CACHESTAT: Final = 451  # the system call's number, on every architecture; Linux 6.5 or later
PAGE: Final = mmap.PAGESIZE
DENSE: Final = "dense.safetensors"  # what is no expert's


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cached(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted"))


@dataclass(frozen=True)
class Piece:
    """Bytes of a file, and where they are mapped here (0: nowhere)."""

    file: int  # descriptor
    offset: int
    length: int
    address: int = 0

    def cached(self) -> int:
        """Bytes of it in the page cache."""
        found = _Cached()
        place = _Range(self.offset, self.length)
        if LIBC.syscall(CACHESTAT, self.file, ctypes.byref(place), ctypes.byref(found), 0):
            raise OSError(ctypes.get_errno(), "cachestat failed; it needs Linux 6.5 or later")
        return int(found.cache) * PAGE

    def drop(self) -> None:
        """Take it out of the page cache. Whoever reads it next reads the device."""
        if self.address:  # pages that are mapped cannot be dropped: unmap them first; they come back when touched
            first = self.address // PAGE * PAGE
            length = self.address + self.length - first
            LIBC.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)
        os.posix_fadvise(self.file, self.offset, self.length, os.POSIX_FADV_DONTNEED)


@final
@dataclass
class Ration:
    """Page cache of some files, held to `budget` bytes: the pieces used longest ago go first.

    Stands in the place of a memory control group, which takes rights that a benchmark may not have. It is kinder than
    one: it knows whole experts, evicts after a layer and not within it, and its time is not counted against whoever is
    measured (`seconds`).
    """

    pieces: dict[tuple[int, int], tuple[Piece, ...]]  # (layer, expert) -> its bytes
    budget: int | None = None  # None: as much as the system allows
    peak: int = 0
    seconds: float = 0.0
    _used: dict[tuple[int, int], int] = field(default_factory=dict)
    _clock: int = 0

    def used(self, layer: int, experts: Iterable[int]) -> None:
        """A layer has computed these experts; make the page cache fit again."""
        if self.budget is None:
            return
        started = time.perf_counter()
        for expert in experts:
            self._clock += 1
            self._used[layer, expert] = self._clock
        held = {key: sum(piece.cached() for piece in pieces) for key, pieces in self.pieces.items()}
        total = sum(held.values())
        self.peak = max(self.peak, total)
        for key in sorted((key for key in held if held[key]), key=lambda key: self._used.get(key, 0)):
            if total <= self.budget:
                break
            self._drop(key)
            total -= held[key]
        self.seconds += time.perf_counter() - started

    def empty(self) -> None:
        """Everything cold."""
        for key in self.pieces:
            self._drop(key)
        for file in {piece.file for pieces in self.pieces.values() for piece in pieces}:
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        self.peak, self.seconds = 0, 0.0

    def cached(self) -> int:
        """Bytes in the page cache now."""
        return sum(piece.cached() for pieces in self.pieces.values() for piece in pieces)

    def _drop(self, key: tuple[int, int]) -> None:
        for piece in self.pieces[key]:
            piece.drop()


# --- models whose experts are in files, one tensor for all experts of a layer ----------------------------------------


def prepare(folder: Path, work: Path) -> None:
    """Write what transformers and Accelerate write into an offload folder whenever they load such a model: a file for
    each parameter of all experts of a layer. The other weights go there too, in one file.
    """
    if (work / DENSE).exists():
        return
    if work.exists():
        raise SystemExit(f"{work} is there and was not made by this benchmark; give --work another name")
    partial = work.with_name(work.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left by a run of ours that was stopped
    call = "import sys, offload_baselines as here; here._offload(*map(here.Path, sys.argv[1:]))"
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    subprocess.run([sys.executable, "-c", call, folder, partial], check=True, env=here, capture_output=True)
    dense = dict(load_hollow(str(folder)).model.named_parameters())
    save_file({name: tensor.detach().clone() for name, tensor in dense.items()}, partial / DENSE)
    partial.replace(work)


def _offload(folder: Path, work: Path) -> None:
    hollow = load_hollow(str(folder))
    transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", device_map=_places(hollow), offload_folder=work
    )


def _places(hollow: HollowModel) -> dict[str, str]:
    """A device map: the experts on disk, every other module that has weights or buffers in memory."""
    modules = hollow.model.named_modules()
    kept = [name for name, m in modules if [*m.parameters(recurse=False), *m.buffers(recurse=False)]]
    return dict.fromkeys(kept, "cpu") | {weight.module: "disk" for weights in hollow.missing for weight in weights}


def accelerate_auto(folder: Path, work: Path, budget: int) -> tuple[Any, Ration]:
    """As users call it: `from_pretrained(folder, device_map="auto", max_memory={"cpu": budget}, offload_folder=...)`.

    The same device map, index and hooks, made by the same functions of transformers 5, without the minute in which it
    converts the experts and writes them to the folder. Experts are computed by transformers' default, grouped_mm.
    """
    model, ration = _dispatched(
        folder, work, lambda hollow: by_transformers._get_device_map(hollow.model, "auto", {"cpu": budget}, None)
    )
    model.set_experts_implementation("grouped_mm")
    return model, ration


def accelerate_experts(folder: Path, work: Path, budget: int) -> tuple[Any, Ration]:
    """At its best: a device map that puts the experts alone on disk, and transformers' eager experts."""
    return _dispatched(folder, work, _places)


def _dispatched(folder: Path, work: Path, places: Callable[[HollowModel], dict[str, str]]) -> tuple[Any, Ration]:
    """The model under Accelerate's hooks, as `from_pretrained(device_map=..., offload_folder=...)` leaves it."""
    hollow = load_hollow(str(folder))
    with torch.device("meta"):
        _fill(hollow, lambda name, weight: torch.empty(weight.shape, dtype=weight.dtype))
    places_of = places(hollow)
    names = [name for name, _ in hollow.model.named_parameters()]
    place = by_transformers.expand_device_map(places_of, names)
    experts = {f"{w.module}.{w.name}" for weights in hollow.missing for w in weights}
    _fill(
        hollow,
        lambda name, weight: (
            _tensor(work, name).clone()
            if place[name] == "cpu"
            else torch.empty(weight.shape, dtype=weight.dtype, device="meta")
        ),
    )
    index = {
        name: {
            "safetensors_file": str(_file(work, name) if name in experts else work / DENSE),
            "weight_name": name,
            "dtype": str(tensor.dtype)[6:],
        }
        for name, tensor in hollow.model.named_parameters()
        if place[name] == "disk"
    }
    by_transformers.accelerate_dispatch(hollow.model, None, places_of, str(work), index, False)
    return hollow.model, _ration(hollow, work, {}, {name for name in experts if place[name] == "disk"})


def mapped(folder: Path, work: Path, budget: int) -> tuple[Any, Ration]:
    """Experts are views of mapped files: nothing is copied, touching a page reads it."""
    hollow = load_hollow(str(folder))
    views: dict[str, Any] = {}

    def view(name: str, weight: Weight) -> Any:
        views[name] = _tensor(work, name)
        return views[name]

    _fill(hollow, view)
    return hollow.model, _ration(hollow, work, {name: view.data_ptr() for name, view in views.items()}, set(views))


def resident(folder: Path, work: Path, experts_implementation: str) -> Any:
    """Everything in memory: plain transformers."""
    hollow = load_hollow(str(folder))
    _fill(hollow, lambda name, weight: _tensor(work, name).clone())
    for file in work.glob("*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
    hollow.model.set_experts_implementation(experts_implementation)
    return hollow.model


def _fill(hollow: HollowModel, tensor: Callable[[str, Weight], Any]) -> None:
    """Give the model experts again."""
    for weight in (weight for weights in hollow.missing for weight in weights):
        module = hollow.model.get_submodule(weight.module)
        filled = torch.nn.Parameter(tensor(f"{weight.module}.{weight.name}", weight), requires_grad=False)
        module.register_parameter(weight.name, filled)


def _ration(hollow: HollowModel, work: Path, addresses: dict[str, int], in_files: set[str]) -> Ration:
    """For the page cache of all experts that are in files, asked after every mixture layer. It is unlimited as yet."""
    pieces: dict[tuple[int, int], tuple[Piece, ...]] = {}
    for number, weights in enumerate(hollow.missing):
        for name in (f"{weight.module}.{weight.name}" for weight in weights):
            if name not in in_files:
                continue
            for expert, piece in enumerate(_rows(_file(work, name), name, addresses.get(name))):
                pieces[number, expert] = (*pieces.get((number, expert), ()), piece)
    ration = Ration(pieces)
    for number, weights in enumerate(hollow.missing):

        def after(module: Any, args: Any, output: Any, number: int = number) -> None:
            ration.used(number, args[1].unique().tolist())

        hollow.model.get_submodule(weights[0].module).register_forward_hook(after)
    return ration


def _tensor(work: Path, name: str) -> Any:
    """A view of the mapped file."""
    opened: Any = safe_open(_file(work, name), "pt")
    return opened.get_tensor(name)


def _file(work: Path, name: str) -> Path:
    return work / f"{name}.safetensors"


def _rows(path: Path, name: str, address: int | None) -> list[Piece]:
    """One piece for each row of a tensor's first axis."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    count, (first, last) = header[name]["shape"][0], header[name]["data_offsets"]
    size = (last - first) // count
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)  # what was just written cannot be dropped before it is on the device
    return [
        Piece(descriptor, 8 + length + first + row * size, size, address + row * size if address else 0)
        for row in range(count)
    ]
