"""Which prompts of a trace larger than memory are trained on, and which judge: as `split` by prompt has it."""

from dataclasses import dataclass

import numpy as np

from foregate.errors import ChoiceError
from foregate.splits import content_digest, split
from foregate.traces.parts import Parts
from foregate.traces.schema import Provenance, Trace, concat

JUDGES = 1 << 16  # validation tokens that are kept in memory at most, whole prompts


@dataclass(frozen=True, eq=False)
class StreamedFold:
    """The same training and validation prompts as `split(trace, "prompt")` has after `without_duplicates`.

    validation  in memory: as many of its prompts, in order, as have JUDGES tokens together
    """

    train: Parts
    validation: Trace


def split_parts(parts: Parts, *, seed: int = 0) -> StreamedFold:
    """Divide a trace by prompt, going through it twice. Raises: ChoiceError if it has fewer than three prompts."""
    first = _first_of_each(parts)
    if len(first) < 3:
        raise ChoiceError(f"{len(first)} prompts cannot be split; three are the fewest")
    whole = parts.take_prompts(first)
    fold = next(split(_skeleton(whole), "prompt", seed=seed))
    assert fold.validation is not None
    train, judges = (whole.take_prompts(part.token_id.tolist()) for part in (fold.train, fold.validation))
    return StreamedFold(train, _gathered(judges))


def _first_of_each(parts: Parts) -> list[int]:
    """Indices of the prompts that do not repeat an earlier one."""
    seen: set[bytes] = set()
    first, index = [], 0
    for part in parts:
        for rows in part.sequences():
            digest = content_digest(part, rows)
            if digest not in seen:
                seen.add(digest)
                first.append(index)
            index += 1
    return first


def _skeleton(parts: Parts) -> Trace:
    """A trace of the same prompts, a token each, numbered: all that a split by prompt looks at."""
    count, spec = len(parts.prompts), parts.spec
    numbers = np.arange(count, dtype=np.int32)
    return Trace(
        spec=spec,
        sequence=numbers,
        position=np.zeros(count, np.int32),
        step=numbers,
        token_id=numbers,
        experts=np.full((count, spec.num_layers, spec.top_k), -1, np.int8),
        weights=None,
        hidden=None,
        prompts=parts.prompts,
        provenance=Provenance((), "skeleton"),
    )


def _gathered(parts: Parts) -> Trace:
    """Whole prompts from the start until there are JUDGES tokens; always at least one."""
    found: list[Trace] = []
    tokens = 0
    for part in parts:
        for rows in part.sequences():
            size = rows.stop - rows.start
            if found and tokens + size > JUDGES:
                return concat(found)
            found.append(part.take(rows))
            tokens += size
    return concat(found)
