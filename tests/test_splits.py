"""Nobody is tested on what they were trained on, except where the split says that it leaks."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import make_trace

from foregate.errors import ChoiceError, ForegateError
from foregate.splits import (
    LEAKING,
    SAME_PROMPT,
    SPLITS,
    Fold,
    answers_seen,
    duplicate_prompts,
    split,
    without_duplicates,
)
from foregate.traces.schema import Trace, concat


def names(trace: Trace | None) -> set[str]:
    return set() if trace is None else {p.name for p in trace.prompts}


@pytest.mark.parametrize("how", sorted(set(SPLITS) - {*LEAKING, *SAME_PROMPT}))
@pytest.mark.parametrize("seed", [0, 1])
def test_no_prompt_stands_on_two_sides(how: str, seed: int) -> None:
    trace = make_trace(prompts=23)
    for fold in split(trace, how, seed=seed):
        assert not fold.leaks
        assert names(fold.test)
        assert not names(fold.train) & names(fold.test)
        assert not names(fold.validation) & (names(fold.train) | names(fold.test))


@pytest.mark.parametrize("how", LEAKING)
def test_a_leaking_split_says_so_and_shares_no_cell(how: str) -> None:
    trace = make_trace(prompts=40)
    (fold,) = split(trace, how)
    assert fold.leaks
    assert fold.validation is not None
    masks = [t.answers for t in (fold.train, fold.validation, fold.test) if t.answers is not None]
    np.testing.assert_array_equal(sum(m.astype(int) for m in masks), 1)
    assert 0 < masks[2].mean() < 0.2


def test_the_first_half_of_each_prompt_is_trained_on_and_the_rest_tested() -> None:
    trace = make_trace(prompts=2, tokens=7)
    (fold,) = split(trace, "half")
    assert not fold.leaks
    assert fold.validation is None
    assert fold.train.position.tolist() == [0, 1, 2] * 2
    assert fold.test.take(slice(None)).equals(trace)  # the past may be read, whole
    assert fold.test.answers is not None
    np.testing.assert_array_equal(fold.test.answers, np.repeat(trace.position >= 3, 5).reshape(-1, 5))


def test_halves_respect_what_an_earlier_split_masked() -> None:
    trace = make_trace(prompts=1, tokens=4)
    allowed = np.arange(20).reshape(4, 5) % 2 == 0
    (fold,) = split(replace(trace, answers=allowed), "half")
    assert fold.train.answers is not None
    assert fold.test.answers is not None
    assert int(fold.train.answers.sum() + fold.test.answers.sum()) == int(allowed.sum())


def test_the_prompt_split_takes_its_share_of_every_data_set() -> None:
    trace = make_trace(prompts=40)
    (fold,) = split(trace, "prompt")
    assert {p.dataset for p in fold.test.prompts} == {"set0", "set1"}
    assert (len(fold.train.prompts), len(names(fold.validation)), len(fold.test.prompts)) == (32, 4, 4)


def test_folds_test_every_prompt_once() -> None:
    trace = make_trace(prompts=7)
    tested = [n for fold in split(trace, "prompt", folds=3) for n in names(fold.test)]
    assert sorted(tested) == sorted(names(trace))


def test_two_folds_pair_the_first_problems_of_each_data_set() -> None:
    trace = make_trace(prompts=4)  # sets 0, 1, 0, 1
    assert [names(f.test) for f in split(trace, "prompt", folds=2)] == [{"set0/0", "set1/1"}, {"set0/2", "set1/3"}]


def test_other_seeds_split_otherwise() -> None:
    trace = make_trace(prompts=40)
    assert len({frozenset(names(next(split(trace, "prompt", seed=s)).test)) for s in range(4)}) > 1


def test_duplicates_are_found_by_tokens_or_else_by_routing() -> None:
    trace = make_trace(prompts=3)
    twice = concat([trace, trace])
    assert duplicate_prompts(twice) == {3: 0, 4: 1, 5: 2}
    unknown = replace(twice, token_id=np.full_like(twice.token_id, -1))
    assert duplicate_prompts(unknown) == {3: 0, 4: 1, 5: 2}
    assert without_duplicates(twice).take(slice(0, len(trace))).equals(trace)


@pytest.mark.parametrize(
    ("prompts", "how", "folds"),
    [
        (2, "prompt", None),
        (1, "dataset", None),
        (4, "weekday", None),
        (4, "token", 2),
        (4, "half", 2),
        (4, "prompt", 5),
    ],
)
def test_an_impossible_split_is_answered_with_a_sentence(prompts: int, how: str, folds: int | None) -> None:
    with pytest.raises(ForegateError):
        list(split(make_trace(prompts=prompts), how, folds=folds))
    assert issubclass(ChoiceError, ForegateError)


def test_the_share_of_answers_seen_in_training_by_hand() -> None:
    trace = make_trace(prompts=1, tokens=2, layers=4)
    train = np.array([[1, 1, 0, 1], [1, 1, 1, 0]], dtype=np.bool_)
    fold = Fold(replace(trace, answers=train), None, replace(trace, answers=~train), leaks=True)
    # Token 0's layer 2 is in the history of its trained layer 3; token 1's layer 3 is in nobody's.
    assert answers_seen(fold) == 0.5
    assert answers_seen(Fold(trace, None, trace)) == 0.0


def test_the_sample_split_shows_nearly_every_answer_in_training() -> None:
    (fold,) = split(make_trace(prompts=200, layers=32), "sample")
    assert answers_seen(fold) == pytest.approx(30 / 31, abs=0.02)  # all but the last layer's


def test_shares_are_kept() -> None:
    (fold,) = split(make_trace(prompts=200), "sample", shares=(0.2, 0.3))
    assert fold.validation is not None
    for part, share in ((fold.validation, 0.2), (fold.test, 0.3)):
        assert part.answers is not None
        assert part.answers.mean() == pytest.approx(share, abs=0.02)
    with pytest.raises(ChoiceError, match="shares are for"):
        list(split(make_trace(), "prompt", shares=(0.2, 0.3)))
