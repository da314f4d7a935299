"""The training loop's promises: killed and resumed is as if never killed, NaN stops it, one seed gives one network."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from foregate.errors import ChoiceError, SourceError, TrainingError
from foregate.predictors.networks.loop import Fitted, train
from foregate.predictors.networks.run import Recipe
from foregate.predictors.networks.schedules import Constant, Cosine, OneCycle, Plateau, Restarts, Schedule, rate_at
from foregate.predictors.session import Checkpoints, Session

torch = pytest.importorskip("torch")
pytest.importorskip("accelerate")
STEPS = 7
RECIPE = Recipe(learning_rate=0.05, epochs=5, clip=0.5, warmup=9, average=0.9, schedule=OneCycle())


def network() -> Any:
    nn = torch.nn
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))


def rows(epoch: int) -> Any:
    """[32, 4] and [32, 1] a batch: y is a fixed linear map of x."""
    rng = np.random.default_rng(epoch)
    for _ in range(STEPS):
        x = rng.normal(size=(32, 4)).astype(np.float32)
        yield x, x @ np.arange(4, dtype=np.float32)[:, None]


def loss(model: Any, batch: Any) -> Any:
    return ((model(batch[0]) - batch[1]) ** 2).mean()


def judge(model: Any) -> float:
    x, y = next(rows(0))
    return -float(((model(torch.from_numpy(x)) - torch.from_numpy(y)) ** 2).mean())


def run(recipe: Recipe = RECIPE, *, path: Path | None = None, resume: bool = False, **others: Any) -> Fitted:
    kept = None if path is None else Checkpoints(path, every=0, resume=resume)
    parts: dict[str, Any] = {"batches": rows, "loss": loss, "session": Session(kept), **others}
    return train(network, parts["batches"], parts["loss"], judge, recipe, steps=STEPS, session=parts["session"])


def same(a: Fitted, b: Fitted) -> bool:
    assert a.state.keys() == b.state.keys()
    return all(np.array_equal(a.state[name], b.state[name]) for name in a.state)


class Killed(Exception):  # noqa: N818
    pass


def killed_after(batches: int) -> Any:
    """The lesson, until so many batches were asked for."""
    count = 0

    def until(epoch: int) -> Any:
        nonlocal count
        for batch in rows(epoch):
            if count == batches:
                raise Killed
            count += 1
            yield batch

    return until


SCHEDULES: list[Schedule] = [Constant(), Cosine(), OneCycle(), Restarts(2.0, 2, 1e-7), Plateau(0)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("after", [1, STEPS, STEPS + 3, 4 * STEPS + 6])
def test_killed_and_resumed_is_as_if_never_killed(schedule: Schedule, after: int, tmp_path: Path) -> None:
    recipe = replace(RECIPE, schedule=schedule)
    whole = Session()
    expected = run(recipe, session=whole)
    with pytest.raises(Killed):
        run(recipe, path=tmp_path / "c", batches=killed_after(after))
    resumed = Session(Checkpoints(tmp_path / "c", every=0, resume=True))
    assert same(run(recipe, session=resumed), expected)
    assert resumed.curve == whole.curve


def test_a_process_that_was_shot_resumes(tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch: what is on disk is a whole checkpoint."""
    code = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_training import rows, run
def slow(epoch):
    for batch in rows(epoch):
        time.sleep(0.02)
        yield batch
run(path=Path(sys.argv[1]), batches=slow)
"""
    path = tmp_path / "c"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    while not path.exists() and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(".tmp")] == ["c"]
    assert same(run(path=path, resume=True), run())


def test_what_is_over_resumes_to_the_same(tmp_path: Path) -> None:
    first = run(path=tmp_path / "c")
    assert same(run(path=tmp_path / "c", resume=True), first)


def test_a_seed_gives_one_network_and_torch_is_left_as_it_was() -> None:
    before = torch.get_rng_state()
    first = run()
    assert same(first, run())
    assert not same(first, run(replace(RECIPE, seed=1)))
    assert torch.equal(before, torch.get_rng_state())


def test_checkpoints_do_not_change_what_is_learned(tmp_path: Path) -> None:
    assert same(run(path=tmp_path / "c"), run())


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_stops_and_the_last_good_state_is_kept(where: str, tmp_path: Path) -> None:
    count = 0

    def broken(model: Any, batch: Any) -> Any:
        nonlocal count
        count += 1
        value = loss(model, batch)
        if count <= STEPS + 2:
            return value
        return value * float("nan") if where == "loss" else torch.sqrt(value * 0)

    path = tmp_path / "c"
    with pytest.raises(TrainingError, match=f"the {where} at epoch 2, batch 3 is not finite") as found:
        run(path=path, loss=broken)
    assert str(path) in str(found.value)
    assert "learning_rate than 0.05" in str(found.value)
    state = torch.load(path, weights_only=True)["state"]
    assert (state["epoch"], state["batch"]) == (2, 2)
    assert all(bool(torch.isfinite(w).all()) for w in state["model"].values())
    assert same(run(path=path, resume=True), run())
    count = 0
    with pytest.raises(TrainingError, match="nothing of this run is kept"):
        run(loss=broken)
    count = 0
    late = Session(Checkpoints(tmp_path / "late", every=1e9))
    with pytest.raises(TrainingError, match=r"kept in .*late"):
        run(loss=broken, session=late)
    assert (tmp_path / "late").exists()


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    run(path=path)
    with pytest.raises(ChoiceError, match=r"another run \(seed: 0, now 1\)"):
        run(replace(RECIPE, seed=1), path=path, resume=True)
    session = Session(Checkpoints(path, resume=True, about={"traces": "other"}))
    with pytest.raises(ChoiceError, match=r"traces: nothing, now other"):
        run(session=session)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x80\x04\x95nonsense"])
def test_a_broken_checkpoint_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c").write_bytes(content)
    with pytest.raises(SourceError, match="not a checkpoint"):
        run(path=tmp_path / "c", resume=True)


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    torch.save({"format": 1, "about": {}, "state": Path("x")}, tmp_path / "c")
    with pytest.raises(SourceError, match="not a checkpoint"):
        run(path=tmp_path / "c", resume=True)


def test_patience_ends_the_run_and_the_best_epoch_is_kept() -> None:
    scores = iter([0.1, 0.3, 0.3, 0.2, 0.9])
    heard: list[float] = []
    fitted = train(
        network,
        rows,
        loss,
        lambda model: next(scores),
        Recipe(learning_rate=0.01, epochs=5, patience=2),
        steps=STEPS,
        told=lambda epoch, score: heard.append(score),
    )
    assert heard == [0.1, 0.3, 0.3, 0.2]
    assert (fitted.epoch, fitted.score) == (2, 0.3)


def test_progress_is_told_and_ends_at_one() -> None:
    shares: list[float] = []
    run(session=Session(advance=shares.append))
    assert shares == pytest.approx(np.arange(1, 5 * STEPS + 1) / (5 * STEPS))


def test_schedules_are_torchs() -> None:
    """Ours know only how far the run is; torch's own, stepped, say the same."""
    weight = torch.nn.Parameter(torch.zeros(1))

    def theirs(make: Any, count: int, by: float) -> list[float]:
        optimizer = torch.optim.AdamW([weight], lr=0.1)
        schedule, found = make(optimizer), []
        for i in range(count):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step((i + 1) * by) if by else schedule.step()
        return found

    schedulers = torch.optim.lr_scheduler
    restarts = theirs(lambda o: schedulers.CosineAnnealingWarmRestarts(o, 2, 2, eta_min=1e-7), 60, 0.25)
    ours = [rate_at(Restarts(2, 2, 1e-7), 0.1, i * 0.25, 15) for i in range(60)]
    assert ours == pytest.approx(restarts, rel=1e-6)
    cycle = theirs(lambda o: schedulers.OneCycleLR(o, 0.1, total_steps=1001), 1001, 0)
    ours = [rate_at(OneCycle(), 0.1, i / 100, 10) for i in range(1001)]
    np.testing.assert_allclose(ours, cycle, atol=3e-4)
    assert rate_at(Cosine(0.01), 0.1, 5, 10) == pytest.approx(0.055)
