"""A few passes in the middle of a run, moment by moment: which they are, and what happened in them. Runs nothing."""

from dataclasses import dataclass
from typing import final

import numpy as np

from foregate.arrays import Bool
from foregate.simulation.passes import Passes
from foregate.simulation.timeline import KINDS, Timeline

Moment = tuple[str, float, float, int, int, bool]
"""Kind (see KINDS), begin and end in seconds since the window began, layer, expert (-1 = several, or none), and whether
it is a read that nobody waited for as it began."""

NANO = 9  # digits after the point of a second that are kept


@final
@dataclass(frozen=True)
class Window:
    """What happened in some passes.

    first    the first one's number; every strategy of a comparison shows the same
    passes   how many, and the tokens that they carried
    seconds  how long they took
    moments  in the order in which they ended; reads that began before or ended after are cut
    """

    first: int
    passes: int
    tokens: int
    seconds: float
    moments: tuple[Moment, ...]


def middle(passes: Passes, many: int) -> range:
    """So many passes of one prompt in the middle of what is counted (decoding, if any pass decodes); fewer where no
    prompt has as many.
    """
    counted: Bool = ~passes.prefill if not passes.prefill.all() else np.ones(len(passes), np.bool_)
    for length in range(min(many, len(passes)), 0, -1):
        starts = np.arange(len(passes) - length + 1)
        whole = np.ones(len(starts), np.bool_)
        for offset in range(length):
            whole &= counted[starts + offset] & (passes.prompt[starts + offset] == passes.prompt[starts])
        if whole.any():
            found = starts[whole]
            first = int(found[np.abs(found - len(passes) // 2).argmin()])
            return range(first, first + length)
    return range(0)


def noted(window: range) -> range:
    """The passes whose events a window needs: a read that its last pass began may end in the next one."""
    return range(window.start, window.stop + 1) if window else window


def window_of(timeline: Timeline, window: range) -> Window:
    """The window of a run whose events were noted."""
    assert timeline.events is not None
    assert len(window)
    began = float(timeline.pass_ends[window.start - 1]) if window.start else 0.0
    ended = float(timeline.pass_ends[window.stop - 1])
    events, moments = timeline.events, list[Moment]()
    columns = (events.kind, events.begin, events.end, events.layer, events.expert, events.ahead)
    for kind, begin, end, layer, expert, ahead in zip(*(c.tolist() for c in columns), strict=True):
        low, high = max(begin, began) - began, min(end, ended) - began
        if high > low:
            moments.append((KINDS[kind], round(low, NANO), round(high, NANO), layer, expert, ahead))
    tokens = int(timeline.pass_tokens[window.start : window.stop].sum())
    return Window(window.start, len(window), tokens, round(ended - began, NANO), tuple(moments))
