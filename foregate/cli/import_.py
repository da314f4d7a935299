"""`foregate import`."""


def command() -> None:
    """To be written."""
