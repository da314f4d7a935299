"""Who is trained on, who is tested. By prompt or data set; by `half`, the only honest one for a single prompt; the
`token` and `sample` splits exist only to show what they leak. Duplicated prompts are removed before any split.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from foregate.arrays import Bool, Int64
from foregate.errors import ChoiceError
from foregate.traces.schema import Trace

HELD_OUT = 0.1


@dataclass(frozen=True, eq=False)
class Fold:
    """One division of a trace. `leaks`: test rows are partly known from training."""

    train: Trace
    validation: Trace | None
    test: Trace
    leaks: bool = False


def duplicate_prompts(trace: Trace) -> dict[int, int]:
    """Prompts that repeat an earlier one -> that earlier one (indices into `trace.prompts`).

    Two prompts are the same if their tokens are; where token ids are unknown, if their routing is.
    """
    first: dict[bytes, int] = {}
    repeats: dict[int, int] = {}
    for rows in trace.sequences():
        index = int(trace.sequence[rows.start])
        digest = content_digest(trace, rows)
        if first.setdefault(digest, index) != index:
            repeats[index] = first[digest]
    return repeats


def content_digest(trace: Trace, rows: slice) -> bytes:
    """What two sequences share if one repeats the other."""
    content = trace.token_id[rows] if (trace.token_id[rows] >= 0).all() else trace.experts[rows]
    return hashlib.blake2b(np.ascontiguousarray(content).tobytes(), digest_size=16).digest()


def without_duplicates(trace: Trace) -> Trace:
    """The trace with each prompt once."""
    repeats = duplicate_prompts(trace)
    if not repeats:
        return trace
    return trace.take_prompts([i for i in range(len(trace.prompts)) if i not in repeats])


def answers_seen(fold: Fold) -> float:
    """Share of test cells whose answer stands in a training row: a training cell of the same token and a later layer
    has it among its routed sets so far. The Mixtral study's split had 96.6 %.
    """
    if fold.train.answers is None or fold.test.answers is None:
        return 0.0  # whole prompts: no token is on two sides
    trained = fold.train.answers
    later = np.flip(np.logical_or.accumulate(np.flip(trained, axis=1), axis=1), axis=1)[:, 1:]
    tested = fold.test.answers[:, 1:] & (fold.test.experts[:, 1:] >= 0).any(axis=2)
    later = np.pad(later[:, 1:], ((0, 0), (0, 1)))
    return float((later & tested).sum() / max(tested.sum(), 1))


def held_out(trace: Trace, seed: int) -> Bool:
    """[T] tokens of a training trace to judge by where no validation trace is given: a tenth of its prompts, or of
    fewer than three prompts the last tenth of each one's tokens.
    """
    prompts = len(trace.prompts)
    if prompts >= 3:
        chosen = np.random.default_rng(seed).permutation(prompts)[: max(1, round(HELD_OUT * prompts))]
        return np.isin(trace.sequence, chosen)
    held = np.zeros(len(trace), dtype=np.bool_)
    for rows in trace.sequences():
        held[rows.stop - max(1, round(HELD_OUT * (rows.stop - rows.start))) : rows.stop] = True
    return held


def split(
    trace: Trace,
    how: str,
    *,
    seed: int = 0,
    folds: int | None = None,
    shares: tuple[float, float] | None = None,
) -> Iterator[Fold]:
    """Divide a trace.

    how     prompt   whole prompts, stratified by data set: 80 % train, 10 % validation, 10 % test
            dataset  each data set is the test once, the others are trained on
            token    tokens of one prompt on both sides, 80/10/10 (leaks)
            sample   single (token, layer) cells on both sides, 98/1/1, as in the Mixtral study (leaks)
            half     the first half of each prompt's tokens is trained on, the rest is tested and may read all that came
                     before it. Nothing leaks, as a runtime knows what it has already routed; but both sides are of the
                     same prompt, so that it says nothing of others (see SAME_PROMPT)
    folds   prompt only: k-fold instead, every prompt tested once; the i-th prompt of each data set goes to fold
            i mod k where seed is 0, to a shuffled place otherwise
    shares  token and sample only: (validation, test) instead, e.g. (0.1, 0.1)

    Raises: ChoiceError if the trace has too few prompts or data sets.
    """
    if how not in SPLITS:
        raise ChoiceError(f"there is no split {how!r}; choose one of {', '.join(SPLITS)}")
    if shares is not None:
        if how not in LEAKING:
            raise ChoiceError(f"shares are for {' and '.join(LEAKING)}; a split by {how} has its own")
        yield _masked(trace, _random_parts(trace, how, seed, shares))
    elif folds is not None:
        if how != "prompt":
            raise ChoiceError(f"--folds divides by prompt; it does not go with --split {how}")
        yield from _fold_prompts(trace, seed, folds)
    else:
        yield from SPLITS[how](trace, seed)


def _split_prompts(trace: Trace, seed: int) -> Iterator[Fold]:
    if len(trace.prompts) < 3:
        raise ChoiceError(
            f"a split by prompt needs at least 3 prompts, this trace has {len(trace.prompts)}; "
            "give --test, or --folds 2"
        )
    rng = np.random.default_rng(seed)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    # Prompts line up by data set, shuffled within it, and every tenth is tested: each data set gives its share.
    order = [i for group in _by_dataset(trace) for i in rng.permutation(group).tolist()]
    stride = min(10, len(order))
    for place, prompt in enumerate(order):
        parts[{0: 2, 1: 1}.get(place % stride, 0)].append(prompt)
    train, validation, test = (trace.take_prompts(p) for p in parts)
    yield Fold(train, validation, test)


def _fold_prompts(trace: Trace, seed: int, folds: int) -> Iterator[Fold]:
    if not 2 <= folds <= len(trace.prompts):
        raise ChoiceError(f"{len(trace.prompts)} prompts cannot be divided into {folds} folds; choose 2 or more")
    fold = np.zeros(len(trace.prompts), dtype=np.int64)
    rng = np.random.default_rng(seed)
    for group in _by_dataset(trace):
        fold[rng.permutation(group) if seed else group] = np.arange(len(group)) % folds
    for i in range(folds):
        test = np.flatnonzero(fold == i).tolist()
        if test and len(test) < len(fold):
            yield Fold(trace.take_prompts(np.flatnonzero(fold != i).tolist()), None, trace.take_prompts(test))


def _split_datasets(trace: Trace, seed: int) -> Iterator[Fold]:
    groups = _by_dataset(trace)
    if len(groups) < 2:
        raise ChoiceError("a split by data set needs two data sets in the trace; split by prompt instead")
    for test in groups:
        train = [i for group in groups if group is not test for i in group]
        yield Fold(trace.take_prompts(train), None, trace.take_prompts(test))


def _split_tokens(trace: Trace, seed: int) -> Iterator[Fold]:
    yield _masked(trace, _random_parts(trace, "token", seed, (0.1, 0.1)))


def _split_halves(trace: Trace, seed: int) -> Iterator[Fold]:
    first: Bool = np.zeros(len(trace), dtype=np.bool_)
    for rows in trace.sequences():
        first[rows.start : (rows.start + rows.stop) // 2] = True
    if not first.any():
        raise ChoiceError("a split by half needs a prompt of 2 tokens or more; this trace has none")
    allowed: Bool = np.ones(trace.experts.shape[:2], dtype=np.bool_) if trace.answers is None else trace.answers
    yield Fold(trace.take(first), None, replace(trace, answers=allowed & ~first[:, None]))


def _split_samples(trace: Trace, seed: int) -> Iterator[Fold]:
    yield _masked(trace, _random_parts(trace, "sample", seed, (0.01, 0.01)))


SPLITS: dict[str, Callable[[Trace, int], Iterator[Fold]]] = {
    "prompt": _split_prompts,
    "dataset": _split_datasets,
    "token": _split_tokens,
    "sample": _split_samples,
    "half": _split_halves,
}
LEAKING = ("token", "sample")
SAME_PROMPT = ("half",)
"""Their test tokens follow the training tokens in the same prompt: no leak, and no claim for other prompts."""


def _random_parts(trace: Trace, how: str, seed: int, shares: tuple[float, float]) -> Int64:
    """[T, L] 0 = train, 1 = validation, 2 = test."""
    validation, test = shares
    shape = (len(trace), trace.spec.num_layers)
    draw = np.random.default_rng(seed).random((shape[0], 1) if how == "token" else shape)
    return np.broadcast_to(np.where(draw < test, 2, np.where(draw < test + validation, 1, 0)), shape)


def _masked(trace: Trace, part: Int64) -> Fold:
    allowed: Bool = np.ones(part.shape, dtype=np.bool_) if trace.answers is None else trace.answers
    train, validation, test = (replace(trace, answers=allowed & (part == p)) for p in (0, 1, 2))
    return Fold(train, validation, test, leaks=True)


def _by_dataset(trace: Trace) -> list[list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for index, prompt in enumerate(trace.prompts):
        groups[prompt.dataset].append(index)
    return list(groups.values())
