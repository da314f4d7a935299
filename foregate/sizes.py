"""Amounts of memory as text: 6GiB, 500MB, 25%. Measures nothing and plans nothing."""

import re
from dataclasses import dataclass
from decimal import Decimal

from foregate.errors import ChoiceError

UNITS = {"b": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
NUMBER = r"(\d+\.?\d*|\.\d+)"


@dataclass(frozen=True)
class Size:
    """An amount of memory, as a user gives it: either `bytes`, or a `percent` of all experts. The other is None."""

    bytes: int | None = None
    percent: float | None = None


def parse_size(text: str) -> Size:
    """What `parse_bytes` takes, or `25%`: a share of all experts' bytes. Raises: ChoiceError if it is neither."""
    if share := re.fullmatch(NUMBER + r"\s*%", text.strip(), re.ASCII):
        if float(share[1]) > 100:
            raise ChoiceError(f"{text!r} is more than all experts; give a share of at most 100%")
        return Size(percent=float(share[1]))
    found = _bytes(text)
    if found is None:
        raise ChoiceError(f"{text!r} is no size; give bytes with a unit, as 6GiB or 500MB, or a share, as 25%")
    return Size(bytes=found)


def parse_bytes(text: str) -> int:
    """`6GiB`, `500MB`, `1.5G` (as GB, 10^9), `4096B`: at least one byte. Raises: ChoiceError if it is none of these."""
    found = _bytes(text)
    if not found:
        raise ChoiceError(f"{text!r} is not a size in bytes; write it with a unit, as 200MiB or 1.5GB")
    return found


def size_text(size: int) -> str:
    """Bytes as a short text, in the units that memory is sold in."""
    for unit in ("GiB", "MiB", "KiB"):
        factor = UNITS[unit[:2].lower()]
        if abs(size) >= factor:
            return f"{size / factor:.2f} {unit}"
    return f"{size} B"


def _bytes(text: str) -> int | None:
    match = re.fullmatch(NUMBER + r"\s*([kmgt]?i?b?)", text.strip().lower(), re.ASCII)
    unit = match[2] if match else ""
    factor = UNITS.get(unit if unit == "b" else unit.removesuffix("b"))
    return None if match is None or factor is None else int(Decimal(match[1]) * factor)
