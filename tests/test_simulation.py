"""A simulated run holds no more than its slots, pays for every byte, computes nothing that is not there; it adds up."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from foregate.errors import ChoiceError
from foregate.memory.eviction import EVICTION, eviction
from foregate.memory.predicted import Predicted
from foregate.memory.prefetch import prefetch
from foregate.predictors import PREDICTORS
from foregate.predictors.chances import first_come, used
from foregate.simulation.chances import chances_of, oracle_chances
from foregate.simulation.costs import Costs
from foregate.simulation.foresight import foresee
from foregate.simulation.passes import Passes, passes_of
from foregate.simulation.simulate import Setting, play
from foregate.simulation.timeline import KINDS, Timeline
from foregate.spec import MoESpec
from foregate.traces.schema import Prompt, Provenance, Trace

L, E, K, SIZE = 4, 12, 2, 1000
POLICIES = ["none", "top:2", "threshold:0.5", "budget:3000B"]
OPTIONS = {"expert_bytes": SIZE, "read_seconds": 1.0, "window_seconds": 0.5, "profile": np.arange(L * E).reshape(L, E)}


@cache
def routing(prompts: int = 5, length: int = 30, prefill: int = 6) -> Trace:
    """Routing with habits: popular experts, and some of the token before."""
    rng = np.random.default_rng(0)
    T = prompts * length
    liking = rng.gumbel(size=(T, L, E)) + 1.5 * rng.normal(size=(L, E))
    for t in range(1, T):
        liking[t] = 0.6 * liking[t - 1] + liking[t] * 0.8
    position = np.tile(np.arange(length), prompts)
    first = position < prefill
    step = np.cumsum(np.r_[0, (~first[1:]) | (position[1:] == 0)])
    return Trace(
        spec=MoESpec("made up", "decoder", tuple(range(L)), E, K, (SIZE,) * L),
        sequence=np.repeat(np.arange(prompts), length).astype(np.int32),
        position=position.astype(np.int32),
        step=step.astype(np.int32),
        token_id=rng.integers(0, 50, T).astype(np.int32),
        experts=np.argsort(-liking, axis=2)[:, :, :K].astype(np.int8),
        weights=None,
        hidden=None,
        prompts=tuple(Prompt(f"p/{i}", "p", prefill) for i in range(prompts)),
        provenance=Provenance(("made up",), "recorded"),
    )


def costs(read: float = 1.0, expert: float = 0.1, *, threads: int = 2, **changed: Any) -> Costs:
    """Reads share the link: two at once take twice as long."""
    pace = np.zeros((2, L, threads)) + read * np.arange(1, threads + 1)
    pace[1] /= 10
    made = Costs(np.full(L, SIZE), pace, np.array([[0, expert]]), np.array([[0, 0.05]]), np.zeros(2), np.zeros(2))
    return replace(made, **changed)


@cache
def ran(
    evict: str, policy: str, slots: int = 10, read: float = 1.0, batch: int | None = None
) -> tuple[Passes, Timeline]:
    """The prompts; guesses are right for the most part."""
    passes = passes_of(routing(), batch=batch)
    said = oracle_chances(passes, 2)
    said = (0.5 * said + 0.9 * np.random.default_rng(1).random(said.shape)).astype(np.float32)
    setting = Setting(slots, eviction(evict), prefetch(policy), options=OPTIONS)
    window = range(len(passes))
    return passes, play(passes, costs(read), setting, chances=said, transfers=True, window=window)


CASES = [(evict, policy) for evict in sorted(EVICTION) for policy in POLICIES]
EVERY = pytest.mark.parametrize(("evict", "policy"), CASES)


@EVERY
def test_no_more_experts_than_slots(evict: str, policy: str) -> None:
    _, line = ran(evict, policy)
    assert line.transfers is not None
    held: dict[int, int] = {}
    for _, key, slot, gone, _ in line.transfers.tolist():
        assert held.get(slot, -1) == gone, "what was said to leave was not there"
        assert key not in held.values(), "one expert twice"
        held[slot] = key
        assert len(held) <= line.slots
        assert 0 <= slot < line.slots == 10


@EVERY
def test_every_read_is_charged(evict: str, policy: str) -> None:
    passes, line = ran(evict, policy)
    assert line.events is not None
    assert line.transfers is not None
    total = line.totals()
    reads = line.events.kind == KINDS.index("read")
    under_way = total["read"] - int(reads.sum())
    assert 0 <= under_way <= 2, "a read began and never ended, or ended without being charged"
    assert total["bytes"] == total["read"] * SIZE
    assert total["read"] >= len(line.transfers) - total["dropped"] - 2 * len(passes)
    spans = line.events.end[reads] - line.events.begin[reads]
    assert (spans > 0.99).all(), "a read was quicker than the link"
    busy = spans.sum() / 2
    assert busy <= line.seconds, "the link carried more than it can"


@EVERY
def test_nothing_is_computed_before_its_bytes_are_there(evict: str, policy: str) -> None:
    """Whatever a layer used had been read between its move into its slot and the layer's end."""
    passes, line = ran(evict, policy)
    assert line.events is not None
    assert line.transfers is not None
    rows = line.events.rows()
    ends: dict[int, float] = {}
    reads: dict[int, list[tuple[float, float]]] = {}
    begins = {p * L: end for p, end in enumerate([0.0, *line.pass_ends[:-1].tolist()])}  # guesses come before a layer
    for row in rows:
        run = row["pass"] * L + row["layer"]
        if row["kind"] == "compute":
            ends[run] = row["end"]
        elif row["kind"] == "dense":
            begins.setdefault(run, row["begin"])
        elif row["kind"] == "read":
            reads.setdefault(row["layer"] * E + row["expert"], []).append((row["begin"], row["end"]))
    moved: dict[int, list[int]] = {}
    for run, key, *_ in line.transfers.tolist():
        moved.setdefault(key, []).append(run)
    for run in range(len(passes) * L):
        for expert in passes.experts[passes.starts[run] : passes.starts[run + 1]].tolist():
            key = run % L * E + expert
            came = max(r for r in moved[key] if r <= run)
            assert any(begins[came] <= begin and end <= ends[run] for begin, end in reads[key]), (run, key)


@EVERY
def test_counts_add_up(evict: str, policy: str) -> None:
    passes, line = ran(evict, policy)
    total = line.totals()
    assert total["demanded"] == passes.demanded == line.counts.demanded
    assert total["resident"] + total["in_time"] + total["late"] + total["missed"] == total["demanded"]
    assert total["missed"] == line.counts.misses.sum()
    assert total["guessed"] == line.counts.guesses.sum()
    assert total["in_time"] <= line.counts.guess_hits.sum()
    assert np.allclose(line.by_pass.sum(axis=0), line.by_layer.sum(axis=0))
    spent = sum(total[name] for name in ("stall", "compute", "dense", "predictor"))
    assert spent == pytest.approx(line.seconds)
    assert total["prefill"]["tokens"] + total["decode"]["tokens"] == len(routing())
    parts = line.over_time(7)
    assert sum(part["demanded"] for part in parts) == total["demanded"]
    assert parts[-1]["ends"] == line.seconds


@pytest.mark.parametrize("evict", sorted(EVICTION))
def test_where_reads_take_no_time_nobody_waits(evict: str) -> None:
    for policy in POLICIES:
        total = ran(evict, policy, read=0.0)[1].totals()
        assert total["stall"] == 0
        assert total["late"] == 0
        assert total["bytes"] > 0


@EVERY
def test_with_room_for_all_each_is_read_once(evict: str, policy: str) -> None:
    passes, line = ran(evict, policy, slots=L * E)
    assert line.counts.misses.sum() + line.counts.guesses.sum() <= L * E
    assert (line.pass_stall[len(passes) // 2 :] == 0).mean() > 0.5


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("batch", [None, 5])
def test_what_is_foreseen_is_what_would_be_thought(policy: str, batch: int | None) -> None:
    """The same moves at the same times, whether `predicted` computes as it goes on or has been told."""
    passes, live = ran("predicted", policy, batch=batch)
    said = oracle_chances(passes, 2)
    said = (0.5 * said + 0.9 * np.random.default_rng(1).random(said.shape)).astype(np.float32)
    setting = Setting(10, eviction("predicted"), prefetch(policy), options=OPTIONS)
    foreseen = foresee(passes, Predicted())
    assert foreseen is not None
    told = play(passes, costs(), setting, chances=said, foreseen=foreseen, transfers=True)
    np.testing.assert_array_equal(told.transfers, live.transfers)
    np.testing.assert_array_equal(told.pass_ends, live.pass_ends)


def test_the_oracle_waits_least() -> None:
    """Foreknowledge and the best eviction, in the same slots over the same link: who guesses waits at least as long.

    The oracle may read ahead as little as others do: all that a prefill needs, read into few slots, comes too early.
    """
    passes = passes_of(routing())
    future = oracle_chances(passes, 2)
    for slots in (8, 16, 24):
        settings = [Setting(slots, eviction("belady"), prefetch(p), options=OPTIONS) for p in POLICIES]
        oracle = min(play(passes, costs(0.2), s, chances=future).totals()["stall"] for s in settings)
        for evict, policy in CASES:
            assert oracle <= ran(evict, policy, slots, 0.2)[1].totals()["stall"] + 1e-9, (evict, policy, slots)


def test_the_clock_by_hand() -> None:
    """Two experts, one reader: read 0-1, compute 1-1.1 while the other is read 1-2, compute 2-2.1; then both stay."""
    two = np.tile(np.array([[0, 1]], np.int8), (2, 1))[:, None, :].repeat(L, axis=1)
    trace = replace(routing().take(slice(6, 8)), experts=two)
    passes = passes_of(trace, as_decode=True)
    setting = Setting(L * E, eviction("lru"), prefetch("none"))
    line = play(passes, costs(threads=1), setting)
    layer = 0.05 + 1 + 1 + 0.1
    assert line.pass_seconds.tolist() == pytest.approx([L * layer, L * 0.25])
    assert line.totals()["stall"] == pytest.approx(L * 1.9)
    slowed = play(passes, costs(threads=1, work_slowed=2.0, reads_slowed=1.5), setting)
    # beside the read the 0.1 of work takes 0.2, in which 0.2 / 1.5 of the read is done
    beside = 0.05 + 1 + 0.2 + (1 - 0.2 / 1.5) + 0.1
    assert slowed.pass_seconds.tolist() == pytest.approx([L * beside, L * 0.25])


def test_a_guess_hides_behind_what_is_computed() -> None:
    passes, late = ran("lru", "top:2", 16, 0.2)
    hidden = play(
        passes,
        costs(0.2, expert=5.0),
        Setting(16, eviction("lru"), prefetch("top:2"), options=OPTIONS),
        chances=oracle_chances(passes, 2),
    )
    assert hidden.totals()["in_time"] > late.totals()["in_time"] > 0
    assert hidden.stall_share < late.stall_share


def test_wrong_guesses_make_nobody_wait() -> None:
    """Every layer uses experts 0 and 1, which stay; guesses for others share two slots, whose reads outlast the run."""
    trace = replace(routing().take(slice(6, 16)), experts=np.tile(np.array([0, 1], np.int8), (10, L, 1)))
    passes = passes_of(trace, as_decode=True)
    said = np.zeros((len(passes), L, 1, E), np.float32)
    said[:, :, 0, :2] = 0.9
    for p in range(1, len(passes)):  # in the first pass all are read in peace
        said[p, :, 0, 2 + p % 8 : 4 + p % 8] = 0.8
    setting = Setting(L * K + 2, eviction("lru"), prefetch("threshold:0.5"))
    line = play(passes, costs(read=1000.0), setting, chances=said, transfers=True)
    assert line.transfers is not None
    assert (line.transfers[:, 4] > 0).sum() > 2 * len(passes), "few guesses: nothing was put off"
    assert line.of_pass("stall")[1:].sum() == 0


def test_a_worker_that_mostly_waits_computes_slowly_and_one_that_mostly_works_does_not() -> None:
    passes = passes_of(routing())
    setting = Setting(10, eviction("lru"), prefetch("none"))
    for read, expert, slowed in ((1.0, 0.001, 2.0), (0.001, 0.1, 1.0)):
        awake, drowsy = (
            play(passes, costs(read, expert, dense=np.zeros((1, 2)), idle_slowed=factor), setting).totals()["compute"]
            for factor in (1.0, 2.0)
        )
        assert drowsy / awake == pytest.approx(slowed, rel=0.02)


def test_two_reads_that_begin_together_end_together() -> None:
    passes = passes_of(routing())
    setting = Setting(10, eviction("lru"), prefetch("none"))
    line = play(passes, costs(expert=1e-6), setting, window=range(len(passes)))
    assert line.events is not None
    reads = (line.events.kind == KINDS.index("read")) & (passes.rows[line.events.run] == 1)  # no third comes along
    pairs: dict[float, list[float]] = {}
    for began, ended in zip(line.events.begin[reads], line.events.end[reads], strict=True):
        pairs.setdefault(float(began), []).append(float(ended - began))
    both = np.array([ends for ends in pairs.values() if len(ends) == 2])
    assert len(both) > 3
    assert both == pytest.approx(2.0)


def test_host_memory_is_read_before_the_disk() -> None:
    passes = passes_of(routing())
    times = [costs(), Setting(10, eviction("lru"), prefetch("none"))]
    disk = play(passes, *times)
    tier = play(passes, costs(), replace(times[1], host_slots=30))
    whole = play(passes, costs(), replace(times[1], host_slots=None))
    assert disk.seconds > tier.seconds > whole.seconds
    counted = [line.totals() for line in (disk, tier, whole)]
    assert [c["read"] for c in counted] == [counted[0]["read"]] * 3, "the fast tier decides by itself"
    assert counted[0]["from_host"] == 0 < counted[1]["from_host"] < counted[2]["from_host"] == counted[2]["read"]
    assert counted[1]["bytes"] == (counted[1]["read"] - counted[1]["from_host"]) * SIZE


def test_sequences_side_by_side_share_their_experts() -> None:
    alone, (together, line) = passes_of(routing(), batch=1), ran("lru", "none", 20, batch=5)
    assert alone.carried == together.carried == len(routing())
    assert together.demanded < alone.demanded
    assert together.largest > K
    assert int(together.tokens.sum()) == int(alone.tokens.sum()) == routing().experts.size
    assert line.totals()["demanded"] == together.demanded
    assert passes_of(routing()).fresh.sum() == 5
    assert together.fresh.sum() == 1
    assert passes_of(routing(), max_tokens=10).carried == 50
    assert len(passes_of(routing(), as_decode=True)) == len(routing())


@pytest.mark.parametrize("name", ["popularity", "previous", "multi-layer", "counts"])
@pytest.mark.parametrize("batch", [None, 2])
def test_chances_are_what_the_runtime_would_be_told(name: str, batch: int | None) -> None:
    from foregate.history import Replay

    trace = routing()
    predictor = PREDICTORS[name]().fit(trace)
    passes = passes_of(trace, batch=batch)
    said = chances_of(predictor, trace, passes, 2)
    replays = [Replay(trace.take(rows)) for rows in trace.sequences()]
    starts = [rows.start for rows in trace.sequences()]
    for p in range(0, len(passes), 5):
        rows = passes.row_of[passes.firsts[p] : passes.firsts[p + 1]]
        for target in range(L):
            for h in range(min(2, target + 1)):
                found = []
                for row in rows.tolist():
                    sequence = trace.sequence[row]
                    query = replays[sequence].query(target - h - 1, target, np.array([row - starts[sequence]]))
                    found.append(predictor.predict(query))
                scores = np.concatenate(found)
                right = used(scores, K) if predictor.probabilities else first_come(scores)
                np.testing.assert_array_equal(said[p, target, h], right)


def test_chances_are_kept(tmp_path: Any) -> None:
    trace = routing()
    passes, predictor = passes_of(trace), PREDICTORS["counts"]().fit(trace)
    fresh = chances_of(predictor, trace, passes, cache=tmp_path)
    again = chances_of(predictor, trace, passes, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    np.testing.assert_array_equal(fresh, again)
    chances_of(predictor, trace, passes, 2, cache=tmp_path)
    chances_of(PREDICTORS["popularity"]().fit(trace), trace, passes, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_what_cannot_be_is_refused() -> None:
    passes = passes_of(routing())
    setting = Setting(10, eviction("lru"), prefetch("none"))
    with pytest.raises(ChoiceError, match="too few"):
        play(passes, costs(), replace(setting, slots=1))
    with pytest.raises(ChoiceError, match="nan"):
        costs(read=float("nan"))
    with pytest.raises(ChoiceError, match="-1"):
        costs(expert=-1.0)
    with pytest.raises(ChoiceError, match="shape"):
        play(passes, costs(), setting, chances=np.zeros((1, L, 1, E), np.float32))
    with pytest.raises(ChoiceError, match="distance"):
        oracle_chances(passes, 0)
    with pytest.raises(ChoiceError, match="batch"):
        passes_of(routing(), batch=0)
