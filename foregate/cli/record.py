"""`foregate record`."""


def command() -> None:
    """To be written."""
