"""A thread that looks at a running model a few times a second, and keeps the last minute. Draws and sends nothing."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self, final

from foregate.runtime.watch import Look, Watch

PAUSE = 0.2  # seconds from one look to the next
STEP = 0.5  # seconds from one moment to the next
WINDOW = 2.0  # seconds that a moment's rates are taken over
MOMENTS = round(60 / STEP)
RUNNING, FINISHED, STOPPED = "running", "finished", "stopped"


@final
@dataclass(frozen=True)
class Moment:
    """Rates over the two seconds before it, None where nothing happened that they could be of.

    time               seconds since watching began
    tokens_per_second  of the decoding passes that ended in them
    resident, in_time  shares of the experts demanded
    stalled            share of the time
    bytes_per_second
    """

    time: float
    tokens_per_second: float | None
    resident: float | None
    in_time: float | None
    stalled: float
    bytes_per_second: float

    @classmethod
    def between(cls, old: Look, new: Look, began: float) -> "Moment":
        """What happened from one look to another."""
        seconds = new.time - old.time
        a, b = old.stats, new.stats
        demanded = b["demanded"] - a["demanded"]
        tokens, busy = (b["decode"][name] - a["decode"][name] for name in ("tokens", "seconds"))
        return cls(
            time=round(new.time - began, 2),
            tokens_per_second=_share(max(tokens, 0), busy),  # an assistant's guesses may be taken back
            resident=_share(b["resident"] - a["resident"], demanded),
            in_time=_share(b["in_time"] - a["in_time"], demanded),
            stalled=_share(min(b["stall"] - a["stall"], seconds), seconds) or 0.0,
            bytes_per_second=round((b["bytes"] - a["bytes"]) / seconds),
        )


@final
@dataclass(frozen=True, eq=False)
class Picture:
    """All that is shown at one time.

    state   RUNNING; FINISHED or STOPPED (an error, Ctrl-C) in the last one
    minute  the last minute, the oldest moment first
    """

    state: str
    seconds: float
    look: Look
    minute: tuple[Moment, ...]

    @property
    def stalled(self) -> float | None:
        """Share of the time in forward passes so far that was spent waiting for bytes."""
        stats = self.look.stats
        return _share(stats["stall"], stats["prefill"]["seconds"] + stats["decode"]["seconds"])


@final
class Sampler:
    """Looks while it is entered; leaving it takes the last look.

    on_picture  called with each picture, in the sampler's thread (the last one: in the thread that leaves)
    """

    def __init__(self, watch: Watch, on_picture: Callable[[Picture], None] = lambda picture: None) -> None:
        self._watch, self._on_picture = watch, on_picture
        first = watch.look()
        self._began = first.time
        self._looks: deque[Look] = deque([first], maxlen=round(WINDOW / PAUSE) + 1)
        self._minute: deque[Moment] = deque(maxlen=MOMENTS)
        self._next = STEP
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="sampler", daemon=True)
        self.picture = Picture(RUNNING, 0.0, first, ())

    def __enter__(self) -> Self:
        self._on_picture(self.picture)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._next = 0.0
        self._take(FINISHED if kind is None else STOPPED)

    def _work(self) -> None:
        while not self._over.wait(PAUSE):
            self._take(RUNNING)

    def _take(self, state: str) -> None:
        look = self._watch.look()
        seconds = look.time - self._began
        if seconds >= self._next:
            self._minute.append(Moment.between(self._looks[0], look, self._began))
            self._next = seconds + STEP
        self._looks.append(look)
        self.picture = Picture(state, seconds, look, tuple(self._minute))
        self._on_picture(self.picture)


def _share(part: float, whole: float) -> float | None:
    return round(part / whole, 4) if whole else None
