"""Strategies are compositions of what there is, all of them known, sourced and held to the same bytes."""

import pytest

from foregate.errors import ChoiceError
from foregate.memory.eviction import eviction
from foregate.memory.prefetch import prefetch
from foregate.simulation.strategies import BOUNDS, CHOSEN, LETTERS, ORACLE, STRATEGIES, checked, chosen, own
from foregate.spec import MoESpec

SPEC = MoESpec("m", "decoder", tuple(range(4)), 64, 6)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_part_of_a_strategy_exists(name: str) -> None:
    strategy = checked(STRATEGIES[name], name)
    eviction(strategy.evict)
    prefetch(strategy.policy(SPEC))
    assert strategy.source
    assert strategy.idea
    assert (strategy.predictor is None) == (strategy.prefetch == "none")
    assert strategy.distance >= 1


@pytest.mark.parametrize("name", ["pre-gated", "expertflow", "moe-infinity", "finemoe", "fate"])
def test_what_stands_in_for_a_paper_says_what_differs(name: str) -> None:
    assert STRATEGIES[name].differs


def test_widths_follow_the_model() -> None:
    assert STRATEGIES["pre-gated"].policy(SPEC) == "top:6"
    assert STRATEGIES["moe-infinity"].policy(SPEC) == "top:12"
    assert STRATEGIES["top-k"].policy(SPEC) == "top:16"
    assert STRATEGIES["finemoe"].policy(SPEC) == "threshold:0.3"
    narrow = MoESpec("m", "decoder", (0,), 3, 2)
    assert STRATEGIES["moe-infinity"].policy(narrow) == "top:3"  # a layer has no more
    assert STRATEGIES["top-k"].policy(narrow) == "top:1"


def test_only_bounds_know_the_future() -> None:
    assert {name for name, s in STRATEGIES.items() if s.knows_future} == {"belady", "oracle"}
    assert STRATEGIES["oracle"].predictor == ORACLE
    assert STRATEGIES["foregate"].predictor == CHOSEN


def test_the_bounds_are_in_every_table() -> None:
    assert list(chosen("fate"))[:3] == list(BOUNDS)
    assert set(chosen(None)) == set(STRATEGIES)
    assert set(chosen("A,b,C")) == {*BOUNDS, "look-ahead"}
    assert set(LETTERS.values()) <= set(STRATEGIES)


def test_own_strategies_are_made_of_parts() -> None:
    made = own("arc")
    assert (made.evict, made.predictor, made.prefetch) == ("arc", None, "none")
    made = own("predicted+counts:half_life=3+top:2k@3")
    assert (made.evict, made.predictor, made.policy(SPEC), made.distance) == (
        "predicted", "counts:half_life=3", "top:12", 3,
    )  # fmt: skip
    assert own("lru+fitted.npz+threshold:0.6").predictor == "fitted.npz"


@pytest.mark.parametrize("text", ["nobody", "lru+counts", "lru+nobody+top:2", "lru+counts+top:0", "lru+counts+top:2@0"])
def test_an_unknown_part_is_named(text: str) -> None:
    with pytest.raises(ChoiceError, match="strategy"):
        chosen(text)
