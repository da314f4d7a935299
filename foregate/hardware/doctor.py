"""What of foregate works on this machine, and what to type for the rest. Repairs nothing, loads no model."""

import importlib
import itertools
import os
import platform
import shutil
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from foregate.errors import StorageError
from foregate.hardware import disk
from foregate.hardware.limits import Memory, memory
from foregate.hardware.machine import disk_of

REQUIRED = ("numpy", "numba", "pyarrow", "typer", "rich")
EXTRAS = {
    "models": ("torch", "transformers", "safetensors", "tokenizers", "datasets", "xxhash"),
    "train": ("torch", "accelerate", "optuna", "xgboost"),
    "report": ("plotly", "kaleido"),
    "export": ("onnx", "onnxruntime"),
}
FEATURES = {
    "record a model's routing": "models",
    "run a model that does not fit in memory": "models",
    "train and tune predictors": "train",
    "pages and figures": "report",
    "export predictors to ONNX": "export",
}
TRIED = (*REQUIRED, "torch", "transformers", "safetensors")  # imported to see whether they work; others take too long
SAMPLE = 256 << 20  # bytes of the file that is read to measure a disk
BLOCK = 16 << 20
SECONDS = 0.5


@dataclass(frozen=True)
class Library:
    """One library: `version` is None if it is not installed, `problem` says why it cannot be imported, if it cannot."""

    name: str
    version: str | None
    problem: str | None
    required: bool

    @property
    def works(self) -> bool:
        """Whether it is there and was not seen to fail."""
        return self.version is not None and self.problem is None


@dataclass(frozen=True)
class Disk:
    """Where something is kept.

    what         "working folder" or "Hugging Face cache"
    device       as Linux names it, or None
    free         bytes
    direct       whether files there can be read past the page cache (O_DIRECT); None: not tried
    bytes_per_s  of cold reads, one after another; None: not measured
    note         why not
    """

    what: str
    folder: str
    device: str | None
    file_system: str | None
    free: int
    direct: bool | None = None
    bytes_per_s: float | None = None
    note: str | None = None


@dataclass(frozen=True)
class Feature:
    """Something that foregate does; `advice` says what to type where it does not."""

    name: str
    usable: bool
    advice: str | None


@dataclass(frozen=True)
class Checkup:
    """All that was found. Measured: the disks' speed; the rest is what the system says."""

    foregate: str
    python: str
    libraries: tuple[Library, ...]
    devices: tuple[tuple[str, int], ...]  # name and bytes of memory of each CUDA device
    cores: int
    memory: Memory
    disks: tuple[Disk, ...]
    features: tuple[Feature, ...]

    @property
    def broken(self) -> tuple[Library, ...]:
        """Required libraries that do not work, and optional ones that are installed but cannot be imported."""
        return tuple(lib for lib in self.libraries if lib.problem or (lib.required and not lib.works))

    @property
    def sound(self) -> bool:
        """Whether all that is required works."""
        return not any(lib.required for lib in self.broken)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "sound": self.sound}


def examine(*, quick: bool = False) -> Checkup:
    """Look at everything; `quick` leaves out what has to write a file: O_DIRECT and the disks' speed."""
    import foregate

    names = dict.fromkeys((*REQUIRED, *itertools.chain(*EXTRAS.values())))
    libraries = tuple(_library(name) for name in names)
    devices = _devices() if next(lib.works for lib in libraries if lib.name == "torch") else ()
    disks = _disks(quick)
    return Checkup(
        foregate=foregate.__version__,
        python=platform.python_version(),
        libraries=libraries,
        devices=devices,
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=memory(),
        disks=disks,
        features=_features(libraries, devices, disks),
    )


def _library(name: str) -> Library:
    problem = None
    found = _version(name)
    if found is not None and name in TRIED:
        try:
            importlib.import_module(name)
        except Exception as error:  # a broken library may raise anything; the doctor's place is to say so
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return Library(name, found, problem, name in REQUIRED)


def _version(name: str) -> str | None:
    for distribution in (name, f"{name}-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return None


def _devices() -> tuple[tuple[str, int], ...]:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    found = [torch.cuda.get_device_properties(i) for i in range(count)]
    return tuple((str(device.name), int(device.total_memory)) for device in found)


def _features(
    libraries: tuple[Library, ...], devices: tuple[tuple[str, int], ...], disks: tuple[Disk, ...]
) -> tuple[Feature, ...]:
    works = {lib.name: lib.works for lib in libraries}
    core = all(lib.works for lib in libraries if lib.required)
    found = [Feature("import, describe and compare traces", core, None if core else "pip install --force foregate")]
    for name, extra in FEATURES.items():
        usable = core and all(works[library] for library in EXTRAS[extra])
        found.append(Feature(name, usable, None if usable else f"pip install 'foregate[{extra}]'"))
    gpu = None if devices else "no CUDA device is visible to torch; experts are computed on the CPU"
    found.append(Feature("experts on a GPU", bool(devices), gpu))
    if any(place.direct is not None for place in disks):
        direct = any(place.direct for place in disks)
        advice = None if direct else "keep models on a disk with ext4 or xfs; here reads pass through the page cache"
        found.append(Feature("reads past the page cache", direct, advice))
    return tuple(found)


# --- disks -----------------------------------------------------------------------------------------------------------


def hub_cache() -> Path:
    """Where Hugging Face keeps downloaded models, by the rules of huggingface_hub."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", f"{cache}/huggingface")
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expandvars(hub)).expanduser()


def _disks(quick: bool) -> tuple[Disk, ...]:
    """The working folder's and the cache's; where they share a file system, it is measured once."""
    found: dict[int, Disk] = {}
    disks = []
    for what, folder in (("working folder", Path.cwd()), ("Hugging Face cache", hub_cache())):
        there = next(f for f in (folder, *folder.absolute().parents) if f.is_dir())  # the cache may not exist yet
        device = there.stat().st_dev
        if device not in found:
            found[device] = _measured(there, quick)
        disks.append(replace(found[device], what=what, folder=str(folder)))
    return tuple(disks)


def _measured(folder: Path, quick: bool) -> Disk:
    device, file_system = disk_of(folder)
    plain = Disk("", str(folder), device, file_system, shutil.disk_usage(folder).free)
    if quick:
        return replace(plain, note="not measured (--quick)")
    try:
        with disk.scratch(folder, SAMPLE) as files:
            if not files.direct:
                return replace(plain, direct=False, note="no O_DIRECT here; a read would measure the page cache")
            places = itertools.cycle(files.places(BLOCK))
            reads = disk.read_for(files, places, BLOCK, 1, SECONDS)
    except StorageError as error:
        return replace(plain, note=f"not measured: {str(error).split('; ')[0]}")
    return replace(plain, direct=True, bytes_per_s=BLOCK / reads.each)
