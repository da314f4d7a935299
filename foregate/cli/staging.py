"""From the words of `simulate` and `plan` to what is run: which prompts, which model, which machine, how many slots."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foregate.hardware.profile import Profile
    from foregate.simulation.guesser import Stage
    from foregate.simulation.shapes import ModelShape
    from foregate.splits import Fold
    from foregate.traces.schema import Trace


@dataclass(frozen=True)
class Words:
    """What was typed."""

    traces: list[Path]
    profile: str
    model: str | None
    host_memory: str | None
    split: str
    replay: str
    tokens: int
    seed: int


@dataclass(frozen=True, eq=False)
class Staging:
    """The stage of the test prompts, and of the validation prompts where there are any."""

    stage: Stage
    validation: Stage | None
    words: Words
    leaks: bool

    @property
    def judged(self) -> Stage:
        """The stage of the prompts that settings are chosen on. Raises: ChoiceError if there are none."""
        from foregate.errors import ChoiceError

        if self.validation is None or not len(self.validation.test):
            raise ChoiceError("the trace has too few prompts to choose on some and report on others; record 10 or more")
        return self.validation


def staged(words: Words, *, hidden: bool) -> Staging:
    """Read, split, and find model and machine.

    hidden  hidden states are read too

    Raises: ForegateError of some kind, with a sentence.
    """
    from foregate.cli.options import replayed_as_decode
    from foregate.errors import ChoiceError
    from foregate.simulation.guesser import Stage
    from foregate.simulation.profiles import find_profile
    from foregate.simulation.shapes import find_shape, timed_on
    from foregate.splits import without_duplicates
    from foregate.traces.schema import concat
    from foregate.traces.storage import read_trace
    from foregate.usagefiles import is_counts

    as_decode = replayed_as_decode(words.replay)
    machine = find_profile(words.profile)
    for path in words.traces:
        if (path / "config.json").is_file():
            raise ChoiceError(
                f"{path} is a model, not a trace of its routing: record one with foregate record {path} PROMPTS -o "
                f"TRACE, or with foregate run {path} --record TRACE if it does not fit"
            )
        if is_counts(path):
            raise ChoiceError(f"{path} is JSON, not a trace; foregate simulate takes counts for what popularity says")
    trace = without_duplicates(concat([read_trace(path, hidden=hidden) for path in words.traces]))
    shape = find_shape(words.model, trace.spec)
    fold = _fold(trace, words)
    profile = timed_on(machine, shape)
    slots = host_slots(words.host_memory, shape, device=profile.has_device)
    test = Stage(fold.train, fold.validation, some(fold.test, words), shape, profile, slots, as_decode)
    judged = None
    if fold.validation is not None:
        judged = Stage(fold.train, fold.validation, some(fold.validation, words), shape, profile, slots, as_decode)
    return Staging(test, judged, words, fold.leaks)


def slots_of(memory: str, shape: ModelShape) -> int:
    """Slots in "25%" of the experts, or in "6GiB" for the whole model. Raises: ChoiceError."""
    from foregate.simulation.budget import slots_for
    from foregate.sizes import parse_size

    size = parse_size(memory)
    return slots_for(shape, percent=size.percent, size=size.bytes)


def host_slots(text: str | None, shape: ModelShape, *, device: bool) -> int | None:
    """Experts in host memory: "all" (None here; with a device, unless asked otherwise), "none" (0), or what fits in a
    size. Raises: ChoiceError.
    """
    from foregate.errors import ChoiceError
    from foregate.sizes import parse_size

    if text is None:
        return None if device else 0
    if text in ("all", "none"):
        return None if text == "all" else 0
    size = parse_size(text)
    whole = shape.all_experts
    kept = int(size.percent * whole / 100) if size.percent is not None else (size.bytes or 0) // shape.slot_bytes
    if kept < 2:
        raise ChoiceError(f"--host-memory {text} holds no two experts; give more, none, or all")
    return min(kept, whole)


def some(trace: Trace, words: Words) -> Trace:
    """Whole prompts, drawn by the seed, until there are so many tokens; 0 = all."""
    import numpy as np

    if not words.tokens or len(trace) <= words.tokens:
        return trace
    sizes = np.bincount(trace.sequence, minlength=len(trace.prompts))
    order = np.random.default_rng(words.seed).permutation(len(sizes))
    many = int(np.searchsorted(np.cumsum(sizes[order]), words.tokens)) + 1
    return trace.take_prompts(sorted(order[:many].tolist()))


def _fold(trace: Trace, words: Words) -> Fold:
    from foregate.errors import ChoiceError
    from foregate.splits import Fold, split

    if words.split == "none":
        return Fold(trace, None, trace, leaks=True)
    if words.split != "prompt":
        raise ChoiceError(f"--split {words.split} is neither prompt nor none")
    if len(trace.prompts) < 3:
        raise ChoiceError(
            f"{len(trace.prompts)} prompts cannot be split; simulate all that predictors learned from with --split none"
        )
    return next(split(trace, "prompt", seed=words.seed))


def facts(staging: Staging) -> list[str]:
    """What every number of it rests on, a sentence each."""
    from foregate.simulation.profiles import basis

    stage, words = staging.stage, staging.words
    test, shape = stage.test, stage.shape
    places = {None: "all experts in host memory", 0: "all experts on disk"}
    place = places.get(stage.host_slots, f"{stage.host_slots} experts in host memory, all on disk")
    count = len(test.prompts)
    told = [
        f"Simulated, not measured: {len(test):,} tokens of {count} {'' if staging.leaks else 'test '}prompts of "
        f"{test.spec.model}, replayed as {words.replay}, predictors fitted on "
        + ("the same prompts: what they reach holds nowhere else." if staging.leaks else "other prompts."),
        f"Machine: {stage.profile.name} ({basis(stage.profile)}), {place}. Model: {shape.source}.",
    ]
    return told + doubts(stage.profile)


def doubts(profile: Profile) -> list[str]:
    """What of a machine's numbers nobody measured, a few notes."""
    return [f"note: {note}" for note in profile.notes if "derived" in note or "datasheet" in note][:3]
