"""A window of a run: whole passes of one prompt in its middle, and every moment of them inside."""

from itertools import pairwise

import numpy as np
import pytest
from conftest import make_trace

from foregate.memory.eviction import eviction
from foregate.memory.prefetch import prefetch
from foregate.simulation.costs import Costs
from foregate.simulation.passes import Passes, passes_of
from foregate.simulation.simulate import Setting, play
from foregate.simulation.window import middle, noted, window_of


def passes(**options: object) -> Passes:
    return passes_of(make_trace(prompts=4, tokens=9, layers=3, experts=8, k=2), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("many", [1, 2, 5, 50])
@pytest.mark.parametrize("options", [{}, {"as_decode": True}, {"batch": 2}])
def test_a_window_is_passes_of_one_prompt_that_decode(many: int, options: dict[str, object]) -> None:
    run = passes(**options)
    window = middle(run, many)
    assert 1 <= len(window) <= many
    assert len(set(run.prompt[window.start : window.stop].tolist())) == 1
    assert not run.prefill[window.start : window.stop].any()
    if many == 1 and not run.prefill[len(run) // 2]:
        assert window.start == len(run) // 2


def test_where_nothing_decodes_prefills_are_shown() -> None:
    run = passes()
    alone = passes_of(make_trace(prompts=4, tokens=9).take(slice(0, 3)))
    assert alone.prefill.all()
    assert len(middle(alone, 2)) == 1
    assert len(middle(run, 0)) == 0
    assert noted(range(0)) == range(0)


def test_every_moment_lies_in_its_window_and_the_worker_is_never_at_two_places() -> None:
    run = passes()
    L, size = run.layers, 1000
    read = np.zeros((2, L, 2)) + np.array([1.0, 2.0])
    costs = Costs(np.full(L, size), read, np.array([[0, 0.1]]), np.array([[0, 0.05]]), np.zeros(2), np.zeros(2))
    window = middle(run, 3)
    line = play(run, costs, Setting(6, eviction("lru"), prefetch("none")), window=noted(window))
    told = window_of(line, window)
    assert (told.first, told.passes) == (window.start, len(window))
    assert told.seconds == pytest.approx(line.pass_seconds[window.start : window.stop].sum())
    worker = sorted((begin, end) for kind, begin, end, *_ in told.moments if kind != "read")
    assert all(after[0] >= before[1] - 1e-9 for before, after in pairwise(worker))
    assert sum(end - begin for begin, end in worker) == pytest.approx(told.seconds)
    stalls = sum(end - begin for kind, begin, end, *_ in told.moments if kind == "stall")
    assert stalls == pytest.approx(line.pass_stall[window.start : window.stop].sum())
    assert all(0 <= begin < end <= told.seconds + 1e-9 for _, begin, end, *_ in told.moments)
