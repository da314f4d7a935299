"""`foregate export`."""


def command() -> None:
    """To be written."""
