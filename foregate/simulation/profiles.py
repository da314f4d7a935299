"""A machine by its file or its datasheet's name, and whether what it says was measured. Measures nothing."""

from pathlib import Path

from foregate.errors import ChoiceError
from foregate.hardware.presets import PRESETS
from foregate.hardware.profile import Profile
from foregate.hardware.storage import read


def find_profile(text: str) -> Profile:
    """The profile in a file of `foregate profile`, or a datasheet's preset.

    Raises: ChoiceError where it is neither; SourceError for a broken file, or one of another version.
    """
    if text in PRESETS:
        return PRESETS[text]
    if not Path(text).is_file():
        raise ChoiceError(
            f"there is no profile {text!r}: it is neither a file (foregate profile -o makes one) nor one of the "
            f"datasheets {', '.join(PRESETS)}"
        )
    return read(Path(text))


def basis(profile: Profile) -> str:
    """Measured, datasheet, or both, of the numbers that are not derived from others."""
    found = {timing.basis for timing in profile.timings} - {"derived"}
    return " and ".join(sorted(found, reverse=True)) or "derived"
