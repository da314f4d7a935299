"""What a read and a layer take on a machine: the two constants that the prefetch `budget` weighs. No clock runs."""

from dataclasses import dataclass
from typing import final

from foregate.hardware.profile import Profile
from foregate.simulation.shapes import ModelShape, timed_on

READERS = 2
"""Reads under way at once, as the runtime has it."""


@final
@dataclass(frozen=True)
class Pace:
    """Seconds, for one token.

    read    between one expert's arrival and the next one's, while experts are read without pause
    window  of one mixture layer whose experts are all there: what a read ahead can hide behind, for each layer of its
            distance
    look    of a predictor's answer about one layer; 0 where the profile has none
    """

    read: float
    window: float
    look: float = 0.0


def pace_of(profile: Profile, shape: ModelShape, *, on_disk: bool) -> Pace:
    """Of this model on this machine.

    on_disk  experts come from the disk; else from host memory, where the machine has a device

    Raises: ChoiceError that names what the profile lacks.
    """
    profile = timed_on(profile, shape)
    size = shape.slot_bytes
    dense = profile.dense_seconds(1, max(1, sum(shape.dense_bytes) // shape.layers))
    expert = profile.expert_seconds(1, size) + profile.turn_seconds("expert")
    window = dense + profile.turn_seconds("layer") + shape.top_k * expert
    return Pace(read_pace(profile, size, on_disk=on_disk), window, profile.look_seconds())


def read_pace(profile: Profile, size: int, *, on_disk: bool) -> float:
    """Seconds between arrivals of experts of `size` bytes: the slower of disk and link."""
    link = profile.copy_seconds(size) if profile.has_device or not on_disk else 0.0
    disk = min(profile.read_seconds(size, d) / d for d in range(1, READERS + 1)) if on_disk else 0.0
    return max(link, disk)
