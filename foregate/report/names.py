"""What the page calls a model in a heading."""

from pathlib import PurePosixPath


def short(model: str) -> str:
    """The last part of a path or of owner/name; anything else as it is."""
    return model if " " in model else PurePosixPath(model).name
