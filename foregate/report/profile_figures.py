"""Figures of a machine's profile: bytes by size, spread of the reads, experts read beside work, work by tokens."""

from collections.abc import Callable, Sequence
from typing import Any

from foregate.hardware.profile import Profile, Timing
from foregate.report import numbers
from foregate.report.figures import BASELINE, COLOURS, DASHES, MARKERS, Data, Figure, axes

TITLES = {
    "read": "disk read",
    "memcpy": "memory copy",
    "memread": "memory read",
    "pinned": "to GPU, pinned",
    "pageable": "to GPU, pageable",
    "readback": "from GPU, pinned",
    "on-device": "GPU copy",
    "device-read": "GPU memory read",
    "expert": "one expert",
    "dense": "a layer without its experts",
    "head": "output embedding",
    "predict": "predictor's answer",
    "work-alone": "work, nothing read",
    "work-beside-reads": "work beside reads",
    "work-after-idle": "work after a pause",
    "read-alone": "reads, no work",
    "read-beside-work": "reads beside work",
}
"""Kind -> what the page calls it."""
MOVED = ("read", "memcpy", "pinned", "pageable", "readback", "on-device")
COMPUTED = ("expert", "dense", "head", "predict")
EXPERTS = 16  # read together, at most


def moved(profile: Profile, number: int) -> Figure | None:
    """Seconds by size."""
    return _by_size(
        profile,
        number,
        "moved",
        title="How long bytes take",
        what="milliseconds of one piece",
        told="Time of one read or copy by its size, so many under way at once; whiskers reach from p50 to p99 where "
        "that was measured. Both scales are logarithmic.",
        value=lambda t: numbers.ms(t.seconds),
        quoted=lambda t: numbers.seconds(t.seconds),
        whiskers=True,
    )


def rates(profile: Profile, number: int) -> Figure | None:
    """Bytes a second by size."""
    return _by_size(
        profile,
        number,
        "rates",
        title="How many bytes a second",
        what="GB/s",
        told="Bytes a second by the size of a piece, all pieces under way together. Small pieces pay for latency. Both "
        "scales are logarithmic.",
        value=lambda t: float(f"{t.rate / 1e9:.4g}"),
        quoted=lambda t: f"{numbers.size(t.rate)}/s",
    )


def spread(profile: Profile, number: int) -> Figure | None:
    """p50, p95 and p99 of single reads of the disk."""
    reads = [t for t in profile.of("read") if t.p50 is not None and t.p95 is not None and t.p99 is not None]
    if not reads:
        return None
    names = [f"{numbers.size(t.size)}, {t.at_once} at once" for t in reads]
    spans = {
        "type": "scatter",
        "mode": "lines",
        "name": "p50 to p99",
        "showlegend": False,
        "x": [x for t in reads for x in (numbers.ms(t.p50 or 0.0), numbers.ms(t.p99 or 0.0), None)],
        "y": [y for name in names for y in (name, name, None)],
        "line": {"color": BASELINE, "width": 2},
        "hoverinfo": "skip",
    }
    looks = (("p50", "circle", COLOURS[0]), ("p95", "square", COLOURS[4]), ("p99", "diamond", COLOURS[1]))
    marks = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": label,
            "x": [numbers.ms(getattr(t, label)) for t in reads],
            "y": names,
            "marker": {"symbol": symbol, "color": colour, "size": 9},
            "hovertemplate": "%{y}, " + label + ": %{x:.4~g} ms<extra></extra>",
        }
        for label, symbol, colour in looks
    ]
    told = "; ".join(
        f"{name} {' / '.join(f'{1e3 * (v or 0.0):.3g}' for v in (t.p50, t.p95, t.p99))}"
        for name, t in zip(names, reads, strict=True)
    )
    return Figure(
        name=f"spread-{number}",
        title="How evenly the disk reads",
        caption="Median, 95th and 99th percentile of single reads of the disk, by size and reads under way. The scale "
        f"is logarithmic. {_how(reads)}",
        text=f"Milliseconds at p50, p95 and p99: {told}.",
        data=[spans, *marks],
        layout={
            "height": 110 + 22 * len(names),
            "margin": {"l": 16 + 7 * max(map(len, names))},
            "xaxis": {"title": {"text": "milliseconds of a read (log scale)"}, **_log(_all_ms(reads))},
            "yaxis": {"type": "category", "autorange": "reversed"},
        },
    )


def experts(profile: Profile, number: int) -> Figure | None:
    """Seconds to bring 1..n experts, beside what one layer computes; None where no model was timed."""
    model = profile.model
    if model is None or not profile.of("expert") or not (profile.of("read") or profile.has_device):
        return None
    size, counts = model.expert_bytes, list(range(1, min(EXPERTS, max(model.experts, 2)) + 1))
    ways: dict[str, list[float]] = {}
    for depth in sorted({t.at_once for t in profile.of("read")})[:3]:
        ways[f"from disk, {depth} at once"] = [_reading(profile, size, n, depth) for n in counts]
    if profile.has_device or profile.of("memcpy"):
        ways["from host memory to GPU" if profile.has_device else "within memory"] = [
            n * profile.copy_seconds(size) for n in counts
        ]
    dense = profile.turn_seconds("layer") + (profile.dense_seconds() if profile.of("dense") else 0.0)
    working = [dense + n * (profile.expert_seconds() + profile.turn_seconds("expert")) for n in counts]
    fastest = min(ways, key=lambda way: ways[way][-1])
    hidden = sum(seconds <= working[0] for seconds in ways[fastest])
    data: Data = [
        _line(way, place, counts, [numbers.ms(s) for s in seconds], "%{x} experts: %{y:.4~g} ms")
        for place, (way, seconds) in enumerate(ways.items())
    ]
    data.append(
        {
            **_line(
                "a layer that computes so many",
                len(ways),
                counts,
                [numbers.ms(s) for s in working],
                "%{x}: %{y:.4~g} ms",
            ),
            "line": {"color": BASELINE, "width": 3, "dash": "solid"},
            "marker": {"color": BASELINE, "symbol": "circle-open", "size": 8},
        }
    )
    part = "its dense part and its experts" if dense else "its experts alone (the dense part was not timed)"
    return Figure(
        name=f"experts-{number}",
        title="Reading experts beside a layer's work",
        caption=f"Time to bring 1 to {counts[-1]} experts of {numbers.size(size)}, and to compute a layer with so many "
        f"for one token ({part}). Where the grey line is above a way's, a layer of such width hides its reads; below, "
        "the model waits, however good the guesses are. Derived from measured times.",
        text=f"While a layer computes one expert ({numbers.seconds(working[0])}), {hidden} experts arrive {fastest}. "
        + "; ".join(
            f"{way}: 1 expert {numbers.seconds(s[0])}, {counts[-1]} experts {numbers.seconds(s[-1])}"
            for way, s in ways.items()
        )
        + f"; computing {counts[-1]}: {numbers.seconds(working[-1])}.",
        data=data,
        layout=axes("experts", "milliseconds"),
    )


def work(profile: Profile, number: int) -> Figure | None:
    """Seconds of computing by tokens."""
    kinds = [kind for kind in COMPUTED if profile.of(kind)]
    if not kinds:
        return None
    timings = [t for kind in kinds for t in profile.of(kind)]
    data: Data = [
        _line(
            TITLES[kind],
            place,
            [t.size for t in profile.of(kind)],
            [numbers.ms(t.seconds) for t in profile.of(kind)],
            "%{x} tokens: %{y:.4~g} ms",
        )
        for place, kind in enumerate(kinds)
    ]
    layout = axes("tokens (log scale)", "milliseconds (log scale)")
    layout["xaxis"] |= _log([float(t.size) for t in timings])
    layout["yaxis"] = {"title": {"text": "milliseconds (log scale)"}, **_log([numbers.ms(t.seconds) for t in timings])}
    return Figure(
        name=f"work-{number}",
        title="How long it computes",
        caption=f"Time of one piece of work by its tokens. {_how(timings)}",
        text="With the fewest tokens: "
        + "; ".join(f"{TITLES[k]} {numbers.seconds(profile.of(k)[0].seconds)}" for k in kinds)
        + ".",
        data=data,
        layout=layout,
    )


def _by_size(
    profile: Profile,
    number: int,
    name: str,
    *,
    title: str,
    what: str,
    told: str,
    value: Callable[[Timing], float],
    quoted: Callable[[Timing], str],
    whiskers: bool = False,
) -> Figure | None:
    """A line for each way and number at once."""
    lines: dict[tuple[str, int], list[Timing]] = {}
    for kind in MOVED:
        for timing in profile.of(kind):
            lines.setdefault((kind, timing.at_once), []).append(timing)
    if not lines:
        return None
    timings = [t for group in lines.values() for t in group]
    data: Data = []
    for place, ((kind, at_once), group) in enumerate(lines.items()):
        line = _line(
            f"{TITLES[kind]}{f', {at_once} at once' if at_once > 1 else ''}",
            place,
            [t.size for t in group],
            [value(t) for t in group],
            "%{x:.4s}B: %{y:.4~g} " + what.split(maxsplit=1)[0],
        )
        data.append({**line, "error_y": _whiskers(group, line["line"]["color"])} if whiskers else line)
    layout = axes("bytes (log scale)", what)
    layout["xaxis"] |= {"type": "log", "exponentformat": "SI", "ticksuffix": "B", "dtick": 1}
    layout["yaxis"] = {"title": {"text": f"{what} (log scale)"}, **_log([value(t) for t in timings])}
    return Figure(
        name=f"{name}-{number}",
        title=title,
        caption=f"{told} {_how(timings)}",
        text="The smallest and the largest piece: "
        + "; ".join(
            f"{line['name']} {quoted(group[0])} for {numbers.size(group[0].size)}, {quoted(group[-1])} for "
            f"{numbers.size(group[-1].size)}"
            for line, group in zip(data, lines.values(), strict=True)
        )
        + ".",
        data=data,
        layout=layout,
    )


def _line(name: str, place: int, x: Sequence[float], y: Sequence[float], hover: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": COLOURS[place % len(COLOURS)], "width": 2, "dash": DASHES[place % len(DASHES)]},
        "marker": {"symbol": MARKERS[place % len(MARKERS)], "size": 8},
        "hovertemplate": hover + "<extra>%{fullData.name}</extra>",
    }


def _whiskers(timings: Sequence[Timing], colour: str) -> dict[str, Any]:
    """From p50 to p99; nothing where nobody measured."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [0 if t.p99 is None else max(0.0, numbers.ms(t.p99 - t.seconds)) for t in timings],
        "arrayminus": [0 if t.p50 is None else max(0.0, numbers.ms(t.seconds - t.p50)) for t in timings],
        "color": colour,
        "thickness": 1,
        "width": 4,
    }


def _reading(profile: Profile, size: int, count: int, depth: int) -> float:
    """Seconds until the last of so many experts is there, so many reads under way at once."""
    together = min(count, depth)
    return profile.read_seconds(size, together) * count / together


def _how(timings: Sequence[Timing]) -> str:
    """In words: measured, or not."""
    words = {"measured": "Measured on this machine", "derived": "derived", "datasheet": "from datasheets, not measured"}
    found = [word for basis, word in words.items() if any(t.basis == basis for t in timings)]
    text = ", ".join(found)
    return f"{text[0].upper()}{text[1:]}."


def _all_ms(timings: Sequence[Timing]) -> list[float]:
    return [numbers.ms(v) for t in timings for v in (t.p50, t.p99) if v is not None]


def _log(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis whose ticks are written out: plotly's own are digits without their decade."""
    low, high = min(values), max(values)
    steps = (1, 2, 5) if high / low < 300 else (1,)
    ticks = [m * 10.0**e for e in range(-9, 10) for m in steps]
    kept = [t for t in ticks if low / 3 <= t <= high * 3]
    return {"type": "log", "tickmode": "array", "tickvals": kept, "ticktext": [f"{t:g}" for t in kept]}
