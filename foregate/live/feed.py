"""The newest message for whoever waits for one: who is slow misses some, and holds nobody up. Knows no network."""

import threading
from collections.abc import Callable
from typing import Any, final

Message = Callable[[], dict[str, Any]]
"""Made when somebody reads it, so that it costs nothing while nobody does."""


@final
class Feed:
    """One writer, any number of readers. Messages are numbered from 1; each says all there is to say."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._number = 0
        self._message: Message = dict
        self._closed = False

    def put(self, message: Message) -> None:
        """The newest from now on."""
        with self._changed:
            self._number, self._message = self._number + 1, message
            self._changed.notify_all()

    def close(self) -> None:
        """There will be no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def after(self, number: int, seconds: float) -> tuple[int, Message | None, bool]:
        """The newest message after the one of this number, with its own number, once there is one; None if there was
        none for so many seconds, or there will be none. And whether it is the last.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._number > number or self._closed, seconds)
            return self._number, self._message if self._number > number else None, self._closed
