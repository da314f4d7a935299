"""Machines nobody here has, as profiles made of datasheets. Peaks, not measurements: a real machine is slower."""

from dataclasses import dataclass

from foregate.hardware.machine import Machine
from foregate.hardware.profile import Profile, Timing

GB = 10**9
UNIT = 10**9  # bytes, or operations, that a rate is written down for
SSD = "Samsung 990 PRO datasheet: PCIe 4.0 x4, sequential read 7,450 MB/s, 4 KiB random read at depth 1 22,000 IOPS"
PCIE4 = "PCI Express base specification 4.0: 16 GT/s, 16 lanes, 128b/130b: 31.5 GB/s each way, before packet headers"
PCIE5 = "PCI Express base specification 5.0: 32 GT/s, 16 lanes, 128b/130b: 63.0 GB/s each way, before packet headers"


@dataclass(frozen=True)
class Sheet:
    """What datasheets say of a machine.

    machine   what it is
    memory    bytes a second of the memory that experts are computed from
    multiply  16-bit operations a second, dense, sums in 32 bits; None where the sheet has none
    link      bytes a second from host memory to the device; None where they are the same memory
    sources   where that is written
    """

    machine: Machine
    memory: float
    multiply: float | None
    link: float | None
    sources: tuple[str, ...]


def profile_of(name: str, sheet: Sheet) -> Profile:
    """A sheet as a profile, with a good NVMe disk. Experts' times follow from memory and arithmetic (derived)."""
    memory = "memread" if sheet.link is None else "device-read"
    rates = {memory: sheet.memory, "pinned": sheet.link, "multiply": sheet.multiply}
    timings = [Timing(kind, UNIT, UNIT / rate, "datasheet") for kind, rate in rates.items() if rate is not None]
    if sheet.link is None:  # a copy reads and writes the one memory
        timings.append(Timing("memcpy", UNIT, 2 * UNIT / sheet.memory, "derived"))
    # A 4 KiB read at depth 1 is nearly all latency; behind it the bytes come at the sequential rate. Reads under way
    # together wait for their latencies together and share the rate.
    latency, rate = 1 / 22_000, 7.45 * GB
    timings.append(Timing("read", 4096, latency, "datasheet"))
    for depth, size in ((1, 1 << 30), (8, 4096), (8, 1 << 30)):
        timings.append(Timing("read", size, latency + depth * size / rate, "derived", depth))
    notes = (
        "datasheet peaks: links reach 75 to 90 % of theirs, kernels less; nothing here was measured",
        "an expert's time is the longer of its bytes / memory bandwidth and its arithmetic (derived)",
        "disk: a Samsung 990 PRO, whatever the machine has",
    )
    return Profile(name, sheet.machine, tuple(timings), notes=notes, sources=(*sheet.sources, SSD))


def _gpu(name: str, gibibytes: int) -> Machine:
    return Machine(gpu=name, gpu_bytes=gibibytes << 30)


SHEETS: dict[str, Sheet] = {
    "rtx-3090": Sheet(
        _gpu("NVIDIA GeForce RTX 3090, PCIe 4.0 x16", 24),
        936.2 * GB,
        71e12,
        31.5 * GB,
        ("NVIDIA Ampere GA102 GPU Architecture whitepaper v2, appendix A: 936 GB/s, 71 TFLOPS BF16", PCIE4),
    ),
    "rtx-4090": Sheet(
        _gpu("NVIDIA GeForce RTX 4090, PCIe 4.0 x16", 24),
        1008 * GB,
        165.2e12,
        31.5 * GB,
        ("NVIDIA Ada GPU Architecture whitepaper, appendix A: 1008 GB/s, 165.2 TFLOPS BF16", PCIE4),
    ),
    "a100-pcie": Sheet(
        _gpu("NVIDIA A100 80GB PCIe", 80),
        1935 * GB,
        312e12,
        31.5 * GB,
        ("NVIDIA A100 datasheet: PCIe 80GB, 1,935 GB/s, 312 TFLOPS BF16, PCIe Gen4", PCIE4),
    ),
    "a100-sxm": Sheet(
        _gpu("NVIDIA A100 80GB SXM", 80),
        2039 * GB,
        312e12,
        31.5 * GB,
        ("NVIDIA A100 datasheet: SXM 80GB, 2,039 GB/s, 312 TFLOPS BF16, PCIe Gen4 to the host", PCIE4),
    ),
    "h200": Sheet(
        Machine(gpu="NVIDIA H200 SXM", gpu_bytes=141 * GB),
        4800 * GB,
        989.5e12,
        63.0 * GB,
        ("NVIDIA H200 datasheet: 141 GB, 4.8 TB/s, 1,979 TFLOPS BF16 with sparsity (half without), PCIe Gen5", PCIE5),
    ),
    "jetson-orin": Sheet(
        Machine(cpu="12-core Arm Cortex-A78AE", cores=12, ram_bytes=64 << 30, gpu="NVIDIA Jetson AGX Orin 64GB"),
        204.8 * GB,
        42.5e12,
        None,
        (
            "NVIDIA Jetson AGX Orin Series technical brief: 204.8 GB/s shared by CPU and GPU; 170 TOPS INT8 with "
            "sparsity, of which a quarter is dense FP16",
        ),
    ),
    "laptop": Sheet(
        Machine(cpu="AMD Ryzen 7 7840U, two channels of DDR5-5600", cores=8, ram_bytes=32 << 30),
        89.6 * GB,
        None,
        None,
        ("AMD Ryzen 7 7840U product page: DDR5-5600 on two channels, 2 x 8 bytes x 5.6 GT/s = 89.6 GB/s",),
    ),
}
"""Name -> what its datasheets say."""

PRESETS: dict[str, Profile] = {name: profile_of(name, sheet) for name, sheet in SHEETS.items()}
"""Name -> the same as a profile."""
