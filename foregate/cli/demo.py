"""`foregate demo`."""


def command() -> None:
    """To be written."""
