"""`foregate compare`."""


def command() -> None:
    """To be written."""
