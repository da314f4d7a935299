"""`foregate describe`."""


def command() -> None:
    """To be written."""
