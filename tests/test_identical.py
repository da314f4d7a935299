"""A model that runs from slots writes what the whole model writes: the same ids, from the same logits, to the last bit.

The reference is the same checkpoint whole in memory with `eager` experts, its weights at addresses that torch gives.
"""

import itertools
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

import tiny_models  # noqa: E402
from offloading import Pair, same, written  # noqa: E402

from foregate.memory.eviction import EVICTION  # noqa: E402

FAMILIES = [
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss", "phimoe", "granitemoe",
    "glm4_moe", "qwen3_next", "jamba", "switch_transformers",
]  # fmt: skip
DTYPES = [torch.float32, torch.bfloat16]
SLOTS = ["fewest", "25%", "100%"]
EVICTIONS = sorted(name for name, kind in EVICTION.items() if not kind.needs_future)
PREFETCH = [None, "multi-layer,top:2,distance=2", "multi-layer,threshold:0.2"]

Case = tuple[Any, ...]


def all_pairs(*factors: list[Any]) -> list[Case]:
    """Few cases in which every two values of two factors meet: the product of the first two, the others turned."""
    missing = {(i, a, j, b) for (i, x), (j, y) in itertools.combinations(enumerate(factors), 2) for a in x for b in y}
    cases = []
    for head in itertools.product(*factors[:2]):
        tails = itertools.product(*factors[2:])
        case = max(((*head, *tail) for tail in tails), key=lambda c: len(missing & met(c)))
        missing -= met(case)
        cases.append(case)
    assert not missing
    return cases


def met(case: Case) -> set[tuple[Any, ...]]:
    return {(i, a, j, b) for (i, a), (j, b) in itertools.combinations(enumerate(case), 2)}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pair_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def made(name: str, dtype: Any) -> tuple[Pair, Any]:
        pair = Pair.of(name, tmp_path_factory.mktemp(name), dtype)
        return pair, written(pair.whole.generate)

    return made


def check(pair_of: Any, case: Case) -> None:
    name, eviction, slots, dtype, prefetch = case
    pair, expected = pair_of(name, dtype)
    count = {"fewest": pair.fewest, "25%": max(pair.fewest, pair.experts // 4), "100%": pair.experts}[slots]
    with pair.engine(count, prefetch, evict=eviction) as engine:
        assert same(written(engine.generate), expected)
        assert engine.stats()["read"] > 0


@pytest.mark.parametrize("case", all_pairs(FAMILIES, EVICTIONS, SLOTS, DTYPES, PREFETCH), ids=str)
def test_slots_change_no_bit(pair_of: Any, case: Case) -> None:
    check(pair_of, case)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_slots_change_no_bit_whatever_the_options(pair_of: Any, name: str) -> None:
    """The whole product."""
    for case in itertools.product(EVICTIONS, SLOTS, DTYPES, PREFETCH):
        check(pair_of, (name, *case))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(tiny_models.FAMILIES) - set(FAMILIES)))
def test_slots_change_no_bit_in_other_families(tmp_path: Path, name: str) -> None:
    for dtype in DTYPES:
        pair = Pair.of(name, tmp_path / str(dtype), dtype)
        with pair.engine(prefetch="multi-layer,top:2") as engine:
            assert same(written(engine.generate), written(pair.whole.generate))
