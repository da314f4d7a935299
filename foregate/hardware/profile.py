"""What a machine needs for each kind of work, as frozen numbers that can be asked. Measures nothing, writes no file."""

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

import numpy as np

from foregate.errors import ChoiceError
from foregate.hardware.machine import Machine

Basis = Literal["measured", "derived", "datasheet"]
BASES = get_args(Basis)

KINDS: dict[str, str] = {
    "read": "bytes",  # disk to host memory, past the page cache unless a note says otherwise
    "memcpy": "bytes",  # host memory to host memory
    "memread": "bytes",  # the processor reads host memory
    "pinned": "bytes",  # host to device, page-locked
    "pageable": "bytes",  # host to device, ordinary memory
    "readback": "bytes",  # device to host, page-locked
    "on-device": "bytes",  # device memory to device memory
    "device-read": "bytes",  # the device reads its own memory
    "expert": "tokens",  # all of one expert's matrices
    "dense": "tokens",  # all of one mixture layer but its experts
    "head": "tokens",  # the output embedding
    "expert-turn": "tokens",  # the runtime's own part: of an expert, beside its matrices
    "layer-turn": "tokens",  # of a mixture layer, beside its dense part and its experts
    "pass-turn": "tokens",  # of a pass, beside its mixture layers and the output embedding
    "look-turn": "tokens",  # of asking a predictor about one layer, beside its answer
    "read-turn": "tokens",  # of reading one expert, beside its bytes
    "predict": "tokens",  # a predictor's answer about one layer
    "multiply": "operations",  # 16-bit multiplications and additions
    "work-alone": "bytes",  # the same work and the same reads, alone and beside each other
    "work-beside-reads": "bytes",
    "work-after-idle": "bytes",  # the same work while the processor sleeps most of the time
    "read-alone": "bytes",
    "read-beside-work": "bytes",
}
"""Kind of work -> what its size counts."""


@dataclass(frozen=True)
class Timing:
    """How long one piece of work takes.

    kind     a key of KINDS
    size     bytes, tokens or operations of one piece, as the kind says
    seconds  what one piece is reckoned at, so that at_once * size / seconds goes through. Measured: the median over
             rounds, of their mean for reads, whose slow ones are the disk's own, else of their median
    at_once  how many pieces are under way together; `seconds` is still the time of one of them
    p50 ..   seconds, over all pieces of all rounds; None where nobody measured
    count    pieces measured
    basis    measured here, derived from such, or a datasheet's
    """

    kind: str
    size: int
    seconds: float
    basis: Basis
    at_once: int = 1
    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    count: int = 0

    @property
    def rate(self) -> float:
        """Bytes, tokens or operations a second."""
        return self.at_once * self.size / self.seconds


@dataclass(frozen=True)
class ModelShape:
    """What "expert", "dense" and "head" were timed on.

    layers        mixture layers (the decoder's, where there are two stacks)
    expert_bytes  one expert's, as loaded
    """

    name: str
    dtype: str
    layers: int
    experts: int
    hidden: int
    expert_bytes: int


class Line(NamedTuple):
    """seconds = latency + bytes * per_byte, and how far off that is: |line / measured - 1|, median and worst."""

    latency: float
    per_byte: float
    error: float
    worst: float


@dataclass(frozen=True)
class Profile:
    """A machine, and every number known of it.

    name       what it goes by
    model      None where no model's times are known
    predictor  the file whose "predict" times these are
    notes      how it was measured, what was not, and what to be careful with
    sources    of datasheet numbers
    """

    name: str
    machine: Machine
    timings: tuple[Timing, ...]
    model: ModelShape | None = None
    predictor: str | None = None
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = ()

    def of(self, kind: str) -> tuple[Timing, ...]:
        """All timings of a kind, smaller sizes first."""
        assert kind in KINDS, kind
        return tuple(sorted((t for t in self.timings if t.kind == kind), key=lambda t: (t.at_once, t.size)))

    @property
    def has_device(self) -> bool:
        """Whether experts are copied to a device of its own memory before they run."""
        return "pinned" in self._curves

    def read_seconds(self, size: int, depth: int = 1) -> float:
        """Seconds from asking for `size` bytes of the disk until they are in host memory, `depth` such reads under way.

        Straight lines between the sizes and depths that are known; it never falls as either grows.
        """
        return self._moved("read", size, depth)

    def copy_seconds(self, size: int, threads: int = 1) -> float:
        """Seconds to bring `size` bytes from host memory to where they are computed with: pinned memory to the device
        where there is one, otherwise a copy within memory.
        """
        return self._moved("pinned", size, 1) if self.has_device else self._moved("memcpy", size, threads)

    def expert_seconds(self, tokens: int = 1, size: int | None = None) -> float:
        """Seconds to run `tokens` through one expert of `size` bytes; None: one of the model's.

        Of another size than was measured: in proportion. Not measured: the longer of reading the weights and of the
        arithmetic (16-bit weights), which real kernels do not reach.
        """
        return self._computed("expert", tokens, size)

    def dense_seconds(self, tokens: int = 1, size: int | None = None) -> float:
        """Seconds of one mixture layer without its experts (attention, norms, router, shared experts).

        tokens  one each of as many sequences, without a past to attend to
        size    bytes of the weights, where the times were not measured
        """
        return self._computed("dense", tokens, None if self.of("dense") else size)

    def head_seconds(self, tokens: int = 1, size: int | None = None) -> float:
        """Seconds of the output embedding for `tokens`; `size` as for `dense_seconds`."""
        return self._computed("head", tokens, None if self.of("head") else size)

    def turn_seconds(self, of: Literal["expert", "layer", "pass", "look", "read"]) -> float:
        """What the runtime itself takes beside computing an expert, a layer, a pass, a predictor's answer or a read.

        0 where nobody measured.
        """
        found = self.of(f"{of}-turn")
        return found[0].seconds if found else 0.0

    def look_seconds(self, tokens: int = 1, *, answer: float | None = None) -> float:
        """Seconds of asking a predictor about one layer: its answer, and what the runtime itself takes beside that.

        answer  seconds; None: as the predictor was timed, 0 where nobody did
        """
        if answer is None:
            answer = self.predictor_seconds(tokens) if self.of("predict") else 0.0
        return self.turn_seconds("look") + answer

    def predictor_seconds(self, tokens: int = 1) -> float:
        """Seconds that the predictor takes to answer about one layer."""
        return _along(self._curve("predict", 1), tokens)

    @property
    def work_slowed(self) -> float:
        """What computing time is multiplied by while the disk is read."""
        return self._ratio("work-beside-reads", "work-alone")

    @property
    def idle_slowed(self) -> float:
        """What computing time is multiplied by while the processor waits most of the time; 1 where nobody measured."""
        return self._ratio("work-after-idle", "work-alone") if self.of("work-after-idle") else 1.0

    @property
    def reads_slowed(self) -> float:
        """What reading time is multiplied by while experts are computed."""
        return self._ratio("read-beside-work", "read-alone")

    def read_line(self, depth: int = 1) -> Line:
        """The straight line nearest to the reads at one depth, relative errors counted, and how near it is."""
        curve = self._curve("read", depth)
        return _line(curve.sizes, curve.seconds)

    @cached_property
    def _curves(self) -> "dict[str, dict[int, _Curve]]":
        """kind -> how many at once -> its times by size, which never fall."""
        curves: dict[str, dict[int, _Curve]] = {}
        for kind in KINDS:
            for timing in self.of(kind):
                curve = curves.setdefault(kind, {}).setdefault(timing.at_once, _Curve([], []))
                curve.sizes.append(timing.size)
                curve.seconds.append(max([timing.seconds, *curve.seconds[-1:]]))
        return curves

    def _curve(self, kind: str, at_once: int) -> "_Curve":
        found = self._curves.get(kind, {}).get(at_once)
        if found is None:
            raise ChoiceError(f"{self.name} has no {kind!r} times; {_ADVICE.get(kind, 'run foregate profile')}")
        return found

    def _moved(self, kind: str, size: int, at_once: int) -> float:
        known = self._curves.get(kind) or {1: self._curve(kind, 1)}
        depths = sorted(known)
        # More at once never makes one piece faster: noise that says so is smoothed away.
        seconds = list(accumulate((_along(known[d], size, through_zero=True) for d in depths), max))
        if at_once > depths[-1]:
            return seconds[-1] * at_once / depths[-1]
        return float(np.interp(at_once, depths, seconds))

    def _computed(self, kind: str, tokens: int, size: int | None) -> float:
        if self.of(kind) and (size is None or self.model is not None):
            share = 1.0 if size is None or self.model is None else size / self.model.expert_bytes
            return share * _along(self._curve(kind, 1), tokens)
        if size is None:
            self._curve(kind, 1)  # says what is missing
        assert size is not None
        memory = "device-read" if self.has_device else "memread"
        self._curve(memory, 1)  # says what is missing
        fastest = max(self.of(memory), key=lambda t: (t.size, t.rate))
        arithmetic = size * tokens / self.of("multiply")[-1].rate if self.of("multiply") else 0.0
        return max(size / fastest.rate, arithmetic)

    def _ratio(self, above: str, below: str) -> float:
        return self._curve(above, 1).seconds[-1] / self._curve(below, 1).seconds[-1]


_ADVICE = {
    "expert": "name the model: foregate profile MODEL",
    "dense": "name the model: foregate profile MODEL",
    "head": "name the model: foregate profile MODEL",
    "predict": "name a predictor: foregate profile --predictor FILE",
    "read": "run foregate profile on this machine",
}


class _Curve(NamedTuple):
    sizes: list[int]
    seconds: list[float]


def _along(curve: _Curve, size: int, *, through_zero: bool = False) -> float:
    """Between the known sizes, straight lines; below them, the smallest one's time. Above, in proportion if
    `through_zero`, else along the line from the first to the last. One size alone is a rate.
    """
    first, last, final = curve.sizes[0], curve.sizes[-1], curve.seconds[-1]
    if len(curve.sizes) == 1 or (size > last and through_zero):
        return final * size / last
    if size > last:
        return final + (size - last) * (final - curve.seconds[0]) / (last - first)
    return float(np.interp(size, curve.sizes, curve.seconds))


def _line(sizes: list[int], seconds: list[float]) -> Line:
    x, t = np.array(sizes, dtype=float), np.array(seconds)
    latency, per_byte = 0.0, float((x / t).sum() / ((x / t) ** 2).sum())
    if len(sizes) > 1:
        design = np.stack([1 / t, x / t], axis=1)
        intercept, slope = np.linalg.lstsq(design, np.ones(len(t)), rcond=None)[0]
        if intercept > 0 and slope > 0:
            latency, per_byte = float(intercept), float(slope)
    errors = np.abs((latency + per_byte * x) / t - 1)
    return Line(latency, per_byte, float(np.median(errors)), float(errors.max()))
