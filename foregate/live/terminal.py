"""How a run looks in a terminal: text as it comes, and below it a line or a panel of numbers. Measures nothing."""

import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, final

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from foregate.live.sampler import RUNNING, Picture
from foregate.runtime.watch import ABSENT, Subject

PAUSE = 0.125  # seconds from one drawing to the next
BARS, PLAIN_BARS = " ▁▂▃▄▅▆▇█", " .:-=+*#@"  # from nothing to all
WIDTH = 76
NAME = 9  # columns of a line's name
BAR = 20
KINDS = (
    ("resident", "there", "cyan", "█", "#"),
    ("in_time", "read ahead", "green", "▓", "+"),
    ("late", "late", "yellow", "▒", "-"),
    ("missed", "missed", "red", "░", "."),
)
"""How an expert that was demanded was found: field of the stats, word, style, filling of its bar."""


@final
class Screen:
    """Text on a terminal, and what is below it, drawn again eight times a second by a thread while it is entered.

    below  what to draw; on leaving it goes, and the text stays
    """

    def __init__(self, console: Console, below: Callable[[], RenderableType]) -> None:
        self._console, self._below = console, below
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._text = ""  # not printed yet
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="screen", daemon=True)

    def __enter__(self) -> Self:
        self._live.start()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._live.stop()
        self._console.print(Text(self._text), soft_wrap=True)

    def show(self, piece: str) -> None:
        """More text."""
        with self._lock:
            self._text += piece

    def _work(self) -> None:
        while not self._over.wait(PAUSE):
            self._draw()

    def _draw(self) -> None:
        with self._lock:
            whole, newline, self._text = self._text.rpartition("\n")
            line = self._text
        if newline:
            self._live.console.print(Text(whole), soft_wrap=True)
        below = self._below()
        rows = Text(line).wrap(self._console, self._console.width)
        room = max(self._console.height - len(self._console.render_lines(below, pad=False)) - 1, 1)
        self._live.update(Group(*rows[-room:], below), refresh=True)  # of a long line, what was written last


def line(stats: dict[str, Any]) -> Text:
    """The numbers that matter, in one line."""
    decode = stats["decode"]
    speed = decode["tokens_per_second"]
    parts = ["writing the first token" if not speed else f"{speed:.2f} tokens/s"]
    for name, share in (("resident", decode["resident_share"]), ("read ahead", decode["in_time_share"])):
        if share is not None:
            parts.append(f"{name} {share:.0%}")
    parts.append(f"stalled {stats['stall']:.1f} s")
    parts.append(f"read {amount(stats['bytes'])}")
    if stats["cold_precision"] is not None:
        parts.append(f"cold precision {stats['cold_precision']:.0%}")
    return Text("  ".join(parts), style="dim")


def panel(subject: Subject, picture: Picture, *, plain: bool = False) -> Group:
    """Some seven lines of at most 80 columns.

    plain  in ASCII
    """
    stats, decode = picture.look.stats, picture.look.stats["decode"]
    speed = decode["tokens_per_second"]
    head = f"{speed:.2f} tokens/s" if speed else "writing the first token" if picture.state == RUNNING else "no token"
    lines = [
        _named(picture.state, (head, "bold"), f"   {decode['tokens']} tokens   {_clock(picture.seconds)}"),
        _hits(stats, plain=plain),
        _named("stalled", *_stalled(picture)),
        _named("read", amount(stats["bytes"]), _rate(picture)),
        _named("guesses", _guesses(stats)),
        *_layers(subject, picture, plain=plain),
    ]
    rule = Text(("-" if plain else "─") * WIDTH, style="dim")
    return Group(rule, *lines)


def amount(size: float) -> str:
    """Bytes as a short text."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def _named(name: str, *parts: str | tuple[str, str]) -> Text:
    return Text.assemble((f"{name:<{NAME}}", "dim"), *parts, no_wrap=True, overflow="crop")


def _hits(stats: dict[str, Any], *, plain: bool) -> Text:
    """Of all experts demanded so far: those that were there, and those that were waited for."""
    demanded = stats["demanded"]
    if not demanded:
        return _named("hits", "nothing demanded yet")
    bar: list[tuple[str, str]] = []
    words: list[str | tuple[str, str]] = []
    seen = drawn = 0
    for field, name, style, fill, in_ascii in KINDS:
        seen += stats[field]
        end = round(seen / demanded * BAR)
        bar.append(((in_ascii if plain else fill) * (end - drawn), style))
        drawn = end
        words += ["  ", (name, style), f" {stats[field] / demanded:.0%}"]
    return _named("hits", *bar, *words)


def _stalled(picture: Picture) -> tuple[str, ...]:
    share = picture.stalled
    text = f"{picture.look.stats['stall']:.1f} s"
    return (text,) if share is None else (f"{share:.0%} of the time", f"   {text}")


def _rate(picture: Picture) -> str:
    if picture.state != RUNNING or not picture.minute:
        return ""
    return f"   {amount(picture.minute[-1].bytes_per_second)}/s"


def _guesses(stats: dict[str, Any]) -> str:
    if not stats["guessed"]:
        return "none issued"
    parts = [f"{stats['guessed']:,} issued", f"{stats['used']:,} used", f"{stats['wasted']:,} wasted"]
    if stats["cold_precision"] is not None:
        parts.insert(0, f"cold precision {stats['cold_precision']:.0%}")
    return "   ".join(parts)


def _layers(subject: Subject, picture: Picture, *, plain: bool) -> list[Text]:
    """A bar for each layer: its experts in slots, and its hits so far."""
    of_layer = {name: np.array(values) for name, values in picture.look.stats["by_layer"].items()}
    held = (picture.look.cells != ABSENT).mean(axis=1)
    hits = of_layer["resident"] + of_layer["in_time"]
    shares = np.divide(hits, of_layer["demanded"], out=np.zeros(len(hits)), where=of_layer["demanded"] > 0)
    room = WIDTH - NAME - 28
    note = f"  from {subject.layers[0]} to {subject.layers[-1]}: experts in slots"
    return [
        _named("layers", (_bars(held, room, plain=plain), "cyan"), (note, "dim")),
        _named("", (_bars(shares, room, plain=plain), "cyan"), ("  hits", "dim")),
    ]


def _bars(shares: Any, room: int, *, plain: bool) -> str:
    """A character for each layer; for several, their mean, where there are more than fit."""
    together = -(-len(shares) // room)
    means = [shares[i : i + together].mean() for i in range(0, len(shares), together)]
    bars = PLAIN_BARS if plain else BARS
    return "".join(bars[round(float(mean) * (len(bars) - 1))] for mean in means)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
